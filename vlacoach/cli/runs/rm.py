"""``vlacoach runs rm``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vlacoach.cli.console import narration, show
from vlacoach.cli.options import DEFAULT_RUNS_DIR, RunsDir, complete_run
from vlacoach.errors import ConfigError, ExitCode


def rm_command(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs: paths, names, ids, or 'latest'.", autocompletion=complete_run),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")] = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Remove runs with all their checkpoints and videos. A run that is running is refused.

    For example:

      vlacoach runs rm 7f3a

      vlacoach runs rm first-try second-try --yes
    """  # fmt: skip
    from vlacoach.runs.removing import Removal

    with Removal(runs, runs_dir) as removal:
        if not yes:
            _confirm([path.name for path in removal.paths])
        removal.remove()
    for path in removal.paths:
        show(f"removed {path.name}")


def _confirm(folders: list[str]) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("There is no terminal to ask on.", "Say --yes to remove: " + ", ".join(folders))
    for folder in folders:
        narration().print(folder)
    if not typer.confirm("Remove for good?", err=True):
        narration().print("Nothing was removed.")
        raise typer.Exit(ExitCode.FAILURE)
