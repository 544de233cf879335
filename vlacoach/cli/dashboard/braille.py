"""Lines as braille dots: two dots a cell across, four down, and never a spike lost.

A series is first reduced to the lowest and highest value that its line takes in each sub-column of dots (two a cell).
Values where the line crosses from one sub-column to the next count for both, so that neighboring strokes touch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.uint8]
Dots = npt.NDArray[np.bool_]

DOTS_ACROSS = 2
DOTS_DOWN = 4

# Bit of each dot in a braille code point, by row and column (Unicode chapter 21, "Braille Patterns").
_DOT_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)
_UPPER_HALF = 0x01 | 0x08 | 0x02 | 0x10
_LEFT_STROKE = 0x01 | 0x02 | 0x04 | 0x40
_RIGHT_STROKE = 0x08 | 0x10 | 0x20 | 0x80
# Rows are rounded inward; this much of a row is a rounding error of the mapping and not a part of the line.
_ROW_TOLERANCE = 1e-6


class Envelope(NamedTuple):
    """What a line covers in each sub-column.

    Attributes:
        low: ``(C,)`` lowest value; NaN where there is no line.
        high: ``(C,)`` highest value; NaN where there is no line.
    """

    low: Floats
    high: Floats


def column_positions(steps: Floats, columns: int, start: float, stop: float) -> Floats:
    """Where steps lie across the sub-columns: ``start`` in the middle of the first, ``stop`` in that of the last.

    Args:
        steps: ``(N,)`` steps.
        columns: Number of sub-columns.
        start: First step of the view.
        stop: Last step of the view, above ``start``.

    Returns:
        ``(N,)`` positions; those of the view are in [0.5, columns - 0.5].

    Raises:
        ValueError: The view has no extent.
    """
    if not start < stop:
        raise ValueError(f"a view must go up, not from {start} to {stop}")
    # Halved, as the difference of two doubles may be more than a double holds.
    with np.errstate(over="ignore"):
        shares = (steps / 2 - start / 2) / (stop / 2 - start / 2)
        return np.asarray(shares * (columns - 1) + 0.5)


def step_at(position: float, columns: int, start: float, stop: float) -> float:
    """The step in the middle of a sub-column: the inverse of :func:`column_positions`."""
    if columns < 2:
        return start
    return start + (stop - start) * (position - 0.5) / (columns - 1)


def decimate(steps: Floats, values: Floats, columns: int, start: float, stop: float) -> Envelope:
    """Reduce a line to its lowest and highest value in each sub-column.

    Args:
        steps: ``(N,)`` ascending, finite.
        values: ``(N,)``; a value that is not finite is a gap in the line.
        columns: Number of sub-columns.
        start: First step of the view.
        stop: Last step of the view, above ``start``.

    Returns:
        The envelope. Points outside the view count only for the line that leads to them.
    """
    low = np.full(columns, np.inf)
    high = np.full(columns, -np.inf)
    if steps.size:
        positions = column_positions(steps, columns, start, stop)
        finite = np.isfinite(values)
        inside = finite & (positions >= 0) & (positions < columns)
        at = positions[inside].astype(np.intp)
        np.minimum.at(low, at, values[inside])
        np.maximum.at(high, at, values[inside])
        crossings = _crossings(positions, values, finite, columns)
        for side, there in ((low, np.minimum), (high, np.maximum)):
            there(side, crossings[:-1], out=side, where=~np.isnan(crossings[:-1]))
            there(side, crossings[1:], out=side, where=~np.isnan(crossings[1:]))
    empty = low > high
    low[empty] = high[empty] = np.nan
    return Envelope(low, high)


def _crossings(positions: Floats, values: Floats, finite: Dots, columns: int) -> Floats:
    """``(columns + 1,)`` values of the line at the edges of the sub-columns; NaN where no line crosses."""
    edges = np.arange(columns + 1)
    after = np.searchsorted(positions, edges, side="left")
    crossed = (after > 0) & (after < positions.size)
    crossed[crossed] = finite[after[crossed]] & finite[after[crossed] - 1]
    right, left = after[crossed], after[crossed] - 1
    share = (edges[crossed] - positions[left]) / (positions[right] - positions[left])
    crossings = np.full(columns + 1, np.nan)
    crossings[crossed] = values[left] * (1 - share) + values[right] * share
    return crossings


def dot_rows(values: Floats, height: int, bottom: float, top: float) -> Floats:
    """``(N,)`` fractional rows of dots, counted from the top, at which values lie.

    Args:
        values: ``(N,)`` values.
        height: Rows of cells.
        bottom: Value of the lowest row of dots.
        top: Value of the highest row of dots, above ``bottom``.
    """
    with np.errstate(over="ignore"):
        return np.asarray((top / 2 - values / 2) / (top / 2 - bottom / 2) * (DOTS_DOWN * height - 1))


def dot_grid(envelope: Envelope, height: int, bottom: float, top: float) -> Dots:
    """Set the dots that a line covers.

    Args:
        envelope: The line, over C sub-columns.
        height: Rows of cells.
        bottom: Value of the lowest row of dots.
        top: Value of the highest row of dots, above ``bottom``.

    Returns:
        ``(4 * height, C)``; what lies outside of ``bottom`` to ``top`` is not drawn.
    """
    upper = dot_rows(envelope.high, height, bottom, top)
    lower = dot_rows(envelope.low, height, bottom, top)
    first, last = np.ceil(upper - _ROW_TOLERANCE), np.floor(lower + _ROW_TOLERANCE)
    # A stroke shorter than a row has the row it is nearest to. Both are infinite where a value is far outside.
    between = first > last
    first[between] = last[between] = np.rint((upper[between] + lower[between]) / 2)
    rows = np.arange(DOTS_DOWN * height)[:, None]
    return np.asarray((rows >= first) & (rows <= last))


def checkered(dots: Dots) -> Dots:
    """Every second dot of a grid, as a fill that a line stands out from."""
    rows, columns = dots.shape
    return np.asarray(dots & ((np.arange(rows)[:, None] + np.arange(columns)) % 2 == 0))


def pack(dots: Dots) -> Bits:
    """Gather dots into cells.

    Args:
        dots: ``(4 * H, 2 * W)``.

    Returns:
        ``(H, W)`` bits of the dots set in each cell, in the order of braille code points.
    """
    height, width = dots.shape[0] // DOTS_DOWN, dots.shape[1] // DOTS_ACROSS
    cells = dots.reshape(height, DOTS_DOWN, width, DOTS_ACROSS)
    return np.asarray(np.einsum("hdwa,da->hw", cells.astype(np.uint8), _DOT_BITS))


def glyphs(bits: Bits, ascii: bool = False) -> npt.NDArray[np.uint32]:
    """Code points of cells; a cell without dots is a space.

    Args:
        bits: ``(H, W)`` from :func:`pack`.
        ascii: Draw with ``' . : |`` (upper half, lower half, both, and a stroke from top to bottom), not with braille.

    Returns:
        ``(H, W)`` code points.
    """
    return (_ASCII if ascii else _BRAILLE)[bits]


def _ascii_glyph(bits: int) -> str:
    if not bits:
        return " "
    if bits & _LEFT_STROKE == _LEFT_STROKE or bits & _RIGHT_STROKE == _RIGHT_STROKE:
        return "|"
    if not bits & ~_UPPER_HALF:
        return "'"
    return ":" if bits & _UPPER_HALF else "."


_ASCII = np.array([ord(_ascii_glyph(bits)) for bits in range(256)], dtype=np.uint32)
_BRAILLE = np.array([0x20, *range(0x2801, 0x2900)], dtype=np.uint32)
