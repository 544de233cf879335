"""A chart as strips: title with read-outs, legend, axes, bands, lines, markers, cursor. Pure, without an app."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.style import Style
from textual.strip import Strip

from vlacoach.cli.dashboard import axes, braille
from vlacoach.cli.dashboard.braille import Floats
from vlacoach.cli.dashboard.canvas import text_row
from vlacoach.cli.dashboard.plot import ChartStyles, ChartView, Plot
from vlacoach.cli.dashboard.series import Trace, marker

_LEAST_TITLE = 8  # Cells of the title that figures do not take.


@dataclass(frozen=True)
class Drawing:
    """A drawn chart.

    Attributes:
        strips: One for each row, all of the same width.
        left: Column at which the plot begins.
        width: Cells of the plot, at least 1.
    """

    strips: list[Strip]
    left: int
    width: int

    def step_at(self, x: int, view: ChartView) -> float:
        """The step in the middle of a column of the chart; of the nearest one of the plot if it lies beside it."""
        column = min(max(x - self.left, 0), self.width - 1)
        return braille.step_at(2.0 * column + 1, 2 * self.width, view.start, view.stop)


def draw_chart(traces: Sequence[Trace], view: ChartView, styles: ChartStyles, width: int, height: int) -> Drawing:
    """Draw a chart.

    Args:
        traces: Its series, drawn one over the other.
        view: What to show.
        styles: How it looks.
        width: Cells across, at least 1.
        height: Rows, at least 1. Fewer than six leave out the legend, fewer than four the x axis.
    """
    heads = [_title_row(traces, view, styles, width)]
    if len(traces) > 1 and height >= 6:
        heads.append(_legend_row(traces, view, styles, width))
    rows = height - len(heads)
    if rows < 1:
        return Drawing(heads[:height], 0, width)
    extent = _extent(traces, view)
    if extent is None:
        notes = [text_row([], width, styles.base)] * rows
        notes[(rows - 1) // 2] = _note_row(traces, view, styles, width)
        return Drawing(heads + notes, 0, width)
    plot = Plot(view, styles, width, rows, extent)
    plot.draw(traces)
    return Drawing(heads + plot.canvas.strips(), plot.left, plot.width)


def _title_row(traces: Sequence[Trace], view: ChartView, styles: ChartStyles, width: int) -> Strip:
    parts: list[tuple[str, Style]] = []
    if view.cursor is not None:
        parts.append((f"  step {view.cursor}", styles.cursor))
    for index, trace in enumerate(traces):
        if trace.series.steps.size:
            glyph = f"{marker(index, view.ascii)} " if len(traces) > 1 else ""
            parts.append((f"  {glyph}{_read_out(trace, view.cursor)}", Style(color=trace.series.color)))
    gaps = sum(trace.gaps for trace in traces)
    if gaps:
        parts.append((f"  {axes.gap_count(gaps)}", styles.axis))
    # The title gives way to the figures, down to a few letters.
    wanted, rest = cell_len(view.title), sum(cell_len(text) for text, _ in parts)
    title = set_cell_size(view.title, max(min(wanted, _LEAST_TITLE), min(wanted, width - rest)))
    return text_row([(title, styles.title), *parts], width, styles.base)


def _read_out(trace: Trace, cursor: int | None) -> str:
    """Value at the cursor, or the latest; behind it the moving average."""
    index = trace.series.steps.size - 1 if cursor is None else trace.series.index_at(cursor)
    if index is None:
        return "-"
    value = axes.compact_number(float(trace.series.values[index]))
    if trace.smoothed is None:
        return value
    return f"{value} ~{axes.compact_number(float(trace.smoothed[index]))}"


def _legend_row(traces: Sequence[Trace], view: ChartView, styles: ChartStyles, width: int) -> Strip:
    parts = [
        (f"{marker(index, view.ascii)} {trace.series.name}  ", Style(color=trace.series.color))
        for index, trace in enumerate(traces)
    ]
    return text_row(parts, width, styles.base)


def _note_row(traces: Sequence[Trace], view: ChartView, styles: ChartStyles, width: int) -> Strip:
    note = "no data yet"
    if any(trace.gaps for trace in traces):
        note = "no values above 0" if view.log_scale else "no finite values"
    return text_row([(note.center(width), styles.axis)], width, styles.base)


def _extent(traces: Sequence[Trace], view: ChartView) -> tuple[float, float] | None:
    """Heights of the lowest and highest row of dots; None if no trace has anything to draw."""
    if not any(np.any(np.isfinite(trace.main)) for trace in traces):
        return None
    if view.y_range is not None and not view.log_scale:
        return view.y_range
    visible = [_visible(trace.series.steps, heights, view) for trace in traces for heights in (trace.raw, trace.main)]
    finite = np.concatenate(visible)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(np.min(finite)), float(np.max(finite))
    if view.log_scale:
        return (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)
    return axes.spread_range(low, high)


def _visible(steps: Floats, heights: Floats, view: ChartView) -> Floats:
    """Heights within the view, or next to it where only a line between two points crosses it."""
    first = int(np.searchsorted(steps, view.start, side="left"))
    last = int(np.searchsorted(steps, view.stop, side="right"))
    inside = heights[first:last]
    return inside if np.any(np.isfinite(inside)) else heights[max(0, first - 1) : last + 1]
