"""The screen of panes: reads the run, shows what is new, and does what keys say."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import ContentSwitcher, Footer

from vlacoach.cli.dashboard.chart import MetricChart
from vlacoach.cli.dashboard.chrome import RunLine, Tabs
from vlacoach.cli.dashboard.keys import KEYS, PANE_NAMES
from vlacoach.cli.dashboard.panes.base import ALL_FILES, FilterPane, Pane
from vlacoach.cli.dashboard.panes.charts import SMOOTHINGS, ChartsPane
from vlacoach.cli.dashboard.panes.config import ConfigPane
from vlacoach.cli.dashboard.panes.episodes import EpisodesPane
from vlacoach.cli.dashboard.panes.log import LogPane
from vlacoach.cli.dashboard.panes.overview import OverviewPane
from vlacoach.cli.dashboard.panes.reward import RewardPane
from vlacoach.cli.dashboard.panes.robot import RobotPane
from vlacoach.cli.dashboard.panes.system import SystemPane
from vlacoach.cli.dashboard.panes.tasks import TasksPane
from vlacoach.cli.dashboard.screens import ConfirmScreen, EpisodeScreen, HelpScreen, RunsScreen, bindings
from vlacoach.cli.dashboard.settings import DashboardSettings
from vlacoach.cli.dashboard.view import View
from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.control import Wish, ask
from vlacoach.runs.files import replace_text
from vlacoach.runs.overview import ACTIVE


class SettingsChanged(Message):
    """Something that is kept between starts has changed.

    Attributes:
        changes: Setting to value.
    """

    def __init__(self, **changes: Any) -> None:
        self.changes = changes
        super().__init__()


class Polled(Message):
    """The files have been read.

    Attributes:
        changed: Files that have changed.
    """

    def __init__(self, changed: frozenset[str]) -> None:
        self.changed = changed
        super().__init__()


class MainScreen(Screen[None]):
    """The run's line, the tabs, the panes, and the keys.

    Args:
        view: The runs on screen.
        settings: What is kept between starts.
    """

    BINDINGS: ClassVar[list[BindingType]] = bindings(KEYS)
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - an instance variable in Textual
    DEFAULT_CSS = """
    MainScreen { overflow: hidden; }
    MainScreen ContentSwitcher { height: 1fr; }
    MainScreen.-wide #overview-charts { display: block; }
    MainScreen.-wide OverviewPane > #overview-left { width: 76; }
    """

    def __init__(self, view: View, settings: DashboardSettings) -> None:
        super().__init__()
        self.view = view
        self._settings = settings
        self._polling = False
        self._alerts_seen: int | None = None

    def compose(self) -> ComposeResult:
        """Everything on the screen."""
        ascii = self.view.options.ascii
        yield RunLine()
        yield Tabs()
        with ContentSwitcher(initial=PANE_NAMES[0][0]):
            yield OverviewPane(id="overview")
            yield ChartsPane(self._settings.smoothing, ascii, id="charts")
            yield TasksPane(id="tasks")
            yield EpisodesPane(id="episodes")
            yield RobotPane(ascii, id="robot")
            yield RewardPane(ascii, id="reward")
            yield LogPane(id="log")
            yield ConfigPane(id="config")
            yield SystemPane(ascii, id="system")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to follow the run."""
        self.query_one(RunLine).ascii = self.view.options.ascii
        for chart in self.query(MetricChart):
            chart.ascii = self.view.options.ascii
        self.poll()
        self.set_interval(self.view.options.poll_seconds, self.poll)

    # Reading

    def poll(self) -> None:
        """Look for news, unless the last look is still under way (a slow disk)."""
        if not self._polling:
            self._polling = True
            self._read()

    @work(thread=True, group="poll", exit_on_error=True)
    def _read(self) -> None:
        changed = self.view.poll()
        self.post_message(Polled(changed))

    def on_polled(self, message: Polled) -> None:
        """Show the news on the pane that is on screen."""
        self._polling = False
        if message.changed:
            self.query_one(RunLine).view = self.view.overview
            self._update_pane(message.changed)
            self._announce_alerts()

    def _update_pane(self, changed: frozenset[str]) -> None:
        with self.view.lock:
            self.pane.update_view(self.view, changed)

    def _announce_alerts(self) -> None:
        alerts = self.view.overview.alerts
        # Those of the time before we came are on the overview; a toast is for news.
        fresh = [] if self._alerts_seen is None else alerts[self._alerts_seen :]
        self._alerts_seen = len(alerts)
        for alert in fresh:
            grave = alert.get("level") == "error"
            self.notify(str(alert.get("message", "")), severity="error" if grave else "warning", markup=False)
            if grave:
                self.app.bell()

    # Panes

    @property
    def pane(self) -> Pane:
        """The pane on screen."""
        switcher = self.query_one(ContentSwitcher)
        return self.query_one(f"#{switcher.current}", Pane)

    def action_pane(self, name: str) -> None:
        """Show a pane."""
        if name == self.pane.id:
            return
        self.pane.hidden()
        self.query_one(ContentSwitcher).current = name
        self.query_one(Tabs).active = name
        self.set_focus(None)
        # After the layout: a pane that has never been on screen does not know its size.
        self.call_after_refresh(self._arrive)

    def _arrive(self) -> None:
        self._update_pane(ALL_FILES)
        self.pane.shown()
        self.refresh_bindings()

    @on(Tabs.Chosen)
    def _tab_chosen(self, message: Tabs.Chosen) -> None:
        self.action_pane(message.pane)

    def action_next_pane(self, by: int) -> None:
        """Show the next pane, or the one before."""
        order = [name for name, _ in PANE_NAMES]
        self.action_pane(order[(order.index(str(self.pane.id)) + by) % len(order)])

    def on_resize(self) -> None:
        """Write the pane anew: text is cut to its width."""
        if self.is_mounted:
            self.call_after_refresh(self._update_pane, ALL_FILES)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Which keys work now: those of the pane, and those to the run while it is at work."""
        for key in KEYS:
            if key.action.partition("(")[0] == action and key.panes and self.is_mounted:
                return str(self.pane.id) in key.panes
        if action in ("pause", "ask", "stop"):
            return False if self.view.options.readonly else self.view.watcher.status in ACTIVE or None
        return True

    # What keys do, in general

    def action_help(self) -> None:
        """Show the help screen."""
        self.app.push_screen(HelpScreen(self._settings.keys))

    def action_quit(self) -> None:
        """Leave."""
        self.pane.hidden()
        self.app.exit()

    def action_next_theme(self) -> None:
        """Take the next theme."""
        themes = sorted(self.app.available_themes)
        self.app.theme = themes[(themes.index(self.app.theme) + 1) % len(themes)]
        self.notify(f"Theme {self.app.theme}", timeout=1.5)

    def action_screenshot(self) -> None:
        """Save the screen as SVG in the working directory."""
        file = Path(f"vlacoach_{self.pane.id}_{datetime.now():%Y%m%d_%H%M%S}.svg")
        self._save(file, self.app.export_screenshot(title=f"vlacoach watch: {self.view.overview.run}"))

    def action_export(self) -> None:
        """Save the metrics of the charts on screen as CSV in the working directory."""
        charts = [chart for chart in self.pane.charts() if chart.display and chart.series]
        if not charts:
            self.notify("There are no charts on screen to save.", severity="warning")
            return
        file = Path(f"vlacoach_{self.pane.id}_{datetime.now():%Y%m%d_%H%M%S}.csv")
        self._save(file, charts_csv(charts))

    def _save(self, file: Path, text: str) -> None:
        try:
            replace_text(file, text, sync=False)
        except RunError as error:
            self.notify(str(error), severity="error", markup=False)
        else:
            self.notify(f"Saved {file}", markup=False)

    @work
    async def action_runs(self) -> None:
        """Choose what to watch."""
        view = self.view
        others = [watcher.path for watcher in view.others]
        chosen = await self.app.push_screen_wait(RunsScreen(view.candidates(), view.watcher.path, others))
        if chosen is not None:
            self.pane.hidden()
            view.select(*chosen)
            self._alerts_seen = None
            self.pane.shown()
            self._polled_anew()

    def _polled_anew(self) -> None:
        self.view.poll()
        self.on_polled(Polled(ALL_FILES))

    # What keys ask of the run

    def action_pause(self) -> None:
        """Let the run wait, or go on."""
        paused = self.view.watcher.status == names.STATUS_PAUSED
        self._ask("resume" if paused else "pause", "The run will go on." if paused else "The run will wait.")

    def action_ask(self, wish: Wish) -> None:
        """Ask for something at the end of this update."""
        self._ask(wish, f"After this update the run will {wish}.")

    @work
    async def action_stop(self) -> None:
        """End the run after this update, if that is meant."""
        if await self.app.push_screen_wait(ConfirmScreen("End the run after this update, with a checkpoint?")):
            self._ask("stop", "The run will end after this update.")

    def _ask(self, wish: Wish, said: str) -> None:
        try:
            ask(self.view.watcher.path, wish)
        except RunError as error:
            self.notify(f"{error.message} {error.hint or ''}", severity="error", markup=False)
        else:
            self.notify(said)

    # What keys do in charts and lists

    def _charts(self) -> list[MetricChart]:
        return self.pane.charts()

    def action_zoom(self, factor: float) -> None:
        """Look closer, or less close, at all charts."""
        for chart in self._charts():
            chart.zoom(factor)

    def action_pan(self, fraction: float) -> None:
        """Move all charts."""
        for chart in self._charts():
            chart.pan(fraction)

    def action_reset_view(self) -> None:
        """Show all updates."""
        for chart in self._charts():
            chart.cursor = None
            chart.reset_view()

    def action_cursor(self, by: int) -> None:
        """Move the reading line of all charts to the next point of the one that has the focus."""
        charts = [chart for chart in self._charts() if chart.display and chart.series]
        if not charts:
            return
        leader = next((chart for chart in charts if chart.has_focus), charts[0])
        steps = sorted({round(float(step)) for series in leader.series for step in series.steps})
        if leader.cursor is None:
            step = steps[-1]
        else:
            later = [step for step in steps if step > leader.cursor]
            earlier = [step for step in steps if step < leader.cursor]
            step = (later or steps)[0 if later else -1] if by > 0 else (earlier or steps)[-1 if earlier else 0]
        for chart in charts:
            chart.cursor = step

    def action_maximize_chart(self) -> None:
        """Show one chart alone, or all."""
        self.query_one(ChartsPane).toggle_maximized()

    def action_log_scale(self) -> None:
        """Draw logarithms, or not."""
        pane = self.query_one(ChartsPane)
        pane.log_scale = not pane.log_scale

    def action_smoothing(self) -> None:
        """Take the next amount of smoothing."""
        pane = self.query_one(ChartsPane)
        later = [amount for amount in SMOOTHINGS if amount > pane.smoothing]
        pane.smoothing = later[0] if later else SMOOTHINGS[0]
        self.notify(f"Smoothing {pane.smoothing:g}", timeout=1.5)
        self.post_message(SettingsChanged(smoothing=pane.smoothing))

    def action_filter(self) -> None:
        """Type what to show."""
        if isinstance(self.pane, FilterPane):
            self.pane.start_filter()

    def action_sort(self) -> None:
        """Sort by the next column."""
        self.query_one(EpisodesPane).next_sort()

    def action_level(self) -> None:
        """Show graver messages only."""
        self.query_one(LogPane).next_level()

    def action_follow(self) -> None:
        """Follow the log, or not."""
        self.query_one(LogPane).toggle_follow()

    @work
    async def action_difference(self) -> None:
        """Compare the configuration with another run's, or stop comparing."""
        pane, current = self.query_one(ConfigPane), self.view.watcher.path
        if pane.comparing:
            pane.compare(None)
            return
        runs = [path for path in self.view.candidates() if path.resolve() != current.resolve()]
        if not runs:
            self.notify("There is no other run to compare with.", severity="warning")
            return
        chosen = await self.app.push_screen_wait(RunsScreen(runs, current, [], single=True))
        if chosen is not None:
            pane.compare(chosen[0])

    @on(EpisodesPane.Opened)
    def _open(self, message: EpisodesPane.Opened) -> None:
        labels = self.view.watcher.info.get("tasks")
        label = labels.get(str(message.episode.get("task")), "") if isinstance(labels, dict) else ""
        folder, ascii = self.view.watcher.path, self.view.options.ascii
        self.app.push_screen(EpisodeScreen(folder, message.episode, label, ascii))


def charts_csv(charts: Iterable[MetricChart]) -> str:
    """Points of charts as CSV: chart, series, step, value; a gap is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "series", "step", "value"])
    for chart in charts:
        for series in chart.series:
            for step, value in zip(series.steps, series.values, strict=True):
                writer.writerow(
                    [chart.name or chart.title, series.name, f"{step:g}", "" if value != value else repr(float(value))]
                )
    return text.getvalue()
