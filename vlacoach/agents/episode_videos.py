"""Videos of an evaluation's episodes, each written while it is played."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlacoach.agents.video import upright
from vlacoach.errors import RunError
from vlacoach.runs.files import writing
from vlacoach.runs.videos import FRAMES_PER_SECOND, read_frames

Frame = NDArray[np.uint8]

GRID = "grid"
"""Name of the video of all tasks."""

_TILE = 256
"""Longest side of a task's picture in the grid, in pixels."""


class VideoChoice(str, Enum):
    """Which episodes are kept as videos."""

    ALL = "all"
    FAILURES = "failures"
    NONE = "none"


class FrameSink(Protocol):
    """Takes the frames of one video."""

    file: Path

    def add(self, frame: Frame) -> None:
        """Append a frame (H, W, 3)."""

    def close(self) -> None:
        """Hold the last frame for a second, and end the file."""

    def discard(self) -> None:
        """End it, and leave no file."""


class Mp4Sink:
    """Writes an mp4 frame by frame through PyAV; no more than one frame is in memory.

    Args:
        stem: File without its ending, in a folder that exists.
    """

    def __init__(self, stem: Path) -> None:
        self.file = stem.with_name(f"{stem.name}.mp4")
        self._container: Any = None
        self._stream: Any = None
        self._last: Frame | None = None

    def add(self, frame: Frame) -> None:
        """Append a frame (H, W, 3) uint8 with even sides."""
        import av

        if self._container is None:
            self._container = av.open(str(self.file), "w")
            self._stream = self._container.add_stream("libx264", rate=FRAMES_PER_SECOND)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        self._last = frame
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Hold the last frame for a second, and end the file."""
        if self._container is None or self._last is None:
            return
        for _ in range(FRAMES_PER_SECOND):
            self.add(self._last)
        self._container.mux(self._stream.encode())
        self._container.close()
        self._container = None

    def discard(self) -> None:
        """End it, and leave no file."""
        if self._container is not None:
            self._container.close()
            self._container = None
        self.file.unlink(missing_ok=True)


class GifSink:
    """Collects frames and writes a GIF in the end, where PyAV is missing: its format cannot be appended to.

    Args:
        stem: File without its ending.
    """

    def __init__(self, stem: Path) -> None:
        self.file = stem.with_name(f"{stem.name}.gif")
        self._frames: list[Frame] = []

    def add(self, frame: Frame) -> None:
        """Append a frame (H, W, 3) uint8."""
        self._frames.append(frame)

    def close(self) -> None:
        """Write the file."""
        if not self._frames:
            return
        first, *others = [Image.fromarray(frame) for frame in [*self._frames, *[self._frames[-1]] * FRAMES_PER_SECOND]]
        first.save(self.file, save_all=True, append_images=others, duration=1000 // FRAMES_PER_SECOND, loop=0)

    def discard(self) -> None:
        """Forget the frames."""
        self._frames.clear()


def frame_sink(stem: Path) -> FrameSink:
    """What writes a video here: mp4, or GIF without PyAV."""
    return Mp4Sink(stem) if find_spec("av") is not None else GifSink(stem)


class EpisodeVideos:
    """Writes episodes as they are played, and keeps those that were asked for.

    Args:
        folder: Where the videos go.
        keep: Which episodes; a file is written as ``<name>.part`` until it is known whether its episode counts.
    """

    def __init__(self, folder: Path, keep: VideoChoice) -> None:
        self.folder = folder
        self.keep = keep
        self._playing: dict[str, FrameSink] = {}

    def look(self, name: str, look: Frame) -> None:
        """Take what the policy sees in an episode: ([I,] H, W, 3), of which the first camera is shown."""
        if self.keep is VideoChoice.NONE:
            return
        try:
            if name not in self._playing:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._playing[name] = frame_sink(self.folder / f".{name}.part")
            self._playing[name].add(upright(look[0] if look.ndim == 4 else look))
        except OSError as error:
            raise _failure(self.folder / name, error) from error

    def end(self, name: str, *, success: bool, valid: bool = True) -> Path | None:
        """End an episode.

        Args:
            name: The episode, as in :meth:`look`.
            success: Whether it succeeded.
            valid: Whether it counts; one that broke down is played again.

        Returns:
            The video, named after the episode and how it ended, or None if it is not kept.

        Raises:
            RunError: It cannot be written.
        """
        sink = self._playing.pop(name, None)
        if sink is None:
            return None
        if not valid or (self.keep is VideoChoice.FAILURES and success):
            sink.discard()
            return None
        target = self.folder / f"{name}_{'success' if success else 'failure'}{sink.file.suffix}"
        try:
            sink.close()
            sink.file.replace(target)
        except OSError as error:
            raise _failure(target, error) from error
        return target

    def close(self) -> None:
        """Drop the episodes that have not ended."""
        while self._playing:
            self._playing.popitem()[1].discard()

    def grid(self, tasks: Sequence[str]) -> Path | None:
        """Write the first kept episode of each task into one video, tasks beside and below each other.

        Args:
            tasks: Beginning of the episode names of each task; a task without a video is left out.

        Returns:
            The video, or None if no task has one.
        """
        firsts = [
            min(self.folder.glob(f"{task}_*_[sf]*.*"), default=None, key=lambda file: file.name) for task in tasks
        ]
        files = [file for file in firsts if file is not None]
        if not files:
            return None
        sink = frame_sink(self.folder / GRID)
        try:
            with writing(sink.file):
                for frame in _tiled([frames_of(file) for file in files]):
                    sink.add(frame)
                sink.close()
        except BaseException:
            sink.discard()
            raise
        return sink.file


def frames_of(file: Path) -> Iterator[Frame]:
    """Frames of a video, an mp4's one by one."""
    if file.suffix == ".gif":
        yield from read_frames(file.parent, file.name)
        return
    import av

    with av.open(str(file)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _tiled(videos: Sequence[Iterator[Frame]]) -> Iterator[Frame]:
    """Frames of a grid; a video that is over is held at its last frame."""
    shown = [_small(next(video)) for video in videos]
    columns = int(np.ceil(np.sqrt(len(shown))))
    height, width = shown[0].shape[:2]
    over = False
    while not over:
        blank = np.zeros((height, width, 3), dtype=np.uint8)
        tiles = [*shown, *[blank] * (-len(shown) % columns)]
        rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
        yield np.concatenate(rows)
        following = [next(video, None) for video in videos]
        over = all(frame is None for frame in following)
        shown = [old if new is None else _small(new) for old, new in zip(shown, following, strict=True)]


def _small(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    scale = min(1.0, _TILE / max(height, width))
    if scale == 1.0:
        return frame
    size = (2 * round(width * scale / 2), 2 * round(height * scale / 2))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def _failure(file: Path, error: OSError) -> RunError:
    return RunError(f"The video {file} cannot be written: {error}.", "Check free space and permissions.")
