"""Is it learning, is it healthy, when does it end."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from vlacoach.cli.dashboard.chart import MetricChart
from vlacoach.cli.dashboard.curves import run_series, success_series
from vlacoach.cli.dashboard.panes.base import ALL_FILES, Pane
from vlacoach.cli.dashboard.summary import overview_text
from vlacoach.cli.dashboard.view import View
from vlacoach.runs import constants as names


class OverviewPane(Pane):
    """Everything at a glance; success and KL as charts where there is room."""

    DEFAULT_CSS = """
    OverviewPane { layout: horizontal; }
    OverviewPane > VerticalScroll { width: 1fr; }
    OverviewPane > #overview-charts { width: 1fr; display: none; }
    OverviewPane MetricChart { height: 1fr; }
    """

    # Every file: the heartbeat moves the bars.
    files: ClassVar[frozenset[str]] = frozenset(
        {
            names.HEARTBEAT_FILE,
            names.METRICS_FILE,
            names.RUN_FILE,
            names.CONFIG_FILE,
            names.SYSTEM_FILE,
            names.ALERTS_FILE,
            "status",
            "problem",
        }
    )

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._lines = -1

    def compose(self) -> ComposeResult:
        """The text, and the charts beside it."""
        with VerticalScroll(id="overview-left"):
            yield Static(id="overview-text")
        with VerticalScroll(id="overview-charts", can_focus=False):
            yield MetricChart("success", y_range=(0.0, 1.0), id="overview-success")
            yield MetricChart("entropy (nats a token)", id="overview-entropy")
            yield MetricChart("KL to the old policy (nats)", id="overview-kl")

    def update_view(self, view: View, changed: frozenset[str]) -> None:
        """Write the text anew, and the charts if there is something new on them: a heartbeat comes twice a second."""
        super().update_view(view, changed)
        if changed & {names.METRICS_FILE, *ALL_FILES}:
            self._draw(view)

    def show(self, view: View) -> None:
        """Write the text anew."""
        text = self.query_one("#overview-text", Static)
        written = overview_text(view.overview, max(1, text.size.width or self.size.width), view.options.ascii)
        lines = written.plain.count("\n")
        # A new layout of the whole screen costs more than the text, and only another number of lines needs one.
        text.update(written, layout=lines != self._lines)
        self._lines = lines

    def _draw(self, view: View) -> None:
        self.query_one("#overview-success", MetricChart).set_series(success_series(view))
        self.query_one("#overview-entropy", MetricChart).set_series(run_series(view, names.TRAIN_ENTROPY))
        self.query_one("#overview-kl", MetricChart).set_series(run_series(view, names.TRAIN_KL))
