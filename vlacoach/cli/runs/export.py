"""``vlacoach runs export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlacoach.cli.console import show
from vlacoach.cli.options import DEFAULT_RUNS_DIR, OUTPUT, RunReference, RunsDir
from vlacoach.errors import ConfigError

_WHAT = "What to export (one of them)"


def export_command(
    run: RunReference = "latest",
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            metavar="FOLDER",
            help="The trained adapter (PEFT format), or all weights if all were trained.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="The metrics, one row a line of metrics.jsonl; - is standard output.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            "--tensorboard", metavar="FOLDER", help="The metrics as TensorBoard's event files.", rich_help_panel=_WHAT
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Checkpoint of --adapter: last, best, or its step (default: last)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.", rich_help_panel=OUTPUT)] = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Take the adapter or the metrics out of a run. What is there already is not touched without --force.

    For example:

      vlacoach runs export latest --adapter my-adapter --checkpoint best

      vlacoach runs export 7f3a --csv - | column -s, -t

      vlacoach runs export 7f3a --tensorboard tb/7f3a
    """  # fmt: skip
    from vlacoach.runs.export import export_adapter, export_csv, export_tensorboard, metrics_csv
    from vlacoach.runs.folder import RunFolder

    if sum(choice is not None for choice in (adapter, csv, tensorboard)) != 1:
        raise ConfigError("One thing is exported at a time.", "Give one of --adapter, --csv and --tensorboard.")
    if checkpoint is not None and adapter is None:
        raise ConfigError("--checkpoint belongs to --adapter.", "Metrics are those of the whole run.")
    folder = RunFolder.open(run, runs_dir)
    if adapter is not None:
        done = export_adapter(folder.checkpoints.named(checkpoint or "last"), adapter, force)
        show(f"adapter: {done}")
    elif csv == Path("-"):
        sys.stdout.write(metrics_csv(folder.metrics()))
    elif csv is not None:
        show(f"csv: {export_csv(folder.metrics(), csv, force)}")
    elif tensorboard is not None:
        done = export_tensorboard(folder.metrics(), tensorboard, force)
        show(f"tensorboard: {done}")
