"""Reading the videos of a run back as pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlacoach.errors import RunError

FRAMES_PER_SECOND = 5
"""The policy looks every 8 control steps of 50 ms; this shows an episode at twice its speed."""

Frames = list[npt.NDArray[np.uint8]]


def read_frames(folder: Path, name: str) -> Frames:
    """Read a video of a run.

    Args:
        folder: The run folder.
        name: The video, relative to it, as episodes.jsonl names it.

    Returns:
        Pictures (H, W, 3) uint8.

    Raises:
        RunError: The name leads out of the folder, the file is missing or broken, or mp4 cannot be read here.
    """
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"The video {name!r} is not in the run folder.", "The line that names it is not to be trusted.")
    if not file.is_file():
        raise RunError(f"The video {file} is gone.")
    if file.suffix == ".gif":
        return _read_gif(file)
    if find_spec("av") is None:
        raise RunError(f"{file.name} cannot be read without PyAV.", 'pip install "vlacoach[video]"')
    return _read_mp4(file)


def _read_mp4(file: Path) -> Frames:
    import av

    try:
        with av.open(str(file)) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:  # IndexError: it has no video.
        raise RunError(f"The video {file} is broken: {error}.") from error


def _read_gif(file: Path) -> Frames:
    from PIL import Image, ImageSequence

    try:
        with Image.open(file) as image:
            return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError is Pillow's word for a broken file.
        raise RunError(f"The video {file} is broken: {error}.") from error
