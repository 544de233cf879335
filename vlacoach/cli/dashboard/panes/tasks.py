"""Which tasks does it solve, and which does it not."""

from __future__ import annotations

import math
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from vlacoach.cli.dashboard.bars import interval_bar, sparkline
from vlacoach.cli.dashboard.panes.base import Pane
from vlacoach.cli.dashboard.view import View
from vlacoach.runs import constants as names
from vlacoach.runs.formatting import format_percent
from vlacoach.runs.overview import RECENT, TaskSuccess, tasks
from vlacoach.runs.statistics import rate_with_interval


class TasksPane(Pane):
    """Success of each task over the newest updates, the worst first."""

    DEFAULT_CSS = "TasksPane VerticalScroll { height: 1fr; }"

    files: ClassVar[frozenset[str]] = frozenset({names.METRICS_FILE, names.EPISODES_FILE, names.RUN_FILE})

    def compose(self) -> ComposeResult:
        """The table."""
        with VerticalScroll():
            yield Static(id="tasks-text")

    def show(self, view: View) -> None:
        """Write it anew."""
        found = tasks(view.watcher)
        labels = view.watcher.info.get("tasks")
        text = tasks_text(found, labels if isinstance(labels, dict) else {}, self.size.width, view.options.ascii)
        self.query_one("#tasks-text", Static).update(text)


def tasks_text(found: list[TaskSuccess], labels: dict[str, str], width: int, ascii: bool = False) -> Text:
    """One line a task where there is room for its instruction beside the figures, else two.

    Args:
        found: Tasks, the worst first.
        labels: Index of a task, as text, to its instruction.
        width: Columns.
        ascii: Draw with ASCII characters alone.
    """
    if not found:
        return Text("No update is done yet.", style="dim")
    one_line = width >= 110
    room = max(10, width - 46)
    bar, spark = (24, 20) if one_line else (room * 5 // 9, room * 4 // 9)
    heading = Text(f"Success of the last {RECENT} updates in %, worst first; trend against the {RECENT} before", "dim")
    heading.truncate(max(width, 1))
    lines = [heading]
    for task in found:
        name = f"{task.task:>3}  {labels.get(str(task.task), '')}"
        figures = Text.assemble(
            interval_bar(
                0.0 if math.isnan(task.rate) else task.rate, task.interval.low, task.interval.high, bar, ascii
            ),
            f" {rate_with_interval(task.successes, task.episodes, task.interval):<16}",
            sparkline([rate for _, rate in task.rates][-spark * 2 :], spark, ascii),
            " ",
            _trend(task.trend),
            "" if task.held_out is None else f"  held-out {format_percent(task.held_out)}",
        )
        if one_line:
            title = Text(name)
            title.truncate(width - figures.cell_len - 1, pad=True)
            lines.append(Text.assemble(title, " ", figures))
        else:
            title = Text(name, style="bold")
            title.truncate(width)
            lines += [title, Text.assemble("     ", figures)]
    for line in lines:
        line.truncate(max(width, 1))
    return Text("\n").join(lines)


def _trend(trend: float | None) -> Text:
    if trend is None:
        return Text(f"{'':6}")
    style = "green" if trend > 0.02 else "red" if trend < -0.02 else ""
    return Text(f"{100 * trend:+6.1f}", style=style)
