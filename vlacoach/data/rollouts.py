"""Rollouts on disk: what the camera saw at each look of an episode, and how the episode ended.

Unlike demonstrations they hold failures, and no more pictures than the policy looked at. One HDF5 file holds
``rollouts/<k>`` with ``frames`` and attributes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vlacoach.errors import VlacoachError

FORMAT = 1


class RolloutsError(VlacoachError):
    """A rollouts file that is missing, damaged, or of another layout."""


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode.

    Attributes:
        suite: Name of the suite.
        task: Index of the task.
        init_state: Index of the initial state: 0 to 49 for official ones, 1000 and up for fresh ones.
        instruction: What the robot was told.
        source: Who acted: ``"policy"``, ``"expert"``, ``"noisy-expert"``, ``"near-miss"``, or ``"gross-failure"``.
        success: Whether the goal was reached.
        length: Executed actions.
        frames: (T + 1, [I,] H, W, 3) uint8, turned as policies see them: one look before each chunk of actions, and one
            at the end; with an axis of cameras if there are several.
    """

    suite: str
    task: int
    init_state: int
    instruction: str
    source: str
    success: bool
    length: int
    frames: NDArray[np.uint8]

    @property
    def pictures(self) -> NDArray[np.uint8]:
        """(T + 1, H, W, 3) frames of the first camera."""
        return self.frames[:, 0] if self.frames.ndim == 5 else self.frames

    def __str__(self) -> str:
        outcome = "success" if self.success else "failure"
        return f"{self.source} {outcome} at task {self.task} of {self.suite} from initial state {self.init_state}"


_ATTRIBUTES = {field.name for field in fields(RecordedEpisode)} - {"frames"}


def write_rollouts(file: Path, episodes: Sequence[RecordedEpisode]) -> Path:
    """Write a file as a whole, or leave what was there if that fails; returns ``file``.

    Raises:
        RolloutsError: It cannot be written.
    """
    if file.is_dir():
        raise RolloutsError(f"Cannot write {file}: it is a folder.", "Name a file, such as rollouts.hdf5.")
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w") as store:
            store.attrs["format"] = FORMAT
            for number, episode in enumerate(episodes):
                group = store.create_group(f"rollouts/{number}")
                group.create_dataset("frames", data=episode.frames, compression="gzip", compression_opts=1)
                for name in sorted(_ATTRIBUTES):
                    group.attrs[name] = getattr(episode, name)
        temporary.replace(file)
    except OSError as error:
        raise RolloutsError(
            f"Cannot write rollouts to {file}: {error}.", "Check free space and permissions."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return file


def read_rollouts(file: Path) -> list[RecordedEpisode]:
    """Read what :func:`write_rollouts` wrote, in its order.

    Raises:
        RolloutsError: The file is missing, damaged, or no rollouts file.
    """
    if not file.is_file():
        raise RolloutsError(f"There is no rollouts file {file}.", "Make one with: vlacoach reward bench --save FILE")
    try:
        with h5py.File(file, "r") as store:
            if store.attrs.get("format") != FORMAT or "rollouts" not in store:
                raise RolloutsError(
                    f"{file} holds no rollouts of format {FORMAT}.", "Make some with: vlacoach reward bench --save FILE"
                )
            groups = store["rollouts"]
            return [_episode(file, groups[name]) for name in sorted(groups, key=int)]
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:  # h5py's, by where the damage is.
        raise RolloutsError(
            f"The rollouts file {file} cannot be read: {error}.", "It was probably cut off when it was copied."
        ) from error


def _episode(file: Path, group: Any) -> RecordedEpisode:
    missing = {"frames"} - set(group) | (_ATTRIBUTES - set(group.attrs))
    if missing:
        raise RolloutsError(f"{group.name} in {file} lacks {', '.join(sorted(missing))}.")
    attributes = {name: group.attrs[name] for name in _ATTRIBUTES}
    for name, kind in {"task": int, "init_state": int, "length": int, "success": bool}.items():
        attributes[name] = kind(attributes[name])
    frames = np.asarray(group["frames"])
    if frames.dtype != np.uint8 or frames.ndim not in (4, 5) or frames.shape[-1] != 3 or not len(frames):
        raise RolloutsError(
            f"{group.name} in {file} has frames {frames.dtype} {frames.shape}, not uint8 (T, [I,] H, W, 3)."
        )
    return RecordedEpisode(**attributes, frames=frames)
