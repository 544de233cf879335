"""The chart widget: curves in braille with axes, zoom, smoothing, and a cursor that reads values out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from textual import events
from textual.geometry import Size
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from vlacoach.cli.dashboard.drawing import Drawing, draw_chart
from vlacoach.cli.dashboard.plot import ChartStyles, ChartView
from vlacoach.cli.dashboard.series import ChartSeries, Trace, trace

_WHEEL_FACTOR = 1.25
_LARGEST_SMOOTHING = 0.999
_CLOSEST_VIEW = 1.0  # Steps from one end of the view to the other: steps are whole numbers.
_FEW_COLORS = (None, "standard", "windows")


class MetricChart(Widget, can_focus=True):
    """Curves of metrics over steps.

    Keys belong to the app, which calls :meth:`zoom`, :meth:`pan`, and :meth:`reset_view` and sets the attributes. The
    mouse moves the cursor, its wheel zooms around it. It draws anew only when data, size, style, or view change.

    Args:
        title: Title of the chart.
        y_range: Fixed ends of the y axis, for example ``(0, 1)``; a logarithmic axis passes over it.
        ascii: Draw with ASCII characters only.
        name: Name of the widget.
        id: Id of the widget.
        classes: CSS classes of the widget.
    """

    ALLOW_SELECT = False

    COMPONENT_CLASSES: ClassVar[set[str]] = {"metric-chart--title", "metric-chart--axis", "metric-chart--cursor"}
    """The title, the axes with labels and remarks, and the cursor line with its step."""

    DEFAULT_CSS = """
    MetricChart {
        min-width: 8;
        min-height: 3;
        &> .metric-chart--title { text-style: bold; }
        &> .metric-chart--axis { color: $text-muted; }
        &> .metric-chart--cursor { color: $text-accent; text-style: bold; }
        &:focus > .metric-chart--title { text-style: bold reverse; }
    }
    """

    title: reactive[str] = reactive("")
    """Title of the chart."""
    smoothing: reactive[float] = reactive(0.0)
    """Weight of the past in the moving average, in [0, 1); 0 draws the values alone."""
    log_scale: reactive[bool] = reactive(False)
    """Whether the y axis is logarithmic; values at or below zero are gaps then."""
    cursor: reactive[int | None] = reactive(None)
    """Step whose values the title row reads out; the latest ones if None."""
    y_range: reactive[tuple[float, float] | None] = reactive(None)
    """Fixed ends of the y axis, or None to fit it to what is visible."""
    ascii: reactive[bool] = reactive(False)
    """Whether to draw with ASCII characters only."""

    def __init__(
        self,
        title: str,
        *,
        y_range: tuple[float, float] | None = None,
        ascii: bool = False,
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes)
        self.set_reactive(MetricChart.title, title)
        self.set_reactive(MetricChart.y_range, self.validate_y_range(y_range))
        self.set_reactive(MetricChart.ascii, ascii)
        self._series: list[ChartSeries] = []
        self._traces: list[Trace] = []
        self._traced: tuple[float, bool] | None = None
        self._zoomed: tuple[float, float] | None = None
        self._drawing: Drawing | None = None
        self._drawn: tuple[Size, float, ChartView] | None = None

    @property
    def series(self) -> Sequence[ChartSeries]:
        """The series shown."""
        return self._series

    @property
    def view(self) -> tuple[float, float]:
        """First and last step shown."""
        return self._zoomed if self._zoomed is not None else self._extent()

    def set_series(self, series: Sequence[ChartSeries]) -> None:
        """Show other data; a zoomed view stays where it is, or goes along with the latest step if it ended there."""
        _, old_stop = self._extent()
        self._series = list(series)
        self._traced = None
        if self._zoomed is not None:
            shift = self._extent()[1] - old_stop if self._zoomed[1] >= old_stop else 0.0
            self._show(self._zoomed[0] + shift, self._zoomed[1] + shift)
        self._drawing = None
        self.refresh()

    def zoom(self, factor: float) -> None:
        """Show fewer steps (a factor above 1) or more, around the cursor if it is in view, else around the middle.

        Args:
            factor: How many times closer to look, above 0.

        Raises:
            ValueError: The factor is not above 0.
        """
        if not factor > 0:
            raise ValueError(f"a zoom factor must be above 0, not {factor}")
        start, stop = self.view
        center = (start + stop) / 2
        if self.cursor is not None and start <= self.cursor <= stop:
            center = float(self.cursor)
        span = max((stop - start) / factor, min(_CLOSEST_VIEW, stop - start))
        share = (center - start) / (stop - start)
        self._show(center - share * span, center + (1 - share) * span)

    def pan(self, fraction: float) -> None:
        """Move the view to later steps (above 0) or earlier ones, at most to the end of the data.

        Args:
            fraction: How far, in widths of the view.
        """
        start, stop = self.view
        self._show(start + fraction * (stop - start), stop + fraction * (stop - start))

    def reset_view(self) -> None:
        """Show all steps again, and those to come."""
        self._zoomed = None
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """A row of the chart, drawn anew only after a change."""
        key = (self.size, self.smoothing, self._chart_view())
        if self._drawing is None or key != self._drawn:
            self._drawing, self._drawn = self._draw(*key), key
        strips = self._drawing.strips
        return strips[y] if y < len(strips) else Strip.blank(self.size.width, self.visual_style.rich_style)

    def notify_style_update(self) -> None:
        """Draw anew after a change of theme, classes, or focus."""
        super().notify_style_update()
        self._drawing = None

    def validate_smoothing(self, smoothing: float) -> float:
        """Keep the weight of the past within [0, 0.999]."""
        return min(max(smoothing, 0.0), _LARGEST_SMOOTHING)

    def validate_y_range(self, y_range: tuple[float, float] | None) -> tuple[float, float] | None:
        """Refuse a range without extent.

        Raises:
            ValueError: The range does not go up, or an end is not finite.
        """
        if y_range is not None and not (math.isfinite(y_range[1] - y_range[0]) and y_range[0] < y_range[1]):
            raise ValueError(f"a y range must go up between finite ends, not {y_range}")
        return y_range

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Put the cursor on the step of the data nearest to the mouse."""
        offset = event.get_content_offset(self)
        if offset is None or self._drawing is None or not any(series.steps.size for series in self._series):
            return
        step = self._drawing.step_at(offset.x, self._chart_view())
        steps = np.concatenate([series.steps for series in self._series])
        self.cursor = round(float(steps[np.argmin(np.abs(steps - step))]))

    def on_leave(self) -> None:
        """Read out the latest values again."""
        self.cursor = None

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Zoom in."""
        event.stop()
        self.zoom(_WHEEL_FACTOR)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Zoom out."""
        event.stop()
        self.zoom(1 / _WHEEL_FACTOR)

    def _extent(self) -> tuple[float, float]:
        """First and last step of the data, always apart."""
        ends = [(series.steps[0], series.steps[-1]) for series in self._series if series.steps.size]
        if not ends:
            return 0.0, 1.0
        start, stop = float(min(first for first, _ in ends)), float(max(last for _, last in ends))
        margin = max(_CLOSEST_VIEW, 1e-9 * abs(start))
        return (start, stop) if stop > start else (start - margin, stop + margin)

    def _show(self, start: float, stop: float) -> None:
        """Set the view, moved and cut so that it stays within the data."""
        first, last = self._extent()
        if stop - start >= last - first:
            self.reset_view()
            return
        shift = max(first - start, 0.0) + min(last - stop, 0.0)
        self._zoomed = (max(start + shift, first), min(stop + shift, last))
        self.refresh()

    def _chart_view(self) -> ChartView:
        start, stop = self.view
        few_colors = self.app.no_color or self.app.console.color_system in _FEW_COLORS
        return ChartView(
            title=self.title,
            start=start,
            stop=stop,
            log_scale=self.log_scale,
            y_range=self.y_range,
            cursor=self.cursor,
            ascii=self.ascii,
            marked_lines=few_colors,
        )

    def _draw(self, size: Size, smoothing: float, view: ChartView) -> Drawing:
        if self._traced != (smoothing, view.log_scale):
            self._traced = smoothing, view.log_scale
            self._traces = [trace(series, smoothing, view.log_scale) for series in self._series]
        styles = ChartStyles(
            base=self.visual_style.rich_style,
            title=self.get_component_rich_style("metric-chart--title"),
            axis=self.get_component_rich_style("metric-chart--axis"),
            cursor=self.get_component_rich_style("metric-chart--cursor"),
        )
        return draw_chart(self._traces, view, styles, max(size.width, 1), max(size.height, 1))
