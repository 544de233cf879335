"""The newest picture of one world, for whoever watches while the robot works.

Nobody pays for it unless somebody looks: a watcher keeps ``watching`` in the run folder fresh, and only then does the
trainer replace ``live.png`` a few times a second.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlacoach.errors import RunError
from vlacoach.runs.constants import LIVE_FILE, WATCHING_FILE
from vlacoach.runs.files import replace_bytes, writing

LIVE_SECONDS = 0.4
"""Least time between two pictures."""

WATCH_SECONDS = 6.0
"""How long a sign of a watcher counts."""

_FACTS = "vlacoach"
"""Key of the picture's text in the PNG file."""


@dataclass(frozen=True)
class LivePicture:
    """A picture and what it shows.

    Attributes:
        pixels: (H, W, 3) uint8, as a person would see the scene.
        facts: Task, initial state, look, and so on.
    """

    pixels: npt.NDArray[np.uint8]
    facts: dict[str, Any]


class LiveView:
    """The trainer's side.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0.0

    def wanted(self) -> bool:
        """Whether somebody looks and the last picture is old enough."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LIVE_SECONDS
        try:
            age = time.time() - (self._folder / WATCHING_FILE).stat().st_mtime
        except OSError:
            return False
        return abs(age) < WATCH_SECONDS  # A clock that was set back must not keep it on for hours.

    def show(self, pixels: npt.NDArray[np.uint8], facts: Mapping[str, Any]) -> None:
        """Replace the picture.

        Args:
            pixels: (H, W, 3) uint8.
            facts: JSON values that go with it.

        Raises:
            RunError: The folder cannot be written.
        """
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text(_FACTS, json.dumps(dict(facts)))
        data = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(data, "PNG", pnginfo=info, compress_level=1)
        replace_bytes(self._folder / LIVE_FILE, data.getvalue(), sync=False)


def keep_watching(folder: Path) -> None:
    """Say that somebody looks; to be said again every few seconds.

    Raises:
        RunError: The folder is not writable: the picture of the robot needs that.
    """
    file = folder / WATCHING_FILE
    with writing(file):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)


def stop_watching(folder: Path) -> None:
    """Take the sign of a watcher away."""
    with writing(folder / WATCHING_FILE):
        (folder / WATCHING_FILE).unlink(missing_ok=True)


def read_live(folder: Path) -> LivePicture | None:
    """The newest picture, or None if there is none.

    Raises:
        RunError: The file is not such a picture.
    """
    from PIL import Image

    file = folder / LIVE_FILE
    try:
        with Image.open(file) as image:
            facts = json.loads(str(image.info.get(_FACTS, "{}")))
            return LivePicture(np.asarray(image.convert("RGB")), facts if isinstance(facts, dict) else {})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError is Pillow's word for a broken PNG.
        raise RunError(f"{file} is not a picture: {error}.") from error
