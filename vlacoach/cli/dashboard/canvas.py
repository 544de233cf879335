"""A grid of styled characters that becomes strips."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

CodePoints = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

_SPACE = 0x20


def decode(points: CodePoints) -> str:
    """A string of code points."""
    return points.astype("<u4").tobytes().decode("utf-32-le")


class Canvas:
    """``height`` rows of ``width`` characters, each one cell wide.

    Args:
        width: Cells across.
        height: Cells down.
        base: Style of cells nothing is painted on; other styles are laid over it.
    """

    def __init__(self, width: int, height: int, base: Style) -> None:
        self._points = np.full((height, width), _SPACE, dtype=np.uint32)
        self._pens = np.zeros((height, width), dtype=np.intp)
        self._styles = [base]

    def pen(self, style: Style) -> int:
        """Register a style for painting."""
        self._styles.append(self._styles[0] + style)
        return len(self._styles) - 1

    def paint(self, x: int, y: int, points: CodePoints, mask: Mask, pen: int) -> None:
        """Paint the masked characters of a block that has its upper left corner at ``x``, ``y``."""
        height, width = points.shape
        block = slice(y, y + height), slice(x, x + width)
        self._points[block][mask] = points[mask]
        self._pens[block][mask] = pen

    def write(self, x: int, y: int, text: str, pen: int) -> None:
        """Write characters in a row; what does not fit is cut off."""
        if not 0 <= y < self._points.shape[0]:
            return
        visible = text[max(0, -x) : max(0, self._points.shape[1] - x)]
        left = max(0, x)
        self._points[y, left : left + len(visible)] = [ord(character) for character in visible]
        self._pens[y, left : left + len(visible)] = pen

    def is_blank(self, x: int, y: int, length: int) -> bool:
        """Whether a part of a row is free."""
        return bool(np.all(self._points[y, max(0, x) : x + length] == _SPACE))

    def strips(self) -> list[Strip]:
        """The rows, with neighbors of one style joined."""
        return [self._strip(points, pens) for points, pens in zip(self._points, self._pens, strict=True)]

    def _strip(self, points: CodePoints, pens: npt.NDArray[np.intp]) -> Strip:
        text = decode(points)
        edges = [0, *(np.flatnonzero(np.diff(pens)) + 1).tolist(), len(text)]
        segments = [
            Segment(text[start:stop], self._styles[pens[start]]) for start, stop in pairwise(edges) if start < stop
        ]
        return Strip(segments, len(text))


def text_row(parts: Iterable[tuple[str, Style]], width: int, base: Style) -> Strip:
    """A row of texts that may have characters two cells wide, cut or filled to a width.

    Args:
        parts: Texts and the styles laid over ``base``.
        width: Cells across.
        base: Style of the rest of the row.
    """
    segments: list[Segment] = []
    left = width
    for text, style in parts:
        printable = "".join(character if character.isprintable() else "?" for character in text)
        segment = Segment(printable, base + style)
        if segment.cell_length > left:
            segment = Segment(set_cell_size(printable, left), base + style)
        segments.append(segment)
        left -= segment.cell_length
    if left > 0:
        segments.append(Segment(" " * left, base))
    return Strip([segment for segment in segments if segment.text], width)
