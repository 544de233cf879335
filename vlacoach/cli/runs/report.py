"""``vlacoach runs report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlacoach.cli.console import show, show_json
from vlacoach.cli.options import DEFAULT_RUNS_DIR, OUTPUT, Json, RunReference, RunsDir


def report_command(
    run: RunReference = "latest",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to; left out, in the run folder.", rich_help_panel=OUTPUT),
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Draw a run's learning curve as a PNG."""
    from vlacoach.runs.constants import CURVES_FILE
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.report import write_learning_curve

    folder = RunFolder.open(run, runs_dir)
    file = write_learning_curve(folder.metrics(), out or folder.path / CURVES_FILE, folder.path.resolve().name)
    if as_json:
        show_json({"learning_curve": str(file)})
    else:
        show(f"learning curve: {file}")
