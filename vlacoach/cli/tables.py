"""Tables of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vlacoach.runs.protocols import PROTOCOLS, differences
from vlacoach.runs.results import Comparison, EvaluationResult, Result
from vlacoach.runs.robustness import PLAIN, AxisComparison, AxisTable
from vlacoach.runs.statistics import PairedDifference, change_with_interval, rate_with_interval

if TYPE_CHECKING:
    from vlacoach.agents.reward_lab import EpisodeScore
    from vlacoach.data.rollouts import RecordedEpisode
    from vlacoach.rewards.bench import ScorerReport
    from vlacoach.rewards.metrics import Estimate


def result_table(result: Result) -> Table:
    """The table of whatever an evaluation found."""
    if isinstance(result, AxisComparison):
        return axis_comparison_table(result)
    if isinstance(result, AxisTable):
        return axis_table(result)
    if isinstance(result, Comparison):
        return comparison_table(result)
    if isinstance(result, EvaluationResult):
        return evaluation_table(result)
    raise TypeError(f"there is no table of a {type(result).__name__}")


def evaluation_table(result: EvaluationResult) -> Table:
    """Success for each task and overall, with Wilson's 95 % intervals and mean episode lengths."""
    table = Table(title=_conditions(result, *result.perturbations), title_justify="left")
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
    if result.repeated:
        table.caption = _clustered(result)
        table.caption_justify = "left"
    return table


def _conditions(result: EvaluationResult, *perturbations: str) -> str:
    """Who acted, where, and how."""
    protocol = [] if result.protocol is None else [f"protocol {result.protocol}"]
    sampling = "greedy" if result.temperature == 0 else f"sampled at {result.temperature:g}"
    conditions = [f"{result.policy} on {result.suite}", f"{result.split} states", *protocol, *perturbations, sampling]
    return ", ".join(conditions)


def _clustered(result: EvaluationResult) -> str:
    """What becomes of the interval of all episodes if those of one initial state count as one draw."""
    interval = result.clustered_interval
    seeds = f"seeds {', '.join(map(str, result.seeds))}; " if len(result.seeds) > 1 else ""
    return f"{seeds}bootstrap over initial states: [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def protocols_table(chosen: str | None = None) -> Table:
    """What protocols do, side by side; bold where another differs from the one chosen, which comes first."""
    others = [name for name in PROTOCOLS if name != chosen]
    differ = {} if chosen is None else differences(chosen)
    table = Table(title="How success is measured on LIBERO", title_justify="left", caption_justify="left")
    table.add_column("")
    names = others if chosen is None else [chosen, *others]
    for name in names:
        table.add_column(name, overflow="fold")
    rows = {name: PROTOCOLS[name].rows() for name in names}
    for heading in rows[names[0]]:
        cells = [
            Text(rows[name][heading], style="bold yellow" if name in differ.get(heading, {}) else "") for name in names
        ]
        table.add_row(heading, *cells)
    if chosen is not None:
        table.caption = f"bold: differs from {chosen}"
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Success before and after, with Wilson intervals, the paired difference, and McNemar's p-value overall."""
    before, after = comparison.before, comparison.after
    where = ", ".join([after.suite, f"{after.split} states", *after.perturbations])
    table = Table(title=f"Success on {where} (%)", title_justify="left")
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
    overall, clustered = comparison.overall, comparison.clustered
    interval = clustered.interval
    table.caption = (
        "Wilson intervals; change paired by episode\n"
        f"{overall.gained} gained, {overall.lost} lost, McNemar's exact p = {overall.p_value:.2g}\n"
        f"bootstrap over {clustered.clusters} initial states: [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}]"
    )
    if before.policy != after.policy:
        table.caption += f"\nbefore: {before.policy}; after: {after.policy}"
    if before.repeated:
        table.caption += (
            "\nseveral episodes a state are not independent; by states: "
            f"{clustered.improved} better, {clustered.worsened} worse, McNemar's exact p = {clustered.p_value:.2g}"
        )
    table.caption_justify = "left"
    return table


_SEVERAL_TESTS = "each row is a test of its own: of many, some are significant by chance"


def axis_table(found: AxisTable) -> Table:
    """Success along each axis, and the paired difference to the same episodes without a perturbation."""
    table = Table(title=_conditions(found.plain), title_justify="left", caption_justify="left")
    table.add_column("axis")
    for heading in ("severity", "episodes", "success %  [95 %]", "change to plain [95 %]", "gained, lost", "p"):
        table.add_column(heading, justify="right")
    table.add_row(PLAIN, "", *_rate(found.plain), "", "", "")
    table.add_section()
    for axis, comparison in zip(found.axes, found.changes(), strict=True):
        table.add_row(axis.axis, str(axis.severity), *_rate(axis.result), *_changed(comparison))
    table.caption = f"{_paired(found.plain)}\n{_SEVERAL_TESTS}"
    return table


def axis_comparison_table(found: AxisComparison) -> Table:
    """Success of two policies along each axis, and their paired difference under the same perturbation."""
    before, after = found.before.plain, found.after.plain
    title = f"Success on {after.suite}, {after.split} states (%)"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("perturbed")
    for heading in ("episodes", "before [95 %]", "after [95 %]", "change [95 %]", "gained, lost", "p"):
        table.add_column(heading, justify="right")
    for name, comparison in found.changes().items():
        _, first = _rate(comparison.before)
        table.add_row(name, str(comparison.overall.pairs), first, _rate(comparison.after)[1], *_changed(comparison))
        if name == PLAIN:
            table.add_section()
    table.caption = f"before: {before.policy}; after: {after.policy}\n{_paired(after)}\n{_SEVERAL_TESTS}"
    return table


def _rate(result: EvaluationResult) -> tuple[str, str]:
    return str(result.episodes), rate_with_interval(result.successes, result.episodes, result.interval)


def _changed(comparison: Comparison) -> tuple[Text, str, str]:
    """A paired difference, what it is made of, and McNemar's p; over initial states where these have more episodes."""
    overall, clustered = comparison.overall, comparison.clustered
    repeated = comparison.after.repeated
    shown = replace(overall, interval=clustered.interval) if repeated else overall
    p_value = clustered.p_value if repeated else overall.p_value
    return change(shown), f"{overall.gained}, {overall.lost}", f"{p_value:.2g}"


def _paired(result: EvaluationResult) -> str:
    if result.repeated:
        return "change paired by episode; its interval a bootstrap over initial states, p McNemar's exact, over states"
    return "change paired by episode, with Newcombe's interval; p McNemar's exact"


def change(difference: PairedDifference) -> Text:
    """A paired difference in points; green or red where its interval leaves out zero."""
    interval = difference.interval
    style = "green" if interval.low > 0 else "red" if interval.high < 0 else ""
    return Text(change_with_interval(difference), style=style)


def estimate(value: Estimate | None) -> str:
    """A figure with its interval, for example ``"0.83 [0.79, 0.87]"``; a dash where there is none."""
    return "-" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def rollouts_table(episodes: Sequence[RecordedEpisode]) -> Table:
    """Episodes and successes by source."""
    table = Table(title="Rollouts", title_justify="left")
    table.add_column("source")
    for heading in ("episodes", "successes", "mean length"):
        table.add_column(heading, justify="right")
    for source in dict.fromkeys(episode.source for episode in episodes):
        chosen = [episode for episode in episodes if episode.source == source]
        won = sum(episode.success for episode in chosen)
        mean = sum(episode.length for episode in chosen) / len(chosen)
        table.add_row(source, str(len(chosen)), str(won), f"{mean:.0f}")
    return table


def reward_tables(reports: Sequence[ScorerReport]) -> list[Table]:
    """Figures of scorers, one row each, with 95 % bootstrap intervals over episodes."""
    figures = {
        "Progress within successes": {"Spearman": "spearman", "monotonicity": "monotonicity"},
        "AUROC": {
            "success / failure": "auroc",
            "lengths made equal": "held_auroc",
            "policy's own": "policy_auroc",
            "near miss / gross": "near_miss_auroc",
        },
        "Successes against failures": {"MMD": "mmd", "Jensen-Shannon": "jensen_shannon", "SMD": "smd"},
    }
    tables = []
    for title, columns in figures.items():
        table = _scorer_table(title, columns)
        for report in reports:
            table.add_row(report.name, *(estimate(getattr(report, name)) for name in columns.values()))
        tables.append(table)
    tables[1].caption = "chance is 0.5; compared within tasks"
    cost = _scorer_table("Order and cost", ["order sensitivity", "ms a trajectory", "extra parameters", "extra MB"])
    for report in reports:
        cost.add_row(
            report.name,
            f"{report.order_sensitivity:.2g}",
            f"{report.milliseconds:.2f}",
            f"{report.parameters:,}",
            f"{report.memory_mb:.2f}",
        )
    cost.caption = "brackets: 95 % bootstrap intervals over episodes"
    return [*tables, cost]


def _scorer_table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("scorer", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def episode_scores_table(scores: Sequence[EpisodeScore]) -> Table:
    """How close episodes came, compared with reference rollouts."""
    table = Table(title="Closeness", title_justify="left")
    for heading in ("episode", "task"):
        table.add_column(heading, overflow="fold")
    for heading in ("distance", "closer than failures %", "than successes %", "reward as a failure"):
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(
            score.episode,
            str(score.task),
            f"{score.distance:.3g}",
            f"{100 * score.closer_than:.0f}",
            f"{100 * score.closer_than_successes:.0f}",
            f"{score.reward:.3f}",
        )
    return table
