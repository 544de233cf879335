"""Progress on standard error: a live display in a terminal, plain lines elsewhere, nothing with ``-q``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as RemainingColumn
from rich.text import Text

from vlacoach.runs import constants as names
from vlacoach.runs.formatting import format_seconds, format_value
from vlacoach.runs.reporting import Level, NullReporter, Reporter

LINE_SECONDS = 5.0
"""Time between two plain lines within a stage."""

_SHOWN = (
    (names.ROLLOUT_SUCCESS, "success"),
    (names.EVAL_SUCCESS, "held-out"),
    (names.REWARD_MEAN, "reward"),
    (names.ROLLOUT_GROUPS_KEPT, "groups kept"),
    (names.TRAIN_LOSS, "loss"),
    (names.TRAIN_KL, "KL"),
    (names.TRAIN_ENTROPY, "entropy"),
    (names.TRAIN_GRADIENT_NORM, "gradient"),
)
_STYLES: dict[Level, str] = {"info": "", "warning": "yellow", "error": "bold red"}


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """The metrics worth a glance on one line; where none is known, the first few as they are."""
    known = [f"{label} {format_value(metrics[key])}" for key, label in _SHOWN if key in metrics]
    others = [f"{key} {format_value(value)}" for key, value in list(metrics.items())[:6]]
    return "  ".join(known or others)


class _Course:
    """How far the whole run is and when it may end, judged by the parts done while we watched."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begin = clock()
        self._first: int | None = None
        self.done: int | None = None
        self.total: int | None = None
        self.metrics = ""

    def update(self, metrics: Mapping[str, Any], done: int | None, total: int | None) -> None:
        if metrics:
            self.metrics = format_metrics(metrics)
        if done is not None:
            if self._first is None:
                # A resumed run starts with parts done that took none of our time. A report of "nothing done yet"
                # starts the clock; any other first report closes the first part.
                self._first = done if done == 0 else done - 1
            if done == self._first:
                self._begin = self._clock()
            self.done = done
        self.total = total if total is not None else self.total

    def describe(self) -> str:
        if self.done is None:
            return ""
        text = f"update {self.done}" + (f"/{self.total}" if self.total else "")
        finished = self.done - (self._first or 0)
        if self.total and finished > 0 and self.done < self.total:
            remaining = (self._clock() - self._begin) / finished * (self.total - self.done)
            text += f"  {format_seconds(remaining)} left"
        return text


class LiveReporter:
    """A display that is redrawn in place: the run, the stage with its bar, the last metrics.

    Args:
        console: A console on a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._course = _Course(time.monotonic)
        self._progress = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            RemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=4, transient=True)

    def _draw(self) -> Group:
        course = self._course.describe()
        lines = [Text(line, style=style) for line, style in ((course, "bold"), (self._course.metrics, "dim")) if line]
        return Group(*lines, self._progress)

    def __enter__(self) -> LiveReporter:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """Show a new stage with an empty bar."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total, note="")

    def advance(self, amount: int = 1, **fields: Any) -> None:
        """Move the bar on."""
        if self._task is None:
            self.stage("working")
        if self._task is not None:
            note = "  ".join(f"{name} {format_value(value)}" for name, value in fields.items())
            self._progress.advance(self._task, amount)
            if note:
                self._progress.update(self._task, note=note)

    def update(self, metrics: Mapping[str, float], done: int | None = None, total: int | None = None) -> None:
        """Show how far the run is and its last metrics."""
        self._course.update(metrics, done, total)

    def message(self, text: str, level: Level = "info") -> None:
        """Print a line above the display."""
        self._live.console.print(Text(text, style=_STYLES[level]))


class LineReporter:
    """Plain lines, at most one every few seconds within a stage, for logs and pipes.

    Args:
        console: Where the lines go.
        clock: Seconds that only rise.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._course = _Course(clock)
        self._stage = "working"
        self._total: int | None = None
        self._done = 0
        self._last_line = clock()

    def __enter__(self) -> LineReporter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _print(self, text: str, style: str = "") -> None:
        self._last_line = self._clock()
        self._console.print(Text(text, style=style), soft_wrap=True)

    def stage(self, name: str, total: int | None = None) -> None:
        """Remember the stage; its first line comes with its progress."""
        self._stage, self._total, self._done = name, total, 0

    def advance(self, amount: int = 1, **fields: Any) -> None:
        """Print a line if the last one is some seconds old."""
        self._done += amount
        if self._clock() - self._last_line < LINE_SECONDS:
            return
        done = f"{self._done}/{self._total}" if self._total else str(self._done)
        notes = "".join(f"  {name} {format_value(value)}" for name, value in fields.items())
        course = self._course.describe()
        self._print(f"{course + '  ' if course else ''}{self._stage} {done}{notes}")

    def update(self, metrics: Mapping[str, float], done: int | None = None, total: int | None = None) -> None:
        """Print the metrics."""
        self._course.update(metrics, done, total)
        if line := "  ".join(part for part in (self._course.describe(), format_metrics(metrics)) if part):
            self._print(line)

    def message(self, text: str, level: Level = "info") -> None:
        """Print the line."""
        self._print(text, _STYLES[level])


@contextmanager
def reporting(console: Console, quiet: bool = False) -> Iterator[Reporter]:
    """The reporter that suits the console.

    Args:
        console: Where progress goes; usually standard error.
        quiet: Show nothing at all.
    """
    if quiet:
        yield NullReporter()
    elif console.is_terminal and not console.is_dumb_terminal:
        with LiveReporter(console) as live:
            yield live
    else:
        with LineReporter(console) as lines:
            yield lines
