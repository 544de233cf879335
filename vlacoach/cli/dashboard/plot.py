"""The plot of a chart: axes and what lies between them, painted layer by layer.

Lines of one layer share cells (their dots add up); a higher layer replaces what is below it, so that a moving average
stays a thin line over noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.style import Style

from vlacoach.cli.dashboard import axes, braille
from vlacoach.cli.dashboard.braille import Bits, Dots, Floats
from vlacoach.cli.dashboard.canvas import Canvas
from vlacoach.cli.dashboard.series import Trace, marker

_LEAST_PLOT = 8  # Cells below which labels of the y axis give way to the plot.
_LABEL_WIDTH = 4  # At least, so that the plot does not jump as labels grow.
_MARKER_DISTANCE = 12  # Cells between the markers on a line that colors do not tell apart.
_CELLS_PER_X_LABEL = 12
_ROWS_PER_Y_LABEL = 3
# Characters of lines would make a fill look like one.
_ASCII_FILLS = ",-~_"


def _at_least_two(make_ticks: Callable[[int], Floats], count: int) -> Floats:
    """Ticks, and more of them than wanted where round numbers miss a short axis."""
    for wanted in range(max(count, 1), max(count, 1) + 6):
        ticks = make_ticks(wanted)
        if ticks.size > 1:
            break
    return ticks


@dataclass(frozen=True)
class ChartStyles:
    """How a chart looks.

    Attributes:
        base: Style below everything.
        title: Laid over it for the title.
        axis: For axes, their labels, and remarks.
        cursor: For the cursor line and its step.
    """

    base: Style
    title: Style
    axis: Style
    cursor: Style


@dataclass(frozen=True)
class ChartView:
    """What a chart shows.

    Attributes:
        title: Its title.
        start: First step shown.
        stop: Last step shown, above ``start``.
        log_scale: Whether the traces are logarithms.
        y_range: Fixed ends of the y axis in values; those of the visible lines if None.
        cursor: Step of the cursor line.
        ascii: Use ASCII characters only.
        marked_lines: Mark lines along their way, for terminals whose colors do not tell them apart.
    """

    title: str
    start: float
    stop: float
    log_scale: bool = False
    y_range: tuple[float, float] | None = None
    cursor: int | None = None
    ascii: bool = False
    marked_lines: bool = False


class Plot:
    """The rows of a chart under its title and legend.

    Args:
        view: What to show.
        styles: How it looks.
        width: Cells across, labels included.
        rows: Rows; from three on the last one is the x axis.
        extent: Heights at the lowest and the highest row of dots.
    """

    def __init__(
        self, view: ChartView, styles: ChartStyles, width: int, rows: int, extent: tuple[float, float]
    ) -> None:
        self.canvas = Canvas(width, rows, styles.base)
        self._view = view
        self._cursor_pen = self.canvas.pen(styles.cursor)
        self._axis_pen = self.canvas.pen(styles.axis)
        self._bottom, self._top = extent
        self._height = rows - 1 if rows >= 3 else rows
        labels = self._y_labels()
        label_width = max([_LABEL_WIDTH, *(len(label) for label in labels.values())])
        self.left = label_width + 1 if width >= label_width + 1 + _LEAST_PLOT else 0
        self.width = width - self.left
        if self.left:
            self._draw_y_axis(labels)
        if rows > self._height:
            self._draw_x_axis()

    def draw(self, traces: Sequence[Trace]) -> None:
        """Draw series, those that come later over those before, and the cursor."""
        for index, trace in enumerate(traces):
            if trace.band is not None:
                self._draw_band(index, trace, trace.band)
        self._draw_lines([(trace, trace.raw) for trace in traces if trace.smooth is not None], dim=True)
        self._draw_lines([(trace, trace.main) for trace in traces], dim=False)
        for index, trace in enumerate(traces):
            if trace.series.markers or len(traces) > 1:
                self._draw_markers(trace, marker(index, self._view.ascii))
        self._draw_cursor()

    def _draw_band(self, index: int, trace: Trace, band: tuple[Floats, Floats]) -> None:
        low, high = (self._envelope(trace, bound) for bound in band)
        bits = braille.pack(braille.checkered(self._dots(braille.Envelope(low.low, high.high))))
        points = braille.glyphs(bits)
        if self._view.ascii:
            points = np.full_like(points, ord(_ASCII_FILLS[index % len(_ASCII_FILLS)]))
        self.canvas.paint(self.left, 0, points, bits > 0, self._pen(trace, dim=True))

    def _draw_lines(self, lines: Sequence[tuple[Trace, Floats]], dim: bool) -> None:
        together: Bits = np.zeros((self._height, self.width), dtype=np.uint8)
        for trace, heights in lines:
            bits = braille.pack(self._dots(self._envelope(trace, heights)))
            together |= bits
            points = braille.glyphs(together, self._view.ascii)
            self.canvas.paint(self.left, 0, points, bits > 0, self._pen(trace, dim))

    def _draw_markers(self, trace: Trace, glyph: str) -> None:
        """Mark all points of a sparse series; of a line its last point, and some along its way if colors do not do."""
        steps, heights = trace.series.steps, trace.main
        seen = np.flatnonzero(np.isfinite(heights) & (steps >= self._view.start) & (steps <= self._view.stop))
        columns = self._columns(steps[seen])
        chosen = np.arange(seen.size)
        if not trace.series.markers:
            chosen = chosen[-1:]
            if self._view.marked_lines:
                _, along = np.unique(columns // _MARKER_DISTANCE, return_index=True)
                chosen = np.union1d(chosen, along)
        rows = self._rows(heights[seen[chosen]])
        pen = self._pen(trace, dim=False)
        for column, row in zip(columns[chosen].tolist(), rows.tolist(), strict=True):
            if 0 <= row < self._height:
                self.canvas.write(self.left + int(column), int(row), glyph, pen)

    def _draw_cursor(self) -> None:
        """Draw the cursor line wherever nothing else is."""
        cursor = self._view.cursor
        if cursor is None or not self._view.start <= cursor <= self._view.stop:
            return
        x = self.left + int(self._columns(np.array([float(cursor)]))[0])
        for row in range(self._height):
            if self.canvas.is_blank(x, row, 1):
                self.canvas.write(x, row, "|" if self._view.ascii else "│", self._cursor_pen)

    def _y_labels(self) -> dict[int, str]:
        """Labels of the y axis by row."""
        make_ticks = axes.log_ticks if self._view.log_scale else axes.linear_ticks
        ticks = _at_least_two(lambda n: make_ticks(self._bottom, self._top, n), self._height // _ROWS_PER_Y_LABEL)
        labels = axes.tick_labels(10.0**ticks if self._view.log_scale else ticks)
        rows = self._rows(ticks)
        return {int(row): label for row, label in zip(rows, labels, strict=True) if 0 <= row < self._height}

    def _draw_y_axis(self, labels: dict[int, str]) -> None:
        line, tick = "|+" if self._view.ascii else "│┤"
        for row in range(self._height):
            label = labels.get(row, "")
            self.canvas.write(0, row, f"{label:>{self.left - 1}}{tick if label else line}", self._axis_pen)

    def _draw_x_axis(self) -> None:
        start, stop = self._view.start, self._view.stop
        ticks = _at_least_two(
            lambda n: axes.linear_ticks(start, stop, n, smallest=1.0), self.width // _CELLS_PER_X_LABEL
        )
        columns = self._columns(ticks)
        for column, label in zip(columns.tolist(), axes.tick_labels(ticks), strict=True):
            right_most = self.left + self.width - len(label)
            x = max(0, min(self.left + int(column) - len(label) // 2, right_most))
            if self.canvas.is_blank(x - 1, self._height, len(label) + 2):
                self.canvas.write(x, self._height, label, self._axis_pen)

    def _envelope(self, trace: Trace, heights: Floats) -> braille.Envelope:
        columns = braille.DOTS_ACROSS * self.width
        return braille.decimate(trace.series.steps, heights, columns, self._view.start, self._view.stop)

    def _dots(self, envelope: braille.Envelope) -> Dots:
        return braille.dot_grid(envelope, self._height, self._bottom, self._top)

    def _columns(self, steps: Floats) -> Floats:
        """``(N,)`` columns of the plot at which steps lie."""
        columns = braille.DOTS_ACROSS * self.width
        positions = braille.column_positions(steps, columns, self._view.start, self._view.stop)
        return np.asarray(positions // braille.DOTS_ACROSS)

    def _rows(self, heights: Floats) -> Floats:
        """``(N,)`` rows of the plot at which heights lie."""
        dot_rows = np.rint(braille.dot_rows(heights, self._height, self._bottom, self._top))
        return np.asarray(dot_rows // braille.DOTS_DOWN)

    def _pen(self, trace: Trace, dim: bool) -> int:
        return self.canvas.pen(Style(color=trace.series.color, dim=dim))
