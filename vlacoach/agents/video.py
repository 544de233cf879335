"""Videos of episodes: mp4 where PyAV is installed (``pip install vlacoach[video]``), GIF otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlacoach.agents.prompts import Prompt
from vlacoach.errors import RunError
from vlacoach.runs.videos import FRAMES_PER_SECOND


class VideoRecorder:
    """Keeps the pictures that the policy saw in the first episode of each task, and writes them as one video each.

    Args:
        folder: Where the videos go; made when the first is written.
        prefix: Beginning of the files' names.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self.prefix = prefix
        self._names: dict[int, str] = {}
        self._pictures: dict[int, list[NDArray[np.uint8]]] = {}

    def watch(self, plan: Sequence[Prompt], names: Mapping[int, str]) -> Callable[[int, Any], None]:
        """Prepare for the episodes of a plan.

        Args:
            plan: The episodes.
            names: Name of each task, for the files.

        Returns:
            What to call with an episode's number and each of its looks, ([I,] H, W, 3); the first camera is shown.
        """
        first: dict[int, int] = {}
        for number, prompt in enumerate(plan):
            first.setdefault(prompt.task, number)
        self._names = {number: names[task] for task, number in first.items()}
        self._pictures = {number: [] for number in self._names}

        def show(number: int, look: NDArray[np.uint8]) -> None:
            if number in self._pictures:
                picture = look[0] if look.ndim == 4 else look
                # Policies see the scene mirrored; people should not.
                self._pictures[number].append(upright(picture))

        return show

    def frames(self) -> dict[str, list[NDArray[np.uint8]]]:
        """Pictures (H, W, 3) of each task's episode, by the task's name."""
        return {name: self._pictures[number] for number, name in self._names.items()}

    def write(self) -> list[Path]:
        """Write one video a task; returns the files."""
        return [
            write_video(self.folder / f"{self.prefix}{name}", frames)
            for name, frames in self.frames().items()
            if frames
        ]


def upright(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) as people see the scene; policies see it mirrored."""
    return np.ascontiguousarray(picture[:, ::-1])


def write_video(stem: Path, frames: Sequence[NDArray[np.uint8]]) -> Path:
    """Write frames as ``stem.mp4``, or ``stem.gif`` without PyAV.

    Args:
        stem: File without its ending.
        frames: (H, W, 3) uint8 each, with even sides; the last is held for a second.

    Raises:
        RunError: The file cannot be written.
    """
    held = [*frames, *[frames[-1]] * FRAMES_PER_SECOND]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        return _write_mp4(stem, held) if find_spec("av") is not None else _write_gif(stem, held)
    except OSError as error:
        raise RunError(f"The video {stem} cannot be written: {error}.", "Check free space and permissions.") from error


def _write_mp4(stem: Path, frames: Sequence[NDArray[np.uint8]]) -> Path:
    import av

    file = stem.with_name(stem.name + ".mp4")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return file


def _write_gif(stem: Path, frames: Sequence[NDArray[np.uint8]]) -> Path:
    file = stem.with_name(stem.name + ".gif")
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=1000 // FRAMES_PER_SECOND, loop=0)
    return file


def side_by_side(
    before: Mapping[str, Sequence[NDArray[np.uint8]]], after: Mapping[str, Sequence[NDArray[np.uint8]]]
) -> list[NDArray[np.uint8]]:
    """Frames of a grid: one row a task, its episode before training on the left and after on the right.

    Args:
        before: Frames of each task's episode, by name.
        after: The same tasks' later episodes; shorter ones are held at their last frame.

    Returns:
        Frames (rows * H, 2 * W, 3) uint8.
    """
    names = [name for name in before if before[name] and after.get(name)]
    length = max((max(len(before[name]), len(after[name])) for name in names), default=0)

    def at(frames: Sequence[NDArray[np.uint8]], index: int) -> NDArray[np.uint8]:
        return frames[min(index, len(frames) - 1)]

    return [
        np.concatenate([np.concatenate([at(before[n], i), at(after[n], i)], axis=1) for n in names])
        for i in range(length)
    ]
