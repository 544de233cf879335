"""``vlacoach runs export csv`` and ``vlacoach runs export tensorboard``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlacoach.cli.console import show
from vlacoach.cli.options import DEFAULT_RUNS_DIR, OUTPUT, Force, RunReference, RunsDir


def csv_command(
    run: RunReference = "latest",
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="Where the table goes; - is standard output.", rich_help_panel=OUTPUT
        ),
    ] = Path("-"),
    force: Force = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """The metrics as a table, one row a line of metrics.jsonl.

    For example:

      vlacoach runs export csv 7f3a | column -s, -t

      vlacoach runs export csv 7f3a --out metrics.csv
    """  # fmt: skip
    from vlacoach.runs.export import export_csv, metrics_csv
    from vlacoach.runs.folder import RunFolder

    metrics = RunFolder.open(run, runs_dir).metrics()
    if out == Path("-"):
        sys.stdout.write(metrics_csv(metrics))
    else:
        show(f"csv: {export_csv(metrics, out, force)}")


def tensorboard_command(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the event files go.", rich_help_panel=OUTPUT)
    ],
    run: RunReference = "latest",
    force: Force = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """The metrics as TensorBoard's event files.

    For example:

      vlacoach runs export tensorboard 7f3a --out tb/7f3a
    """  # fmt: skip
    from vlacoach.runs.export import export_tensorboard
    from vlacoach.runs.folder import RunFolder

    metrics = RunFolder.open(run, runs_dir).metrics()
    show(f"tensorboard: {export_tensorboard(metrics, out, force)}")
