"""The real ``vlacoach`` command in processes of its own, on the toy world, to be killed, stopped, and starved.

Importing torch takes longer than a whole training run of the toy world. So one process imports everything and then
makes, for each training, a child that is a session of its own; the child is what tests kill.

The environment variable ``TOY_FAULT`` makes a child do something to itself:

- ``kill-at:N``: SIGKILL to its process group at its Nth change of the run folder (opening, renaming, removing, ...)
- ``fill-at:N``: at its Nth change of the run folder, whatever is left of its disk is filled
- ``clock:SECONDS``: the wall clock goes back by so much at each look at it
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import vlacoach

HERE = Path(__file__).parent
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate"}
PATIENCE = 120.0
"""Seconds that anything may take on a busy machine."""


class Trainers:
    """The process that has imported everything, and its children.

    Args:
        folder: Where what they print goes.

    Attributes:
        environment: Environment variables of all of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        # The package that is being tested, which need not be the one that is installed.
        package = str(Path(vlacoach.__file__).parents[1])
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
        self._nursery = subprocess.Popen(
            [sys.executable, str(HERE / "toy_trainer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def start(
        self, arguments: Sequence[object], fault: str = "", environment: Mapping[str, object] | None = None
    ) -> Trainer:
        """Start ``vlacoach`` with these arguments, and some more environment variables."""
        self._count += 1
        output = self._folder / f"output_{os.getpid()}_{id(self)}_{self._count}.txt"
        order: dict[str, Any] = {"arguments": [str(one) for one in arguments], "fault": fault, "output": str(output)}
        self._say({**order, "environment": {key: str(value) for key, value in (environment or {}).items()}})
        return Trainer(int(self._hear()), output, lambda: int(self._hear()))

    def run(self, arguments: Sequence[object], fault: str = "") -> Trainer:
        """The same, and wait for its end."""
        trainer = self.start(arguments, fault)
        trainer.wait()
        return trainer

    def close(self) -> None:
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()
        self._nursery.wait(PATIENCE)
        assert self._nursery.stdout is not None
        self._nursery.stdout.close()

    def _say(self, order: dict[str, Any]) -> None:
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(json.dumps(order) + "\n")
        self._nursery.stdin.flush()

    def _hear(self) -> str:
        assert self._nursery.stdout is not None
        return self._nursery.stdout.readline()


class Trainer:
    """One training.

    Attributes:
        pid: Its process, which leads a process group.
        status: Exit status, negative for a signal; None until :meth:`wait`.
    """

    def __init__(self, pid: int, output: Path, ended: Callable[[], int]) -> None:
        self.pid = pid
        self.status: int | None = None
        self._output = output
        self._ended = ended

    @property
    def output(self) -> str:
        return self._output.read_text()

    def signal(self, number: signal.Signals) -> None:
        """To the whole process group, as a terminal and a batch system do; nothing if it has ended."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def wait(self) -> int:
        watchdog = threading.Timer(PATIENCE, self.signal, [signal.SIGKILL])
        watchdog.start()
        try:
            self.status = self._ended()
        finally:
            watchdog.cancel()
        return self.status

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait for something that the training does, or for its end."""
        deadline = time.monotonic() + PATIENCE
        while not ready() and Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.002)


def serve() -> None:
    """Make a child for each line of standard input, and say its number and, when it has ended, its exit status."""
    prepare()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(work(order))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def prepare() -> None:
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    from toy_envs import ToyEnvs

    import vlacoach.cli.progress
    import vlacoach.cli.tables
    import vlacoach.envs.suites
    import vlacoach.runs.discarding
    import vlacoach.runs.trackers
    from vlacoach.agents import training

    vlacoach.envs.suites.get_suite("libero_goal")
    with suppress(ImportError):
        import av  # noqa: F401
    training.make_envs = lambda config, policy: ToyEnvs(config.env.num_envs)  # type: ignore[assignment, return-value]


def work(order: dict[str, Any]) -> int:
    from vlacoach.cli.main import app

    os.setsid()
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(0)
    os.environ.update(order["environment"])
    sys.argv = ["vlacoach", *order["arguments"]]
    kind, _, value = order["fault"].partition(":")
    if kind == "kill-at":
        at_change(int(value), lambda path: os.killpg(0, signal.SIGKILL))
    elif kind == "fill-at":
        at_change(int(value), fill)
    elif kind == "clock":
        turn_back(float(value))
    try:
        app(args=order["arguments"], prog_name="vlacoach")
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()
    return 0


def at_change(number: int, do: Callable[[Path], None]) -> None:
    """Do something at a change of a run folder, given the path of it; how many there are is said in the end."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in CHANGES or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = str(arguments[1 if event == "os.symlink" else 0])
        if "_toy_" in path:
            seen += 1
            if seen == number:
                do(Path(path))

    sys.addaudithook(count)
    atexit.register(lambda: print(f"{seen} changes", file=sys.stderr, flush=True))


def fill(path: Path) -> None:
    """Fill the disk of a run folder to the last byte."""
    root = next(parent.parent for parent in path.parents if "_toy_" in parent.name)
    with (root / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while True:
                    filler.write(b"x" * size)


def turn_back(seconds: float) -> None:
    """Let the wall clock go back at each look at it."""
    started, looks = time.time(), 0

    def look() -> float:
        nonlocal looks
        looks += 1
        return started - seconds * looks

    time.time = look


if __name__ == "__main__":
    serve()
