"""Simulator processes: each holds a share of the worlds, draws into shared memory, and is replaced if it is lost."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.episodes import EpisodeRunner, Outcome
from vlacoach.envs.rendering import select_gl_backend
from vlacoach.envs.simulator import PROPRIOCEPTION_DIM, Simulator, UnstableSimulationError
from vlacoach.errors import SimulatorError, VlacoachError
from vlacoach.profiles import RenderProfile

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
_SLICE_SECONDS = 1.0
"""A process is waited for in slices of this length, and slices are counted: if this process itself is stopped for a
while (Ctrl-Z, a suspended machine), no more than one of them has passed, and nobody is called hanging for it."""
_SPARE_BYTES = 64 * 2**20
_OUT_OF_MEMORY = 137
"""Exit code of a process that found no memory; that of a shell whose command the kernel killed for the same reason."""
_MAX_FAILURES = 3
"""Times in a row that one process may be lost, without an answer in between, before the environment gives up."""


@dataclass
class Pending:
    """Work that simulator processes are doing; hand it to :meth:`vlacoach.envs.vector.LiberoVectorEnv.finish`.

    Attributes:
        workers: Processes that have not answered yet.
        outcomes: What chunks did, by world; None for worlds that were started anew.
        failure: The first error a process reported, other than its death.
    """

    workers: set[int]
    outcomes: dict[int, Outcome | None] = field(default_factory=dict)
    failure: Exception | None = None


@dataclass(frozen=True)
class _Order:
    """What a process was asked to do, kept until it answers: a process that is lost is replaced and asked again."""

    pending: Pending
    command: str
    jobs: list[tuple[Any, ...]]


@dataclass(frozen=True)
class WorkerSettings:
    """What a process needs to know.

    Attributes:
        suite: Name of the suite.
        num_worlds: Worlds of this process.
        cameras: Cameras to draw.
        image_size: Height and width of pictures in pixels.
        render_profile: One of ``RENDER_PROFILES``.
        max_steps: Step limit of an episode.
        settle_steps: Steps of doing nothing after a reset.
        gl_backend: What :func:`vlacoach.envs.rendering.find_gl_backend` found.
        first_world: Number of its first world.
        num_envs: Worlds of all processes.
        threads: Threads that step the worlds of this process.
        exact: Solve for contacts as LIBERO does; see :class:`Simulator`.
    """

    suite: str
    num_worlds: int
    cameras: tuple[str, ...]
    image_size: int
    render_profile: RenderProfile
    max_steps: int
    settle_steps: int
    gl_backend: str
    first_world: int
    num_envs: int
    threads: int = 1
    exact: bool = False


Answer: TypeAlias = "tuple[int, NDArray[np.float32], Outcome | None]"

_INVALID = Outcome(success=False, executed=0, length=0, truncated=True, invalid=True)


def _pictures(buffer: Any, settings: WorkerSettings) -> NDArray[np.uint8]:
    shape = (settings.num_envs, len(settings.cameras), settings.image_size, settings.image_size, 3)
    return np.frombuffer(buffer, dtype=np.uint8).reshape(shape)


class Server:
    """What a process does: resets and chunks for its share of the worlds, and pictures into shared memory.

    Args:
        settings: Of the process.
        buffer: Shared memory for the pictures of all worlds.
    """

    def __init__(self, settings: WorkerSettings, buffer: Any) -> None:
        simulator = Simulator(
            settings.suite,
            settings.num_worlds,
            settings.cameras,
            settings.image_size,
            settings.render_profile,
            exact=settings.exact,
        )
        self.runner = EpisodeRunner(simulator, settings.max_steps, settings.settle_steps)
        self._first = settings.first_world
        self._pictures = _pictures(buffer, settings)
        self._threads = ThreadPoolExecutor(settings.threads) if settings.threads > 1 else None

    def answer(self, command: str, jobs: list[tuple[Any, ...]]) -> list[Answer]:
        """Do jobs; see :meth:`WorkerPool.begin`. Physics may take several threads; a GL context belongs to one.

        Returns:
            World, proprioception, and outcome of each: None for a reset, unless it was unstable.
        """
        worlds = [job[0] for job in jobs]
        outcomes: list[Outcome | None]
        if command == "reset":
            outcomes = [self._start(*job) for job in jobs]
        elif self._threads is None:
            outcomes = [self.runner.execute(*job) for job in jobs]
        else:
            outcomes = list(self._threads.map(lambda job: self.runner.execute(*job), jobs))
        return [(world, self._observe(world), outcome) for world, outcome in zip(worlds, outcomes, strict=True)]

    def _start(self, *job: Any) -> Outcome | None:
        try:
            self.runner.reset(*job)
        except UnstableSimulationError:
            return _INVALID
        return None

    def _observe(self, world: int) -> NDArray[np.float32]:
        for i, picture in enumerate(self.runner.simulator.render(world).values()):
            self._pictures[self._first + world, i] = picture
        return self.runner.simulator.proprioception(world)


def _worker(connection: Connection, buffer: Any, settings: WorkerSettings) -> None:
    """Serve until told to stop."""
    # Stopping is the parent's business: it wants to finish what it has begun, and these reach the whole process group.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    select_gl_backend(settings.gl_backend)
    server = Server(settings, buffer)
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message is None:
            return
        try:
            connection.send(server.answer(*message))
        except VlacoachError as error:  # Crosses to the parent, which raises it.
            connection.send(error)
        except Exception as error:  # Any other may not survive the crossing.
            if _is_starved():
                sys.exit(_OUT_OF_MEMORY)
            connection.send(SimulatorError(f"A simulator process failed: {type(error).__name__}: {error}"))


def _is_starved() -> bool:
    """Whether this process gets no more memory: libraries say so in words of their own, if they do at all.

    A process of which that is true is in no known state; one that takes its place has its memory back.
    """
    try:
        bytearray(_SPARE_BYTES)
    except MemoryError:
        return True
    return False


class WorkerPool:
    """Starts, asks, replaces, and stops simulator processes.

    Args:
        settings: One for each process; their worlds follow each other.
        timeout: Seconds without an answer after which a process counts as hanging.

    Attributes:
        images: (N, cameras, H, W, 3) uint8, each world's latest pictures. Written to while chunks run.
        state: (N, 8) float32, each world's latest proprioception.
        lost: (N,) bool, worlds whose process was replaced, or whose start was unstable; a reset brings them back.
        replaced: Processes that died or hung so far.
    """

    def __init__(self, settings: list[WorkerSettings], timeout: float) -> None:
        one = settings[0]
        self._settings = settings
        self._timeout = timeout
        self._firsts = np.array([each.first_world for each in settings])
        self._context = multiprocessing.get_context("spawn")
        self._buffer = self._context.RawArray(ctypes.c_uint8, one.num_envs * len(one.cameras) * one.image_size**2 * 3)
        self.images = _pictures(self._buffer, one)
        self.state = np.zeros((one.num_envs, PROPRIOCEPTION_DIM), dtype=np.float32)
        self.lost = np.zeros(one.num_envs, dtype=np.bool_)
        self.replaced = 0
        self._failures = [0] * len(settings)
        self._queues: list[deque[_Order]] = [deque() for _ in settings]
        self._workers: list[tuple[Any, Connection]] = []
        # Before multiprocessing's own way of ending its processes, which they are deaf to.
        self._end = multiprocessing.util.Finalize(self, _stop, args=(self._workers,), exitpriority=10)
        self._workers += [self._spawn(worker) for worker in range(len(settings))]

    @property
    def processes(self) -> list[Any]:
        """The ``multiprocessing`` processes."""
        return [process for process, _ in self._workers]

    def _spawn(self, worker: int) -> tuple[Any, Connection]:
        # NumPy and CUDA read these at import, so they must be in place before a worker starts: one thread a
        # worker, and no CUDA device, since EGL and CUDA in one process abort.
        forced = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        before = {name: os.environ.get(name) for name in forced}
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._buffer, self._settings[worker])
        process = self._context.Process(target=_worker, args=arguments, daemon=True)
        try:
            os.environ.update(forced)
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        theirs.close()
        return process, ours

    def begin(self, command: str, jobs: dict[int, tuple[Any, ...]]) -> Pending:
        """Give each process its jobs; they work at the same time, and answer in the order in which they were asked.

        Args:
            command: ``"reset"`` or ``"step"``.
            jobs: World to the arguments of :meth:`EpisodeRunner.reset` or ``execute``.
        """
        pending = Pending(set())
        shares: dict[int, list[tuple[Any, ...]]] = {}
        for world, job in jobs.items():
            if command == "step" and self.lost[world]:
                pending.outcomes[world] = _INVALID
                continue
            worker = int(np.searchsorted(self._firsts, world, side="right")) - 1
            shares.setdefault(worker, []).append((world - self._settings[worker].first_world, *job))
        for worker, share in shares.items():
            pending.workers.add(worker)
            self._queues[worker].append(_Order(pending, command, share))
            try:
                self._workers[worker][1].send((command, share))
            except OSError:
                self._replace(worker, "ended unexpectedly")
        return pending

    def wait(self, pending: Pending) -> dict[int, Outcome | None]:
        """Outcomes by world, None for a reset.

        Raises:
            VlacoachError: What a process reported.
        """
        while pending.workers:
            self._receive(min(pending.workers))
        if pending.failure is not None:
            raise pending.failure
        return pending.outcomes

    def _receive(self, worker: int) -> None:
        """Take a process's next answer, which belongs to the work it was given first."""
        connection = self._workers[worker][1]
        try:
            if not self._answers(connection):
                self._replace(worker, f"did not answer for {self._timeout:g} s")
                return
            answer = connection.recv()
        except (EOFError, OSError):
            self._replace(worker, "ended unexpectedly")
            return
        self._failures[worker] = 0
        order = self._queues[worker].popleft()
        pending = order.pending
        pending.workers.discard(worker)
        if isinstance(answer, Exception):
            pending.failure = pending.failure or answer
            return
        for world, state, outcome in answer:
            index = self._settings[worker].first_world + world
            self.state[index] = state
            if order.command == "reset":
                # A world that is unstable from the start says so at its first step, as Gymnasium has it.
                self.lost[index] = outcome is not None
                outcome = None
            pending.outcomes[index] = outcome

    def _answers(self, connection: Connection) -> bool:
        """Wait for an answer, for as long as a process may take."""
        slices = math.ceil(self._timeout / _SLICE_SECONDS)
        return any(connection.poll(self._timeout / slices) for _ in range(slices))

    def _replace(self, worker: int, what: str) -> None:
        """Start a process anew: its chunks are lost, its resets are done again, its other worlds are gone."""
        process, connection = self._workers[worker]
        process.join(0.1)
        code = process.exitcode
        process.kill()
        process.join()
        connection.close()
        self.replaced += 1
        self._failures[worker] += 1
        text = f"Simulator process {worker} {what}" + ("" if code is None else f" (exit code {code})")
        if self._failures[worker] > _MAX_FAILURES:
            raise SimulatorError(
                f"{text}, {self._failures[worker]} times in a row.",
                f"Exit codes -9 and {_OUT_OF_MEMORY} mean out of memory: use fewer worlds or smaller pictures.",
            )
        logger.warning("%s; it is started anew, and the episodes it had do not count.", text)
        first = self._settings[worker].first_world
        self.lost[first : first + self._settings[worker].num_worlds] = True
        orders, self._queues[worker] = self._queues[worker], deque()
        self._workers[worker] = self._spawn(worker)
        for order in orders:
            if order.command == "reset":
                self._queues[worker].append(order)
                with contextlib.suppress(OSError):  # Gone again already: waiting for its answer notices.
                    self._workers[worker][1].send((order.command, order.jobs))
            else:
                order.pending.workers.discard(worker)
                for world, *_ in order.jobs:
                    order.pending.outcomes[first + world] = _INVALID

    def close(self) -> None:
        """Stop the processes; none is left behind."""
        self._end()


def _stop(workers: list[tuple[Any, Connection]]) -> None:
    try:
        for _, connection in workers:
            with contextlib.suppress(OSError):  # It is gone already, which is what stopping is for.
                connection.send(None)
        for process, _ in workers:
            process.join(_CLOSE_SECONDS)
    finally:
        # Whoever is in a hurry must not leave a process behind that the end of this one would wait for.
        for process, connection in workers:
            process.kill()
            process.join()
            connection.close()
        workers.clear()
