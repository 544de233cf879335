"""Bars, sparklines, and histograms as rich text that reads without color too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rich.text import Text

from vlacoach.cli.dashboard.axes import compact_number, gap_count, spread_range
from vlacoach.cli.dashboard.braille import Floats
from vlacoach.cli.dashboard.series import SERIES_COLORS

_EIGHTHS_ACROSS = " ▏▎▍▌▋▊▉█"
_EIGHTHS_DOWN = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.-~=+*#"
_SURE, _UNSURE, _RATE, _BEYOND = "█", "▒", "┃", "·"
_ASCII_SURE, _ASCII_UNSURE, _ASCII_RATE, _ASCII_BEYOND = "#", "=", "|", "-"
_SHARE_WIDTH = 4  # "100%".
_RATE_COLOR, _OTHER_COLOR = SERIES_COLORS[0], SERIES_COLORS[1]


def interval_bar(rate: float, low: float, high: float, width: int, ascii: bool = False) -> Text:
    """A success rate as a bar: full up to the interval, shaded over it, a stroke at the rate, dots beyond.

    Args:
        rate: Rate in [0, 1]; NaN (nothing measured) gives dots alone.
        low: Lower end of the interval, in [0, 1].
        high: Upper end of the interval, in [0, 1].
        width: Cells; the first stands for 0, the last for 1.
        ascii: Use ``# = | -`` for the four.
    """
    sure, unsure, at, beyond = (
        (_ASCII_SURE, _ASCII_UNSURE, _ASCII_RATE, _ASCII_BEYOND) if ascii else (_SURE, _UNSURE, _RATE, _BEYOND)
    )
    if width < 1 or not math.isfinite(rate):
        return Text(beyond * max(width, 0), style="dim")
    first, stroke, last = (round(min(max(share, 0.0), 1.0) * (width - 1)) for share in (low, rate, high))
    first, last = min(first, stroke), max(last, stroke)
    return Text.assemble(
        (sure * first, _RATE_COLOR),
        (unsure * (stroke - first), _RATE_COLOR),
        (at, "bold"),
        (unsure * (last - stroke), _RATE_COLOR),
        (beyond * (width - 1 - last), "dim"),
    )


def sparkline(
    values: npt.ArrayLike, width: int, ascii: bool = False, low: float | None = None, high: float | None = None
) -> Text:
    """A row of blocks as high as the values: one a cell, or means of as many as share one.

    Args:
        values: ``(N,)``; what is not finite is a gap.
        width: Cells; fewer values leave cells to the right blank.
        ascii: Use the levels ``_ . - ~ = + * #``.
        low: Value of the lowest level; the lowest mean if None.
        high: Value of the highest level; the highest mean if None.
    """
    means = _means(np.asarray(values, dtype=np.float64), max(width, 0))
    finite = means[np.isfinite(means)]
    if not finite.size:
        return Text(" " * max(width, 0))
    bottom, top = spread_range(
        float(np.min(finite)) if low is None else low, float(np.max(finite)) if high is None else high
    )
    levels = _ASCII_LEVELS if ascii else _EIGHTHS_DOWN
    shares = (means / 2 - bottom / 2) / (top / 2 - bottom / 2)
    cells = [levels[_level(share, len(levels))] if math.isfinite(share) else " " for share in shares.tolist()]
    return Text("".join(cells).ljust(width), style=_RATE_COLOR)


def _level(share: float, levels: int) -> int:
    return min(max(int(share * levels), 0), levels - 1)


def _means(values: Floats, width: int) -> Floats:
    """Means of the finite values in at most ``width`` parts of like length; NaN for a part without any."""
    parts = (
        np.array_split(values, width) if 0 < width < values.size else [values[i : i + 1] for i in range(values.size)]
    )
    means = [part[np.isfinite(part)] for part in parts[:width]]
    # Divided before they are added: the sum of large values may be more than a double holds.
    return np.array([np.sum(part / part.size) if part.size else np.nan for part in means], dtype=np.float64)


def progress_bar(done: float, total: float, width: int, ascii: bool = False) -> Text:
    """A bar filled as far as the work is done, to an eighth of a cell.

    Args:
        done: Work done; above ``total`` counts as all.
        total: Work in all; 0 is an empty bar.
        width: Cells.
        ascii: Use ``#`` and ``-``, to a whole cell.
    """
    width = max(width, 0)
    share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
    if ascii:
        full = math.floor(share * width)
        return Text.assemble(("#" * full, _RATE_COLOR), ("-" * (width - full), "dim"))
    full, eighths = divmod(math.floor(share * width * 8), 8)
    part = _EIGHTHS_ACROSS[eighths] if eighths else ""
    return Text.assemble((_SURE * full + part, _RATE_COLOR), (_BEYOND * (width - full - len(part)), "dim"))


def histogram(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    bins: int,
    width: int,
    height: int,
    ascii: bool = False,
    names: tuple[str, str] = ("success", "failure"),
) -> list[Text]:
    """Two histograms one over the other, each as shares of its own values, so that a few successes are seen too.

    Args:
        a: ``(N,)`` values of the first; what is not finite is left out and counted in the legend.
        b: ``(M,)`` values of the second.
        bins: Number of bins; at most one a cell.
        width: Cells across, at least 12.
        height: Rows, at least 3: a legend, bars, and the axis.
        ascii: Use ``o``, ``x``, and ``#`` where both are.
        names: What the legend calls them.

    Returns:
        ``height`` rows of ``width`` cells; one row that says so if there are no values.

    Raises:
        ValueError: It is too small.
    """
    if width < 12 or height < 3:
        raise ValueError(f"a histogram needs 12 cells by 3 rows, not {width} by {height}")
    first, second = (np.asarray(values, dtype=np.float64).ravel() for values in (a, b))
    gaps = int(np.count_nonzero(~np.isfinite(first)) + np.count_nonzero(~np.isfinite(second)))
    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    if not first.size + second.size:
        return [Text(_fit("no values yet", width), style="dim")]
    both = np.concatenate([first, second])
    low, high = spread_range(float(np.min(both)), float(np.max(both)))
    plot = width - _SHARE_WIDTH - 1
    bins = max(1, min(bins, plot))
    shares = [_shares(values, bins, low, high) for values in (first, second)]
    top = max(float(np.max(each)) for each in shares)
    glyphs = "ox#" if ascii else "▒░█"
    cells = {
        (True, True): (glyphs[2], ""),
        (True, False): (glyphs[0], _RATE_COLOR),
        (False, True): (glyphs[1], _OTHER_COLOR),
        (False, False): (" ", ""),
    }
    rows = [_legend(glyphs, names, (first.size, second.size), gaps, width)]
    columns = np.arange(plot) * bins // plot
    for row in range(height - 2):
        # A bar fills the rows whose middle it reaches, and the lowest one in any case: a single value must not vanish.
        level = max(top * (height - 2.5 - row) / (height - 2), 0.0) if row < height - 3 else np.nextafter(0, 1)
        label = f"{100 * top:.0f}%" if row == 0 else "0%" if row == height - 3 else ""
        text = Text(f"{label:>{_SHARE_WIDTH}}{'|' if ascii else '│'}", style="dim")
        over = [(each >= level)[columns].tolist() for each in shares]
        for over_first, over_second in zip(*over, strict=True):
            glyph, style = cells[over_first, over_second]
            text.append(glyph, style)
        rows.append(text)
    ends = compact_number(low), compact_number(high)
    axis = f"{ends[0]}{ends[1]:>{max(plot - len(ends[0]), 0)}}"
    rows.append(Text(" " * (_SHARE_WIDTH + 1) + _fit(axis, plot), style="dim"))
    return rows


def _shares(values: Floats, bins: int, low: float, high: float) -> Floats:
    """``(bins,)`` share of the values in each bin from ``low`` to ``high``, the last one closed."""
    if not values.size:
        return np.zeros(bins)
    at = ((values / 2 - low / 2) / (high / 2 - low / 2) * bins).astype(np.intp)
    return np.bincount(np.minimum(at, bins - 1), minlength=bins) / values.size


def _legend(glyphs: str, names: Sequence[str], sizes: Sequence[int], gaps: int, width: int) -> Text:
    text = Text.assemble(
        (f"{glyphs[0]} {names[0]} {sizes[0]}  ", _RATE_COLOR),
        (f"{glyphs[1]} {names[1]} {sizes[1]}  ", _OTHER_COLOR),
        f"{glyphs[2]} both",
        (f"  {gap_count(gaps)}" if gaps else "", "dim"),
    )
    text.truncate(width, pad=True)
    return text


def _fit(text: str, width: int) -> str:
    return text[:width].ljust(width)
