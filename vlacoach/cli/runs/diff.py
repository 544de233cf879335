"""``vlacoach runs diff``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlacoach.cli.console import show, show_json
from vlacoach.cli.options import DEFAULT_RUNS_DIR, Json, RunsDir, complete_run
from vlacoach.cli.runs.summary import summarize

if TYPE_CHECKING:
    from vlacoach.runs.difference import Measurement, Setting
    from vlacoach.runs.folder import RunFolder

_SPLITS = {"held-out": "eval", "train": "eval_train"}


def diff_command(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A run: path, name, id, or 'latest'.", autocompletion=complete_run)
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="The run to compare it with.", autocompletion=complete_run)
    ],
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Compare two runs: settings and versions that differ, success, and last metrics side by side.

    For example:

      vlacoach runs diff 7f3a latest

      vlacoach runs diff siglip-t success --json
    """  # fmt: skip
    from vlacoach.runs.difference import different_settings, different_versions
    from vlacoach.runs.folder import RunFolder

    folders = RunFolder.open(first, runs_dir), RunFolder.open(second, runs_dir)
    settings, versions = different_settings(*folders), different_versions(*folders)
    if as_json:
        show_json(_document(folders, settings, versions))
        return
    titles = [f"{summary['name']} {summary['id']}" for summary in map(summarize, folders)]
    _show_settings(titles, settings)
    _show_versions(titles, versions)
    _show_evaluations(titles, folders)
    _show_metrics(titles, folders)


def _document(
    folders: tuple[RunFolder, RunFolder],
    settings: dict[str, tuple[Setting | None, Setting | None]],
    versions: dict[str, tuple[str | None, str | None]],
) -> dict[str, Any]:
    from vlacoach.runs.difference import last_values, measurements

    sides = dict(zip("ab", folders, strict=True))
    metrics = {side: last_values(folder.metrics()) for side, folder in sides.items()}
    return {
        **{side: summarize(folder) for side, folder in sides.items()},
        "settings": {
            key: {side: None if one is None else asdict(one) for side, one in zip("ab", pair, strict=True)}
            for key, pair in settings.items()
        },
        "versions": {key: {"a": a, "b": b} for key, (a, b) in versions.items()},
        "evaluations": {
            split: {
                side: [_as_json(one) for one in measurements(folder.metrics(), prefix)]
                for side, folder in sides.items()
            }
            for split, prefix in _SPLITS.items()
        },
        # A run that lacks a metric is left out; null is a value that was not finite.
        "metrics": {
            key: {side: values[key] for side, values in metrics.items() if key in values}
            for key in dict.fromkeys([*metrics["a"], *metrics["b"]])
        },
    }


def _as_json(one: Measurement) -> dict[str, Any]:
    interval = one.interval
    return {**asdict(one), "success": one.rate, "low": interval.low, "high": interval.high}


def _show_settings(titles: list[str], settings: dict[str, tuple[Setting | None, Setting | None]]) -> None:
    from rich.table import Table

    if not settings:
        show("The settings are equal.")
        return
    table = Table(title="Settings that differ", title_justify="left")
    for heading in ("setting", titles[0], "from", titles[1], "from"):
        table.add_column(heading, overflow="fold")
    for key, pair in settings.items():
        table.add_row(key, *(cell for setting in pair for cell in _cells(setting)))
    show(table)


def _cells(setting: Setting | None) -> tuple[str, str]:
    return ("-", "-") if setting is None else (setting.text, setting.origin)


def _show_versions(titles: list[str], versions: dict[str, tuple[str | None, str | None]]) -> None:
    from rich.table import Table

    if not versions:
        show("The versions are equal.")
        return
    table = Table("what", *titles, title="Versions that differ", title_justify="left")
    for key, (ours, theirs) in versions.items():
        table.add_row(key, ours or "-", theirs or "-")
    show(table)


def _show_evaluations(titles: list[str], folders: tuple[RunFolder, RunFolder]) -> None:
    from rich.table import Table

    from vlacoach.runs.difference import measurements

    table = Table("states", "when", *titles, title="Success %  [95 %]", title_justify="left")
    for split, prefix in _SPLITS.items():
        found = [measurements(folder.metrics(), prefix) for folder in folders]
        if any(found):
            table.add_row(split, "first", *(_measured(one[:1]) for one in found))
            table.add_row(split, "best", *(_measured(sorted(one, key=lambda each: each.rate)[-1:]) for one in found))
            table.add_row(split, "last", *(_measured(one[-1:]) for one in found))
    if table.row_count:
        show(table)


def _measured(found: list[Measurement]) -> str:
    from vlacoach.runs.statistics import rate_with_interval

    if not found:
        return "-"
    (one,) = found
    return f"{rate_with_interval(one.successes, one.episodes, one.interval)} after {one.step}"


def _show_metrics(titles: list[str], folders: tuple[RunFolder, RunFolder]) -> None:
    from rich.table import Table

    from vlacoach.runs.difference import last_values
    from vlacoach.runs.formatting import format_value

    values = [last_values(folder.metrics()) for folder in folders]
    table = Table("metric", title="Last metrics", title_justify="left")
    for title in titles:
        table.add_column(title, justify="right")
    for key in dict.fromkeys([*values[0], *values[1]]):
        table.add_row(key, *("-" if key not in one else format_value(_or_words(one[key])) for one in values))
    if table.row_count:
        show(table)


def _or_words(value: float | None) -> float | str:
    return "not finite" if value is None else value
