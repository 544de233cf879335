"""Tables of results."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from vlacoach.runs.results import Comparison, EvaluationResult
from vlacoach.runs.statistics import Interval, PairedDifference


def percent(rate: float) -> str:
    """A rate as a percentage, for example ``"43.0"``."""
    return f"{100 * rate:.1f}"


def rate_with_interval(successes: int, episodes: int, interval: Interval) -> str:
    """A success rate with its interval in percent, for example ``"43.0 [36, 50]"``; a dash without episodes."""
    if episodes == 0:
        return "-"
    return f"{percent(successes / episodes)} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def evaluation_table(result: EvaluationResult) -> Table:
    """Success for each task and overall, with Wilson's 95 % intervals and mean episode lengths."""
    sampling = "greedy" if result.temperature == 0 else f"sampled at {result.temperature:g}"
    table = Table(title=f"{result.policy} on {result.suite}, {result.split} states, {sampling}", title_justify="left")
    table.add_column("task", overflow="fold")
    for heading in ("episodes", "success %  [95 %]", "mean length"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task in result.tasks:
        table.add_row(
            f"{task.task}  {task.name}",
            str(task.episodes),
            rate_with_interval(task.successes, task.episodes, task.interval),
            f"{sum(task.lengths) / task.episodes:.0f}" if task.episodes else "-",
        )
    table.add_section()
    steps = sum(sum(task.lengths) for task in result.tasks)
    table.add_row(
        "all",
        str(result.episodes),
        rate_with_interval(result.successes, result.episodes, result.interval),
        f"{steps / result.episodes:.0f}" if result.episodes else "-",
        style="bold",
    )
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Success before and after, with Wilson intervals, the paired difference, and McNemar's p-value overall."""
    before, after = comparison.before, comparison.after
    table = Table(title=f"Success on {after.suite}, {after.split} states (%)", title_justify="left")
    table.add_column("task", overflow="fold")
    for heading in ("episodes", "before [95 %]", "after [95 %]", "change [95 %]"):
        table.add_column(heading, justify="right", no_wrap=True)
    for first, second, difference in zip(before.tasks, after.tasks, comparison.tasks, strict=True):
        table.add_row(
            f"{first.task}  {first.name}",
            str(first.episodes),
            rate_with_interval(first.successes, first.episodes, first.interval),
            rate_with_interval(second.successes, second.episodes, second.interval),
            change(difference),
        )
    table.add_section()
    table.add_row(
        "all",
        str(before.episodes),
        rate_with_interval(before.successes, before.episodes, before.interval),
        rate_with_interval(after.successes, after.episodes, after.interval),
        change(comparison.overall),
        style="bold",
    )
    overall = comparison.overall
    table.caption = (
        "Wilson intervals; change paired by episode\n"
        f"{overall.gained} gained, {overall.lost} lost, McNemar's exact p = {overall.p_value:.2g}"
    )
    table.caption_justify = "left"
    return table


def change(difference: PairedDifference) -> Text:
    """A paired difference in points; green or red where its interval leaves out zero."""
    interval = difference.interval
    text = f"{100 * difference.difference:+.1f} [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}]"
    style = "green" if interval.low > 0 else "red" if interval.high < 0 else ""
    return Text(text, style=style)
