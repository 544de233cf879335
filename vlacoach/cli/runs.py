"""``vlacoach runs``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlacoach.cli.console import narration, show, show_json
from vlacoach.cli.options import DEFAULT_RUNS_DIR, OUTPUT, Json, RunReference, RunsDir
from vlacoach.errors import RunError

if TYPE_CHECKING:
    from vlacoach.runs.folder import RunFolder

app = typer.Typer(no_args_is_help=True, help="Look at runs.")


@app.command("ls")
def ls_command(runs_dir: RunsDir = DEFAULT_RUNS_DIR, as_json: Json = False) -> None:
    """List runs, newest last."""
    from rich.table import Table

    from vlacoach.runs.finding import list_runs
    from vlacoach.runs.folder import RunFolder

    summaries = []
    for path in list_runs(runs_dir):
        try:
            summaries.append(_summary(RunFolder.open(path)))
        except RunError as error:
            # One damaged run must not hide the others.
            narration().print(f"{path.name}: {error.message}", style="yellow")
    if as_json:
        show_json(summaries)
        return
    if not summaries:
        narration().print(f"There are no runs in {runs_dir}.")
        return
    table = Table("id", "name", "status", "updates", "success", "held-out", "created")
    for summary in summaries:
        table.add_row(
            summary["id"],
            summary["name"],
            summary["status"],
            str(summary["updates"]),
            _rate(summary["rollout_success"]),
            _rate(summary["eval_success"]),
            f"{datetime.fromtimestamp(summary['created']):%Y-%m-%d %H:%M}",
        )
    show(table)


@app.command("show")
def show_command(run: RunReference = "latest", runs_dir: RunsDir = DEFAULT_RUNS_DIR, as_json: Json = False) -> None:
    """Show one run: its state, its last metrics, its results, its checkpoints."""
    from vlacoach.cli.tables import comparison_table
    from vlacoach.runs.constants import RESULTS_FILE
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.results import read_comparisons

    folder = RunFolder.open(run, runs_dir)
    summary = _summary(folder)
    reader = folder.reader("metrics.jsonl")
    records = reader.read()
    comparisons = read_comparisons(folder.path / RESULTS_FILE)
    details = {
        **summary,
        "path": str(folder.path),
        "seed": folder.info().get("seed"),
        "error": folder.info().get("error"),
        "checkpoints": [int(path.name) for path in folder.checkpoints.entries()],
        "alerts": len(folder.alerts()),
        "broken_lines": reader.broken,
        "last_metrics": records[-1] if records else {},
    }
    if as_json:
        results = {split: comparison.to_json() for split, comparison in comparisons.items()}
        show_json({**details, "info": folder.info(), "comparisons": results})
        return
    _show_details(details)
    for comparison in comparisons.values():
        show(comparison_table(comparison))


def _show_details(details: dict[str, Any]) -> None:
    from rich.table import Table

    from vlacoach.runs.formatting import format_value

    table = Table(show_header=False)
    for key, value in details.items():
        if key != "last_metrics" and value not in (None, [], 0):
            table.add_row(key, _rate(value) if key.endswith("_success") else str(value))
    for key, value in details["last_metrics"].items():
        if "/" in key:
            table.add_row(key, format_value(value))
    show(table)


@app.command("report")
def report_command(
    run: RunReference = "latest",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to; left out, in the run folder.", rich_help_panel=OUTPUT),
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Draw a run's learning curve as a PNG."""  # fmt: skip
    from vlacoach.runs.constants import CURVES_FILE
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.report import write_learning_curve

    folder = RunFolder.open(run, runs_dir)
    file = write_learning_curve(folder.metrics(), out or folder.path / CURVES_FILE, folder.path.resolve().name)
    if as_json:
        show_json({"learning_curve": str(file)})
    else:
        show(f"learning curve: {file}")


def _summary(folder: RunFolder) -> dict[str, Any]:
    from vlacoach.runs import constants as names

    info = folder.info()
    records = folder.metrics()
    steps = [record[names.STEP] for record in records if isinstance(record.get(names.STEP), int)]
    return {
        "id": str(info.get("id", "")),
        "name": str(info.get("name", "")),
        "folder": folder.path.name,
        "status": folder.status(),
        "updates": max(steps, default=0),
        "rollout_success": _last(records, names.ROLLOUT_SUCCESS),
        "eval_success": _last(records, names.EVAL_SUCCESS),
        "created": float(info.get("created") or 0.0),
    }


def _last(records: list[dict[str, Any]], key: str) -> float | None:
    for record in reversed(records):
        if isinstance(record.get(key), (int, float)):
            return float(record[key])
    return None


def _rate(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
