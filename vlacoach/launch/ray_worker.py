"""The far end of Ray Train: each worker runs ``vlacoach train`` in its own process, as a rank of the group.

The first rank keeps the run folder, on a disk that all nodes share or, with a storage, on its own node with a copy in
the storage. A group that is started again goes on with what it finds there.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train

from vlacoach.errors import ExitCode, LaunchError, RunError
from vlacoach.launch.mirror import RunMirror, is_run_of
from vlacoach.launch.storage import Storage
from vlacoach.launch.supervising import Job, command
from vlacoach.runs import constants as names
from vlacoach.runs.checkpoints import CheckpointStore
from vlacoach.runs.control import ask, read_control
from vlacoach.runs.finding import list_runs

FINAL = (ExitCode.OK, ExitCode.USAGE, ExitCode.MODEL, ExitCode.DIVERGED, ExitCode.INTERRUPTED)
"""Exit statuses that another attempt would end with too."""

LOOK_SECONDS = 2.0
"""Between two looks of the first rank at whether the user wants to stop, and at what is to be stored."""

SETTLE_SECONDS = 30.0
"""That a rank which lost another waits for what that one has to say, before Ray ends the group."""

Entry = Callable[[list[str]], int]
"""Runs a ``vlacoach`` command line in this process; returns its exit status."""


@dataclass(frozen=True)
class Task:
    """What a worker needs to know.

    Attributes:
        job: The command.
        entry: Runs it.
        runs: Folder of all runs of the user.
        shared: A folder below ``runs`` that exists while Ray trains, by which a node can tell whether it has this disk.
        here: Folder that the user was in; relative paths of the command start there, on nodes that have it.
        storage: URI of the storage, or None if the run is kept in ``runs``.
        folder: Name of the run's folder if the command resumes it, else ``""``.
    """

    job: Job
    entry: Entry
    runs: str
    shared: str
    here: str
    storage: str | None = None
    folder: str = ""

    def find(self, runs: Path) -> Path | None:
        """The run's folder among runs, if there is one yet."""
        if self.folder:
            return runs / self.folder if (runs / self.folder / names.RUN_FILE).is_file() else None
        return next((path for path in reversed(list_runs(runs)) if is_run_of(path.name, self.job.name)), None)


@dataclass(frozen=True)
class Standing:
    """How a training stands.

    Attributes:
        attempts: Times that a group has been started.
        stop: Whether the user wants it to end after its update.
        status: Exit status of the command once it is settled that no other attempt is worth making, else None.
        reason: Why a rank could not begin, or ``""``.
    """

    attempts: int = 0
    stop: bool = False
    status: int | None = None
    reason: str = ""


class Ledger:
    """What workers and the user's command tell each other. An actor beside the command, that outlives any group."""

    def __init__(self) -> None:
        self._standing = Standing()

    def look(self) -> Standing:
        """How it stands."""
        return self._standing

    def begin(self) -> None:
        """A group has been started."""
        self._standing = replace(self._standing, attempts=self._standing.attempts + 1)

    def stop(self) -> None:
        """The user wants it to end."""
        self._standing = replace(self._standing, stop=True)

    def settle(self, status: int, reason: str = "") -> None:
        """It has ended for good; the first to say so is right."""
        if self._standing.status is None:
            self._standing = replace(self._standing, status=status, reason=reason)


def work(given: dict[str, Any]) -> None:
    """Be one worker, for one attempt; Ray Train calls this.

    Args:
        given: ``task``, a :class:`Task`, and ``ledger``, the actor.

    Raises:
        LaunchError: The command failed in a way in which the next attempt may not.
    """
    task, ledger = given["task"], given["ledger"]
    rank = ray.train.get_context().get_world_rank()
    if ray.get(ledger.look.remote()).status is not None:
        return  # A worker was lost after the end.
    os.environ.update(task.job.environment)
    if Path(task.here).is_dir():
        os.chdir(task.here)
    if rank == 0:
        ray.get(ledger.begin.remote())
        status = _lead(task, ledger)
    else:
        status = _run(task.entry, ["train"])
    if status in FINAL and (rank == 0 or status != ExitCode.OK):
        ray.get(ledger.settle.remote(status))
    if status in FINAL or (status == ExitCode.RUN and _settled(ledger)):
        return  # Not raised: Ray would start the group again.
    raise LaunchError(f"Rank {rank} ended with status {status}; its messages are above.")


def _lead(task: Task, ledger: Any) -> int:
    with ExitStack() as stack:
        if task.storage is None:
            runs = Path(task.runs)
            if not Path(task.shared).is_dir():
                reason = f"Node {ray.util.get_node_ip_address()}, where the first rank is, does not have {runs}."
                ray.get(ledger.settle.remote(int(ExitCode.USAGE), reason))
                return ExitCode.USAGE
        else:
            # Of this name, so that what a group left that was killed here goes now.
            runs = Path(tempfile.gettempdir()) / f"vlacoach-ray-{task.job.name}"
            shutil.rmtree(runs, ignore_errors=True)
            runs.mkdir(mode=0o700)
            stack.callback(shutil.rmtree, runs, ignore_errors=True)
            _restore(task, task.storage, runs)
        for path, text in task.job.files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8")
            stack.callback(shutil.rmtree, Path(path).parent, ignore_errors=True)
        stack.enter_context(_Keeper(task, runs, ledger))
        return _run(task.entry, [*command(task.job, runs), f"--runs-dir={runs}"])


def _restore(task: Task, storage: str, runs: Path) -> None:
    """Copy what an attempt before this one has stored, without the videos, which only people look at."""
    mirror = RunMirror(
        Storage(storage, without=(names.VIDEOS_FOLDER,)), runs, task.job.name, folder=task.folder or None
    )
    mirror.sync(last=True)
    if mirror.path is not None:
        CheckpointStore(mirror.path / names.CHECKPOINTS_FOLDER).relink()


def _run(entry: Entry, arguments: list[str]) -> int:
    # What is data to the command is none to Ray: the user's command reads it from the run folder.
    with redirect_stdout(io.StringIO()):
        return entry(arguments)


def _settled(ledger: Any) -> bool:
    """Whether a rank that lost another lost it because that one has settled the matter; waits for it to say so."""
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        if ray.get(ledger.look.remote()).status is not None:
            return True
        time.sleep(0.5)
    return False


class _Keeper:
    """Beside the first rank: hands on the wish to stop, and stores the run folder as it grows.

    Args:
        task: What the worker does.
        runs: Folder that the run is in.
        ledger: Says whether the user wants to stop.
    """

    def __init__(self, task: Task, runs: Path, ledger: Any) -> None:
        self._task, self._runs, self._ledger = task, runs, ledger
        self._storage = None if task.storage is None else Storage(task.storage)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="vlacoach-keeper", daemon=True)

    def __enter__(self) -> _Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._push()

    def _keep(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            try:
                self._pass_on()
                self._push()
            except (OSError, RunError, ray.exceptions.RayError) as error:
                print(f"The run folder is not stored yet: {error}", file=sys.stderr)

    def _push(self) -> None:
        run = self._task.find(self._runs)
        if self._storage is not None and run is not None:
            self._storage.push(run)

    def _pass_on(self) -> None:
        run = self._task.find(self._runs)
        if run is not None and ray.get(self._ledger.look.remote()).stop and not read_control(run).stop:
            ask(run, "stop")  # Again if need be: a run that begins forgets what was asked for before.
