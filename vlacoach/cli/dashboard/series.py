"""The curves of a chart: their points, colors, and markers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlacoach.cli.dashboard.axes import log_values
from vlacoach.cli.dashboard.braille import Dots, Floats

# Exact entries of the 256-color cube (components 0, 95, 135, 175, 215, 255), so that terminals without true color show
# the same hues. From the entries light enough for a dark background, a search chose those farthest apart in CIELAB (at
# least 28) for readers with full color vision, protanopia, deuteranopia, and tritanopia alike.
SERIES_COLORS = (
    "#5fafff",  # sky blue
    "#ffaf00",  # orange
    "#00ff87",  # spring green
    "#d7005f",  # crimson
    "#af00ff",  # violet
    "#d7d7d7",  # gray
    "#008700",  # green
    "#d700af",  # magenta
)
"""Colors of series, in the order in which to give them out."""

SERIES_MARKERS = "●■▲◆○□△◇"
"""A glyph for each color, for readers without colors."""

_BELOW_EVERY_LOGARITHM = -400.0  # The smallest double has -323.3.

ASCII_MARKERS = "ox+*@%&$"
"""The same for terminals without Unicode."""


def marker(index: int, ascii: bool = False) -> str:
    """The marker of the series at an index; they repeat like the colors."""
    markers = ASCII_MARKERS if ascii else SERIES_MARKERS
    return markers[index % len(markers)]


@dataclass(eq=False)
class ChartSeries:
    """One curve.

    Points without a finite step are left out, the rest is put in ascending order of steps; all arrays become float64.

    Attributes:
        name: What the legend calls it.
        color: A Rich color, best one of :data:`SERIES_COLORS`.
        steps: ``(N,)`` steps.
        values: ``(N,)`` values; one that is not finite is a gap.
        markers: Whether each point gets a glyph, for series of few points.
        band: Lower and upper bounds, each ``(N,)``, drawn as a dim fill.

    Raises:
        ValueError: Arrays are not of one length.
    """

    name: str
    color: str
    steps: Floats
    values: Floats
    markers: bool = False
    band: tuple[Floats, Floats] | None = None

    def __post_init__(self) -> None:
        arrays = [np.asarray(array, dtype=np.float64) for array in (self.steps, self.values, *(self.band or ()))]
        if arrays[0].ndim != 1 or any(array.shape != arrays[0].shape for array in arrays):
            raise ValueError(f"series {self.name!r} needs arrays (N,), not {[array.shape for array in arrays]}")
        if not np.all(np.isfinite(arrays[0])):
            arrays = [array[np.isfinite(arrays[0])] for array in arrays]
        if np.any(np.diff(arrays[0]) < 0):
            order = np.argsort(arrays[0], kind="stable")
            arrays = [array[order] for array in arrays]
        self.steps, self.values = arrays[:2]
        self.band = (arrays[2], arrays[3]) if self.band is not None else None

    def index_at(self, step: float) -> int | None:
        """Index of the point nearest to a step; None if the series is empty or does not reach that step."""
        if not self.steps.size or not self.steps[0] <= step <= self.steps[-1]:
            return None
        return int(np.argmin(np.abs(self.steps - step)))


@dataclass(frozen=True, eq=False)
class Trace:
    """A series as it is drawn: smoothed, and with its values where the axis has them.

    Attributes:
        series: Where it comes from.
        raw: ``(N,)`` heights of the points on the axis (logarithms on a logarithmic one); NaN is a gap.
        smooth: ``(N,)`` heights of the moving average with the same gaps, or None without smoothing.
        smoothed: ``(N,)`` values of the moving average, or None without smoothing.
        band: Heights of the lower and upper bounds, or None.
        gaps: Points that cannot be drawn: not finite, or without a logarithm.
    """

    series: ChartSeries
    raw: Floats
    smooth: Floats | None
    smoothed: Floats | None
    band: tuple[Floats, Floats] | None
    gaps: int

    @property
    def main(self) -> Floats:
        """``(N,)`` heights of the line that matters: the average if there is one."""
        return self.raw if self.smooth is None else self.smooth


def trace(series: ChartSeries, smoothing: float, log_scale: bool) -> Trace:
    """Prepare a series for drawing.

    Args:
        series: The series.
        smoothing: Weight of the past in the exponential moving average, in [0, 1); 0 is none.
        log_scale: Whether the axis is logarithmic.
    """
    finite = np.isfinite(series.values)
    smoothed = _average(series.values, finite, smoothing) if smoothing > 0 else None
    gaps = int(np.count_nonzero(~finite))
    if not log_scale:
        raw = np.where(finite, series.values, np.nan)
        return Trace(series, raw, smoothed, smoothed, series.band, gaps)
    raw, hidden = log_values(series.values)
    smooth = None if smoothed is None else log_values(smoothed)[0]
    if smooth is not None:
        smooth[np.isnan(raw)] = np.nan
    return Trace(series, raw, smooth, smoothed, _log_band(series.band), gaps + hidden)


def _average(values: Floats, finite: Dots, weight: float) -> Floats:
    from vlacoach.runs.statistics import moving_average

    # At the very end of what a double holds, an average may round to infinity; it is a gap then.
    with np.errstate(over="ignore"):
        averages = moving_average(np.where(finite, values, np.nan), weight)
    averages[~(finite & np.isfinite(averages))] = np.nan
    return averages


def _log_band(band: tuple[Floats, Floats] | None) -> tuple[Floats, Floats] | None:
    if band is None:
        return None
    low, high = log_values(band[0])[0], log_values(band[1])[0]
    # A lower bound of 0 is below every axis; the fill then reaches as far down as the axis does.
    reaches_down = np.isfinite(band[0]) & (band[0] <= 0) & np.isfinite(high)
    return np.where(reaches_down, _BELOW_EVERY_LOGARITHM, low), high
