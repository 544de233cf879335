"""``vlacoach runs show``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vlacoach.cli.console import show, show_json
from vlacoach.cli.options import DEFAULT_RUNS_DIR, Json, RunReference, RunsDir
from vlacoach.cli.runs.summary import percentage, summarize

ALERTS = 5
"""Newest alerts that are shown; ``--json`` has all."""


def show_command(
    run: RunReference = "latest",
    evidence: Annotated[
        bool,
        typer.Option("--evidence", help="Show what was kept when a guard stopped the training: batch and state."),
    ] = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Show one run: its state, its last metrics, its results, its checkpoints, its alerts.

    For example:

      vlacoach runs show

      vlacoach runs show 7f3a --json

      vlacoach runs show 7f3a --evidence
    """  # fmt: skip
    from vlacoach.cli.tables import comparison_table
    from vlacoach.runs.constants import RESULTS_FILE
    from vlacoach.runs.evidence import list_evidence
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.results import read_comparisons

    folder = RunFolder.open(run, runs_dir)
    if evidence:
        from vlacoach.cli.runs.evidence import show_evidence

        show_evidence(folder, as_json)
        return
    summary = summarize(folder)
    reader = folder.reader("metrics.jsonl")
    records = reader.read()
    comparisons = read_comparisons(folder.path / RESULTS_FILE)
    details = {
        **summary,
        "path": str(folder.path),
        "seed": folder.info().get("seed"),
        "error": folder.info().get("error"),
        "checkpoints": [int(path.name) for path in folder.checkpoints.entries()],
        "alerts": folder.alerts(),
        "evidence": [path.name for path in list_evidence(folder.path)],
        "broken_lines": reader.broken,
        "last_metrics": records[-1] if records else {},
    }
    if as_json:
        results = {split: comparison.to_json() for split, comparison in comparisons.items()}
        show_json({**details, "info": folder.info(), "comparisons": results})
        return
    _show_details({**details, "alerts": len(details["alerts"])})
    _show_alerts(details["alerts"])
    for comparison in comparisons.values():
        show(comparison_table(comparison))


def _show_details(details: dict[str, Any]) -> None:
    from rich.table import Table

    from vlacoach.runs.formatting import format_value

    table = Table(show_header=False)
    for key, value in details.items():
        if key != "last_metrics" and value not in (None, [], 0):
            table.add_row(key, percentage(value) if key.endswith("_success") else str(value))
    for key, value in details["last_metrics"].items():
        if "/" in key:
            table.add_row(key, format_value(value))
    show(table)


def _show_alerts(alerts: list[dict[str, Any]]) -> None:
    if not alerts:
        return
    from rich.table import Table

    title = f"Alerts, the last {ALERTS} of {len(alerts)}" if len(alerts) > ALERTS else "Alerts"
    table = Table("level", "message", "advice", title=title, title_justify="left")
    for alert in alerts[-ALERTS:]:
        table.add_row(*(str(alert.get(key) or "") for key in ("level", "message", "advice")))
    show(table)
