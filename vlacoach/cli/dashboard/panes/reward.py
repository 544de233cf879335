"""Does the reward tell success from failure?"""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from vlacoach.cli.dashboard.bars import histogram
from vlacoach.cli.dashboard.chart import MetricChart
from vlacoach.cli.dashboard.curves import run_series
from vlacoach.cli.dashboard.panes.base import Pane
from vlacoach.cli.dashboard.view import View
from vlacoach.runs import constants as names
from vlacoach.runs.overview import RECENT
from vlacoach.runs.watching import RunWatcher

SCROLLBAR = 2
"""Columns that the scroll bar takes."""


class RewardPane(Pane):
    """Scores of successes against those of failures, and the area under the curve over the updates."""

    DEFAULT_CSS = """
    RewardPane { layout: vertical; }
    RewardPane #reward-text { height: auto; }
    RewardPane MetricChart { height: 1fr; min-height: 6; }
    """

    files: ClassVar[frozenset[str]] = frozenset({names.EPISODES_FILE, names.METRICS_FILE, names.EVENTS_FILE})

    def __init__(self, ascii: bool, id: str) -> None:
        super().__init__(id=id)
        self._ascii = ascii

    def compose(self) -> ComposeResult:
        """The histogram, and two charts."""
        with VerticalScroll(can_focus=False):
            yield Static(id="reward-text")
            yield MetricChart("AUROC of the reward", y_range=(0.0, 1.0), ascii=self._ascii, id="reward-auroc")
            yield MetricChart("reward of failures", ascii=self._ascii, id="reward-failures")

    def show(self, view: View) -> None:
        """Draw everything anew."""
        width = max(20, min(100, self.size.width - SCROLLBAR))
        text = Text("\n").join([*_scorer_check(view.watcher), *_histogram(view.watcher, width, self._ascii)])
        self.query_one("#reward-text", Static).update(text)
        self.query_one("#reward-auroc", MetricChart).set_series(run_series(view, names.REWARD_AUROC))
        self.query_one("#reward-failures", MetricChart).set_series(run_series(view, names.REWARD_FAILURE_MEAN))


def _scorer_check(watcher: RunWatcher) -> list[Text]:
    """What the trainer found when it asked the scorer itself, before the rule puts successes above failures."""
    checks = [event for event in watcher.events if event.get("event") == "scorer"]
    if not checks:
        return []
    check = checks[-1]
    try:
        said = f"{check['auroc']:.2f}, 95 % interval {check['low']:.2f} to {check['high']:.2f}"
    except (KeyError, TypeError, ValueError):
        return []
    return [Text(f"Scorer {check.get('scorer', '?')}: AUROC of success against failure {said}")]


def _histogram(watcher: RunWatcher, width: int, ascii: bool) -> list[Text]:
    newest = watcher.episodes[-1].get(names.STEP, 0) if watcher.episodes else 0
    scores: dict[bool, list[float]] = {True: [], False: []}
    for episode in watcher.episodes:
        value, step = episode.get("reward"), episode.get(names.STEP)
        if isinstance(value, (int, float)) and isinstance(step, int) and step > newest - RECENT:
            if episode.get("valid", True):
                scores[bool(episode.get("success"))].append(float(value))
    if not scores[True] and not scores[False]:
        return [Text("No episodes yet.", style="dim")]
    title = f"Rewards of the last {RECENT} updates: {len(scores[True])} successes, {len(scores[False])} failures"
    return [Text(title), *histogram(scores[True], scores[False], min(40, width - 10), width, 7, ascii)]
