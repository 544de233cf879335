"""Pictures in a terminal: two pixels a cell as half blocks, or one as a character of like brightness."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.color_triplet import ColorTriplet
from rich.segment import Segment
from rich.style import Style
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from vlacoach.cli.dashboard.canvas import text_row

Picture = npt.NDArray[np.uint8]

_UPPER_HALF = "▀"
_RAMP = np.array([ord(character) for character in " .:-=+*#%@"], dtype=np.uint32)
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # ITU-R BT.709.
_NO_STYLE = Style()


def fit(array: Picture, width: int, rows: int) -> Picture:
    """Scale a picture to the largest size within a box that keeps its shape, each pixel an average over its area.

    Args:
        array: ``(H, W, 3)``.
        width: Pixels across of the box.
        rows: Pixels down of the box.

    Returns:
        ``(h, w, 3)`` with ``h <= rows`` and ``w <= width``.
    """
    height, across = array.shape[:2]
    scale = min(width / across, rows / height)
    new_height, new_width = (
        max(1, min(limit, round(scale * size))) for limit, size in ((rows, height), (width, across))
    )
    down, right = _area_weights(height, new_height), _area_weights(across, new_width)
    averaged = np.tensordot(down, array.astype(np.float32), axes=1)
    averaged = np.tensordot(right, averaged, axes=(1, 1)).swapaxes(0, 1)
    return np.rint(averaged).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _area_weights(size: int, new_size: int) -> npt.NDArray[np.float32]:
    """``(new_size, size)`` share that each old pixel has in each new one."""
    edges = np.arange(new_size + 1) * (size / new_size)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def half_blocks(array: Picture, width: int, height: int, base: Style = _NO_STYLE) -> list[Strip]:
    """A picture in the middle of a block of cells, as upper half blocks: the lower pixel is the background.

    Args:
        array: ``(H, W, 3)`` uint8, not empty.
        width: Cells across.
        height: Rows.
        base: Style of the cells around it.

    Returns:
        ``height`` strips of ``width`` cells.

    Raises:
        ValueError: The array is not a picture.
    """
    _check(array)
    if width < 1 or height < 1:
        return []
    pixels = fit(array, width, 2 * height)
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    if packed.shape[0] % 2:
        packed = np.vstack([packed, np.full((1, packed.shape[1]), -1, dtype=np.int32)])
    upper, lower = packed[::2], packed[1::2]
    strips = [_half_block_strip(above, below, width, base) for above, below in zip(upper, lower, strict=True)]
    return _centered(strips, width, height, base)


def _half_block_strip(upper: npt.NDArray[np.int32], lower: npt.NDArray[np.int32], width: int, base: Style) -> Strip:
    changes = np.flatnonzero((np.diff(upper) != 0) | (np.diff(lower) != 0)) + 1
    starts = [0, *changes.tolist()]
    stops = [*changes.tolist(), upper.size]
    colors = zip(upper[starts].tolist(), lower[starts].tolist(), strict=True)
    left = (width - upper.size) // 2
    segments = [Segment(" " * left, base)] if left else []
    for start, stop, (above, below) in zip(starts, stops, colors, strict=True):
        style = _pixel_style(above, below) if below >= 0 else base + Style.from_color(_color(above))
        segments.append(Segment(_UPPER_HALF * (stop - start), style))
    if right := width - upper.size - left:
        segments.append(Segment(" " * right, base))
    return Strip(segments, width)


# Neighboring frames share most of their colors; the bounds keep a film from filling the memory.
@lru_cache(maxsize=8192)
def _pixel_style(upper: int, lower: int) -> Style:
    return Style.from_color(_color(upper), _color(lower))


@lru_cache(maxsize=8192)
def _color(packed: int) -> Color:
    return Color.from_triplet(ColorTriplet(packed >> 16, packed >> 8 & 0xFF, packed & 0xFF))


def ascii_art(array: Picture, width: int, height: int) -> list[str]:
    """A picture in the middle of a block of cells, in characters that cover more the lighter it is.

    Args:
        array: ``(H, W, 3)`` uint8, not empty.
        width: Cells across.
        height: Rows.

    Returns:
        ``height`` strings of ``width`` characters.

    Raises:
        ValueError: The array is not a picture.
    """
    _check(array)
    if width < 1 or height < 1:
        return []
    pixels = fit(array, width, 2 * height) @ _LUMINANCE
    if pixels.shape[0] % 2:
        pixels = np.vstack([pixels, pixels[-1:]])
    brightness = (pixels[::2] + pixels[1::2]) / 2
    points = _RAMP[np.rint(brightness / 255 * (len(_RAMP) - 1)).astype(np.intp)]
    rows = ["".join(map(chr, row)) for row in points.tolist()]
    left, above = (width - points.shape[1]) // 2, (height - len(rows)) // 2
    blank = [" " * width]
    return blank * above + [f"{' ' * left}{row}".ljust(width) for row in rows] + blank * (height - len(rows) - above)


def _centered(strips: list[Strip], width: int, height: int, base: Style) -> list[Strip]:
    above = (height - len(strips)) // 2
    blank = [Strip([Segment(" " * width, base)], width)]
    return blank * above + strips + blank * (height - len(strips) - above)


def _check(array: Picture) -> None:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(f"a picture must be (H, W, 3) uint8, not {array.shape} {array.dtype}")


class PictureView(Widget):
    """A picture with a caption below it.

    Args:
        ascii: Show it in ASCII characters.
        empty: What to say while there is no picture.
        name: Name of the widget.
        id: Id of the widget.
        classes: CSS classes of the widget.
    """

    ALLOW_SELECT = False

    COMPONENT_CLASSES: ClassVar[set[str]] = {"picture-view--caption"}
    """The caption, and what is said while there is no picture."""

    DEFAULT_CSS = """
    PictureView {
        &> .picture-view--caption { color: $text-muted; }
    }
    """

    ascii: reactive[bool] = reactive(False)
    """Whether to show it in ASCII characters."""

    def __init__(
        self,
        *,
        ascii: bool = False,
        empty: str = "no picture yet",
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.set_reactive(PictureView.ascii, ascii)
        self._empty = empty
        self._array: Picture | None = None
        self._caption = ""
        self._strips: list[Strip] | None = None
        self._drawn: tuple[int, int, bool] | None = None

    def show(self, array: Picture | None, caption: str = "") -> None:
        """Show a picture, or none.

        Args:
            array: ``(H, W, 3)`` uint8, not empty; None for no picture.
            caption: A line below it; none if empty.

        Raises:
            ValueError: The array is not a picture.
        """
        if array is not None:
            _check(array)
        self._array, self._caption = array, caption
        self._strips = None
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """A row of the picture, drawn anew only after a change."""
        width, height = self.size
        key = (width, height, self.ascii)
        if self._strips is None or key != self._drawn:
            self._strips, self._drawn = self._draw(max(width, 1), max(height, 1)), key
        strips = self._strips
        return strips[y] if y < len(strips) else Strip.blank(width, self.visual_style.rich_style)

    def notify_style_update(self) -> None:
        """Draw anew after a change of theme or classes."""
        super().notify_style_update()
        self._strips = None

    def _draw(self, width: int, height: int) -> list[Strip]:
        base = self.visual_style.rich_style
        style = self.get_component_rich_style("picture-view--caption")
        caption = (
            [text_row([(self._caption.center(width), style)], width, base)] if self._caption and height > 1 else []
        )
        rows = height - len(caption)
        if self._array is None:
            note = text_row([(self._empty.center(width), style)], width, base)
            return _centered([note], width, rows, base) + caption
        if self.ascii:
            lines = ascii_art(self._array, width, rows)
            return [text_row([(line, _NO_STYLE)], width, base) for line in lines] + caption
        return half_blocks(self._array, width, rows, base) + caption
