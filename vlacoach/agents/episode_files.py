"""Episodes to score, read from whatever they were kept as: rollouts, demonstrations, videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from vlacoach.data.hdf5 import DemonstrationReader
from vlacoach.data.rollouts import RecordedEpisode, RolloutsError, read_rollouts
from vlacoach.errors import ConfigError
from vlacoach.runs.videos import FRAMES_PER_SECOND

_VIDEOS = (".gif", ".mp4")
_HELD = 1.0
"""Mean difference, in levels, below which a picture counts as the one before it."""


def read_episodes(
    names: Sequence[str], task: int | None, chunk_size: int, cameras: Sequence[str]
) -> dict[str, RecordedEpisode]:
    """Read episodes.

    Args:
        names: ``FILE.gif``, ``FILE.mp4``, ``FILE.hdf5`` (all rollouts of it), ``FILE.hdf5:<k>``, or
            ``FILE.hdf5:demo_<k>``.
        task: Task of episodes that do not say theirs.
        chunk_size: Actions between two looks; demonstrations have a picture for every action.
        cameras: Cameras to read of a demonstration; rollouts hold what they hold, and a video has one.

    Returns:
        Name to episode, in the order of the names.

    Raises:
        ConfigError: A name does not say which episode, or an episode needs ``task``.
        RolloutsError: A file is missing or cannot be read.
        DemonstrationError: So is a file of demonstrations.
    """
    found: dict[str, RecordedEpisode] = {}
    for name in names:
        path, _, which = name.partition(".hdf5:") if ".hdf5:" in name else (name, "", "")
        file = Path(f"{path}.hdf5") if which else Path(name)
        if file.suffix in _VIDEOS:
            known = _needed(task, name)
            found[name] = _recorded(_video(file), known, "video")
        elif which.startswith("demo_"):
            found[name] = _demonstration(file, which, _needed(task, name), chunk_size, cameras)
        elif file.suffix == ".hdf5":
            found |= _rollouts(name, file, which)
        else:
            raise ConfigError(
                f"{name!r} is no episode.", "Name a .gif or .mp4, a rollouts file, FILE.hdf5:3, or FILE.hdf5:demo_3."
            )
    return found


def _needed(task: int | None, name: str) -> int:
    if task is None:
        raise ConfigError(f"{name} does not say which task it is of.", "Give --task.")
    return task


def _recorded(frames: NDArray[np.uint8], task: int, source: str) -> RecordedEpisode:
    return RecordedEpisode("", task, -1, "", source, False, max(1, len(frames) - 1), frames)


def _rollouts(name: str, file: Path, which: str) -> dict[str, RecordedEpisode]:
    episodes = read_rollouts(file)
    if not which:
        return {f"{file}:{number}": episode for number, episode in enumerate(episodes)}
    if not which.isdigit() or int(which) >= len(episodes):
        raise ConfigError(f"{file} has no rollout {which!r}.", f"It has 0 to {len(episodes) - 1}.")
    return {name: episodes[int(which)]}


def _demonstration(file: Path, which: str, task: int, chunk_size: int, cameras: Sequence[str]) -> RecordedEpisode:
    reader = DemonstrationReader(file, cameras)
    name, number = reader.tasks[0], which.removeprefix("demo_")
    if not number.isdigit() or int(number) not in reader.indices(name):
        listing = ", ".join(f"demo_{index}" for index in reader.indices(name)[:5])
        raise ConfigError(f"{file} has no {which}.", f"Among those it has: {listing}.")
    images = list(reader.read(name, int(number)).images.values())
    frames = images[0] if len(images) == 1 else np.stack(images, axis=1)
    looks = sorted({*range(0, len(frames), chunk_size), len(frames) - 1})
    return _recorded(frames[looks], task, "demonstration")


def _video(file: Path) -> NDArray[np.uint8]:
    """(T, H, W, 3) frames, mirrored back to what policies see, without the last one's being held."""
    if not file.is_file():
        raise RolloutsError(f"There is no video {file}.")
    try:
        frames = _gif(file) if file.suffix == ".gif" else _mp4(file)
    except (OSError, ValueError, EOFError, IndexError) as error:  # PyAV's errors are among them.
        raise RolloutsError(f"The video {file} cannot be read: {error}.") from error
    if not frames or frames[0].shape[0] != frames[0].shape[1]:
        shape = frames[0].shape[:2] if frames else "no frames"
        raise ConfigError(f"{file} is no video of one episode: {shape}.", "Its pictures should be square.")
    # A writer holds the last picture for a second, and compression may change it a little.
    for _ in range(FRAMES_PER_SECOND):
        if len(frames) > 1 and np.abs(frames[-1].astype(np.int16) - frames[-2]).mean() < _HELD:
            frames.pop()
    return np.ascontiguousarray(np.stack(frames)[:, :, ::-1])


def _gif(file: Path) -> list[NDArray[np.uint8]]:
    with Image.open(file) as video:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(video)]


def _mp4(file: Path) -> list[NDArray[np.uint8]]:
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"{file} needs PyAV.", 'Install it with: pip install "vlacoach[video]"') from error
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
