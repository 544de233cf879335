"""Every metric as a chart, in a grid that reflows."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Grid, VerticalScroll
from textual.reactive import reactive
from textual.widgets import Static

from vlacoach.cli.dashboard.chart import MetricChart
from vlacoach.cli.dashboard.curves import run_series
from vlacoach.cli.dashboard.fuzzy import matches
from vlacoach.cli.dashboard.labels import TITLES, title
from vlacoach.cli.dashboard.panes.base import FilterPane
from vlacoach.cli.dashboard.view import View
from vlacoach.runs import constants as names

CHART_WIDTH = 44
"""Columns a chart should have at least, where there are several side by side."""

SMOOTHINGS = (0.0, 0.6, 0.9, 0.97)
IN_UNIT_RANGE = ("success", "clip_fraction", "auroc")


class ChartsPane(FilterPane):
    """A chart a metric; ``/`` chooses among them, ``m`` shows one alone."""

    DEFAULT_CSS = """
    ChartsPane { layout: vertical; }
    ChartsPane Grid { height: auto; grid-gutter: 0 1; grid-rows: 10; }
    ChartsPane MetricChart { height: 100%; }
    ChartsPane.-one Grid { height: 1fr; grid-rows: 1fr; }
    ChartsPane #charts-note { height: auto; color: $text-muted; }
    """

    files: ClassVar[frozenset[str]] = frozenset({names.METRICS_FILE})

    maximized: reactive[str | None] = reactive(None)
    """Metric that is shown alone, or None."""
    smoothing: reactive[float] = reactive(SMOOTHINGS[1])
    log_scale: reactive[bool] = reactive(False)

    def __init__(self, smoothing: float, ascii: bool, id: str) -> None:
        super().__init__(id=id)
        self.set_reactive(ChartsPane.smoothing, smoothing)
        self._ascii = ascii
        self._charts: dict[str, MetricChart] = {}

    def compose(self) -> ComposeResult:
        """The filter, the grid, and a line for when it is empty."""
        yield self.filter_line("parts of names, such as: kl entropy")
        yield Static(id="charts-note")
        with VerticalScroll(can_focus=False):
            yield Grid()

    def show(self, view: View) -> None:
        """Give every chart its data; metrics that are new get a chart."""
        for metric in ordered([*view.watcher.metrics, *(key for other in view.others for key in other.metrics)]):
            if metric not in self._charts:
                self._add(metric)
            self._charts[metric].set_series(run_series(view, metric))
        self.choose()

    def _add(self, metric: str) -> None:
        unit = any(metric.split("/")[1:2] == [part] for part in IN_UNIT_RANGE)
        chart = MetricChart(
            title(metric), y_range=(0.0, 1.0) if unit else None, ascii=self._ascii, name=metric, classes="-chart"
        )
        chart.smoothing, chart.log_scale = self.smoothing, self.log_scale
        self._charts[metric] = chart
        self.query_one(Grid).mount(chart)

    def choose(self) -> None:
        """Show the charts that are wanted."""
        wanted = [metric for metric in self._charts if self._wanted(metric)]
        for metric, chart in self._charts.items():
            chart.display = metric in wanted
        note = "" if wanted else ("No metric is called so." if self._charts else "No metrics yet.")
        self.query_one("#charts-note", Static).update(note)
        self._reflow()

    def _wanted(self, metric: str) -> bool:
        if self.maximized is not None:
            return metric == self.maximized
        if not self.pattern:
            # A suite has up to 90 tasks, and the pane of tasks shows them better.
            return not metric.rpartition("/")[2].isdecimal()
        return matches(self.pattern, f"{metric} {title(metric)}")

    def _reflow(self) -> None:
        columns = 1 if self.maximized is not None else max(1, self.size.width // CHART_WIDTH)
        self.query_one(Grid).styles.grid_size_columns = columns
        self.set_class(self.maximized is not None, "-one")

    def on_resize(self, event: events.Resize) -> None:
        """Put as many charts side by side as there is room for."""
        self._reflow()

    def shown(self) -> None:
        """Give the keys to the first chart."""
        for chart in self.charts():
            if chart.display:
                chart.focus()
                return

    def toggle_maximized(self) -> None:
        """Show the chart that has the focus alone, or all again."""
        chart = self.focused_chart()
        self.maximized = None if self.maximized is not None or chart is None else chart.name
        self.choose()
        if chart is not None:
            chart.focus()

    def focused_chart(self) -> MetricChart | None:
        """The chart that has the focus, else the first on screen."""
        visible = [chart for chart in self.charts() if chart.display]
        return next((chart for chart in visible if chart.has_focus), visible[0] if visible else None)

    def visible_metrics(self) -> list[str]:
        """Metrics whose charts are shown."""
        return [metric for metric, chart in self._charts.items() if chart.display]

    def watch_smoothing(self, smoothing: float) -> None:
        """Hand it on to the charts."""
        for chart in self._charts.values():
            chart.smoothing = smoothing

    def watch_log_scale(self, log_scale: bool) -> None:
        """Hand it on to the charts."""
        for chart in self._charts.values():
            chart.log_scale = log_scale


def ordered(metrics: list[str]) -> list[str]:
    """Metrics that have a title first, in the order of the titles; then the others as they appeared."""
    known = {metric: place for place, metric in enumerate(TITLES)}
    unique = list(dict.fromkeys(metrics))
    return sorted(unique, key=lambda metric: known.get(metric, len(known) + unique.index(metric)))
