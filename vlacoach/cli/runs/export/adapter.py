"""``vlacoach runs export adapter``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlacoach.cli.console import show
from vlacoach.cli.options import DEFAULT_RUNS_DIR, OUTPUT, Checkpoint, Force, RunReference, RunsDir


def adapter_command(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the adapter goes.", rich_help_panel=OUTPUT)
    ],
    run: RunReference = "latest",
    checkpoint: Checkpoint = "last",
    force: Force = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Copy the trained adapter (PEFT format), or all weights if all were trained.

    For example:

      vlacoach runs export adapter latest --checkpoint best --out my-adapter
    """  # fmt: skip
    from vlacoach.runs.export import export_adapter
    from vlacoach.runs.folder import RunFolder

    folder = RunFolder.open(run, runs_dir)
    show(f"adapter: {export_adapter(folder.checkpoints.named(checkpoint), out, force)}")
