"""The far end of an engine: a ``vlacoach train`` in a process of its own, begun or gone on with, whatever came before.

Nothing here knows an engine; what it needs of one is a function that makes the run folder's volume durable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vlacoach.errors import ExitCode, LaunchError
from vlacoach.launch.mirror import is_run_of
from vlacoach.runs import constants as names
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder

COMMIT_SECONDS = 15.0
"""Between two commits of the volumes; heartbeats must not look older than they are."""

GRACE_SECONDS = 20.0
"""For the training to end its update when its container is taken away; Modal leaves it 30 s."""

WORTH_ANOTHER_TRY = (ExitCode.FAILURE, ExitCode.SIMULATOR)


@dataclass(frozen=True)
class Job:
    """A training as it is sent to where it runs: text, so that any version of Python can read it.

    Attributes:
        arguments: Of the ``vlacoach`` command that begins it.
        again: Of the command that goes on with it, before the name of the run's folder; empty if ``arguments`` do.
        name: Name of the run, which no other run has.
        files: Text of files by the path that ``arguments`` name.
        environment: Variables that set parts of the configuration.
    """

    arguments: list[str]
    again: list[str] = field(default_factory=list)
    name: str = ""
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        status: Exit status.
        output: What it printed on standard output.
    """

    status: int
    output: str


def begun(name: str, runs: Path) -> RunFolder | None:
    """The run of this name that can be gone on with.

    Runs of the name that were killed before their first checkpoint are removed: they have nothing to go on with, and
    their name would be ambiguous.
    """
    found = None
    for path in list_runs(runs):
        if is_run_of(path.name, name):
            folder = RunFolder(path)
            if folder.checkpoints.entries():
                found = folder
            else:
                shutil.rmtree(path)
    return found


def command(job: Job, runs: Path) -> list[str]:
    """Arguments of the next attempt at a job."""
    run = begun(job.name, runs) if job.again else None
    return job.arguments if run is None else [*job.again, run.path.name]


def supervise(job: Job, runs: Path, commit: Callable[[], None], trouble: type[Exception]) -> Outcome:
    """Make one attempt at a job, and make what it writes durable meanwhile.

    Args:
        job: What to run.
        runs: Folder of all runs.
        commit: Makes what was written durable.
        trouble: What ``commit`` raises when it could not; only the last commit has to succeed.

    Raises:
        LaunchError: The attempt failed in a way in which the next one may not.
    """
    for path, text in job.files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "vlacoach", *command(job, runs)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            env={**os.environ, **job.environment},
        )
        try:
            _wait(child, commit, trouble)
        finally:
            _end(child)
            commit()
        output.seek(0)
        outcome = Outcome(child.returncode, output.read())
    if outcome.status < 0 or outcome.status in WORTH_ANOTHER_TRY:
        raise LaunchError(
            f"The training ended with status {outcome.status}.",
            f"Its messages are in the container's log, and in {names.LOG_FILE} of the run folder.",
        )
    return outcome


def _wait(child: subprocess.Popen[bytes], commit: Callable[[], None], trouble: type[Exception]) -> None:
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(COMMIT_SECONDS)
            return
        try:
            commit()
        except trouble as error:
            print(f"The volume was not committed, and will be: {error}", file=sys.stderr)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask a training that still runs to end, so that it writes a checkpoint if it is quick enough."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
            return
        child.kill()
        child.wait()
