"""Training in a process of its own, watched from this one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import typer

from vlacoach.cli.console import narration
from vlacoach.cli.watch import require_terminal, run_dashboard
from vlacoach.runs.constants import RUN_FILE
from vlacoach.runs.files import writing
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.overview import ACTIVE

CONSOLE_FILE = "console.txt"
"""What the trainer printed, in its run folder."""

_LOOK_SECONDS = 0.2
_END_SECONDS = 20.0


def train_and_watch(arguments: Sequence[str], runs_dir: Path) -> None:
    """Start ``vlacoach train`` as a process that outlives this one, and show the dashboard.

    Leaving the dashboard, or losing the terminal, does not end the training.

    Args:
        arguments: The command line of the training, without ``--watch``.
        runs_dir: Where its run folder will be.

    Raises:
        ConfigError: There is no terminal.
        RunError: The folder of runs cannot be written.
        typer.Exit: The training ended before it was left; with its status.
    """
    require_terminal()
    with writing(runs_dir):
        runs_dir.mkdir(parents=True, exist_ok=True)
    output = runs_dir / f".console_{time.time_ns()}.txt"
    # Kept open: a run that fails before it has begun takes its folder, and this file in it, away.
    with writing(output), output.open("w+b") as file:
        # A session of its own: Ctrl-C and a lost terminal reach the dashboard only.
        trainer = subprocess.Popen(
            [sys.executable, "-m", "vlacoach", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        run = _wait_for_folder(trainer, runs_dir)
        if run is None:
            output.unlink()
            sys.stderr.write(_printed(file))
            raise typer.Exit(trainer.returncode)
        with suppress(FileNotFoundError):  # The run has taken its folder away already.
            output.rename(run / CONSOLE_FILE)
        from vlacoach.cli.dashboard.view import Options

        run_dashboard(run, Options(runs_dir), [])
        _say_goodbye(trainer, run, file)


def _printed(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _wait_for_folder(trainer: subprocess.Popen[bytes], runs_dir: Path) -> Path | None:
    """The folder of the run that the process writes, or None if it ended without one."""
    narration().print("Starting ...")
    while trainer.poll() is None:
        for path in reversed(list_runs(runs_dir)):
            if _writer(path) == trainer.pid:
                return path
        time.sleep(_LOOK_SECONDS)
    return None


def _writer(run: Path) -> int | None:
    try:
        info = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # Another run's trouble.
    pid = info.get("pid") if isinstance(info, dict) else None
    return pid if isinstance(pid, int) else None


def _say_goodbye(trainer: subprocess.Popen[bytes], run: Path, file: BinaryIO) -> None:
    status = trainer.poll()
    if status is None and (not run.is_dir() or RunFolder(run).status() not in ACTIVE):
        # It has said that it is over; its processes take a moment.
        with suppress(subprocess.TimeoutExpired):
            status = trainer.wait(_END_SECONDS)
    if status is None:
        narration().print(f"The training goes on as process {trainer.pid}. Watch it: vlacoach watch {run.name}")
        narration().print(f"End it after its update: kill -INT {trainer.pid}")
        return
    if status == 0:
        sys.stdout.write(_printed(file))
        return
    if run.is_dir():
        narration().print(f"The training ended with status {status}; see {run / CONSOLE_FILE}")
    else:
        sys.stderr.write(_printed(file))
    raise typer.Exit(status if status > 0 else 128 - status)
