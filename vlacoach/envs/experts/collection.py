"""Collect demonstrations of scripted experts with worker processes, with progress and resume."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from vlacoach.data.hdf5 import Demonstration, DemonstrationWriter, demonstration_file
from vlacoach.envs.experts.rollout import ROTATION_NOISE, ExpertEpisode, get_expert, run_expert
from vlacoach.envs.simulator import Simulator, UnstableSimulationError
from vlacoach.envs.suites import get_suite
from vlacoach.errors import ConfigError, SimulatorError
from vlacoach.profiles import RenderProfile

_Task = TypeVar("_Task")
_Made = TypeVar("_Made")

ATTEMPTS = 5
"""Tries at an episode, each with noise of its own, before it is given up."""


@dataclass(frozen=True)
class _Job:
    """One episode to collect; a worker needs nothing else to make it, always the same."""

    suite: str
    task: int
    index: int
    init_state: int
    noise: float
    rotation_noise: float
    seed: int
    max_steps: int
    cameras: tuple[str, ...]
    image_size: int
    render_profile: RenderProfile


_simulators: dict[tuple[str, tuple[str, ...], int, RenderProfile], Simulator] = {}
"""Simulators of this worker process: compiling a scene takes seconds, and renderers must not be replaced."""


def _collect_episode(job: _Job) -> ExpertEpisode | None:
    """Run the expert until it succeeds; None if it failed ``ATTEMPTS`` times."""
    key = (job.suite, job.cameras, job.image_size, job.render_profile)
    if key not in _simulators:
        _simulators[key] = Simulator(
            job.suite, cameras=job.cameras, image_size=job.image_size, render_profile=job.render_profile
        )
    for attempt in range(ATTEMPTS):
        try:
            episode = run_expert(
                _simulators[key],
                world=0,
                task=job.task,
                init_state=job.init_state,
                noise=job.noise,
                rotation_noise=job.rotation_noise,
                rng=np.random.default_rng((job.seed, job.task, job.index, attempt)),
                max_steps=job.max_steps,
                render=True,
            )
        except UnstableSimulationError:
            # An unstable episode is neither a success nor a failure; the next attempt has other noise.
            continue
        if episode.success:
            return episode
        if job.noise == 0:
            # Without noise every attempt is the same.
            return None
    return None


def collect(
    suite: str,
    tasks: Sequence[int],
    episodes: int,
    folder: Path,
    *,
    states: Sequence[int],
    noise: float = 0.0,
    rotation_noise: float = ROTATION_NOISE,
    cameras: Sequence[str] = ("agentview",),
    image_size: int = 128,
    render_profile: RenderProfile = "fast",
    workers: int = 2,
    seed: int = 0,
    max_steps: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Path]:
    """Collect ``episodes`` successful episodes of each task, one HDF5 file a task.

    Episode k of a task starts from ``states[k % len(states)]`` and has a random generator of its own, so the data
    does not depend on the number of workers. Episodes already in the files are kept and not made again.

    Args:
        suite: Name of the suite.
        tasks: Indices of the tasks.
        episodes: Successful episodes of each task.
        folder: Where the files go.
        states: Initial states, used in turn.
        noise: Standard deviation of the noise on executed translations; labels stay clean.
        rotation_noise: Standard deviation of the noise on rotations, as a fraction of ``noise``.
        cameras: Cameras to record.
        image_size: Height and width of the pictures in pixels.
        render_profile: One of ``RENDER_PROFILES``; a policy that clones the episodes remembers it.
        workers: Worker processes.
        seed: Seed of the noise.
        max_steps: Step limit of an attempt; the suite's own if left out.
        progress: Called with the number of newly settled episodes, those found in the files included.

    Returns:
        Task index to file.

    Raises:
        ConfigError: No expert solves a task, or there are no states.
        SimulatorError: Some episodes failed every attempt; all others are in the files.
    """
    if not states:
        raise ConfigError("No initial states were given.", "Give at least one, for example 0-29.")
    chosen = get_suite(suite)
    writers: dict[int, DemonstrationWriter] = {}
    for task in dict.fromkeys(tasks):
        get_expert(suite, task)
        described = chosen.task(task)
        file = demonstration_file(folder, described.name)
        writers[task] = DemonstrationWriter(
            file, suite, described.name, described.instruction, image_size, render_profile
        )
    jobs = [
        _Job(
            suite=suite,
            task=task,
            index=index,
            init_state=int(states[index % len(states)]),
            noise=noise,
            rotation_noise=rotation_noise,
            seed=seed,
            max_steps=chosen.max_steps if max_steps is None else max_steps,
            cameras=tuple(cameras),
            image_size=image_size,
            render_profile=render_profile,
        )
        for task, writer in writers.items()
        for index in range(episodes)
        if index not in writer.indices
    ]
    report = progress or (lambda count: None)
    report(len(writers) * episodes - len(jobs))
    failed = []
    for job, episode in run_jobs(_collect_episode, jobs, workers):
        if episode is None:
            failed.append(job)
        else:
            _write(writers[job.task], job, episode)
        report(1)
    if failed:
        listing = ", ".join(f"task {job.task} from state {job.init_state}" for job in failed[:5])
        raise SimulatorError(
            f"The expert failed every attempt at {len(failed)} of {len(jobs)} episodes: {listing}.",
            "All other episodes were saved. Less noise or other initial states may help.",
        )
    return {task: writer.file for task, writer in writers.items()}


def run_jobs(work: Callable[[_Task], _Made], jobs: Sequence[_Task], workers: int) -> Iterator[tuple[_Task, _Made]]:
    """Do jobs in worker processes and yield them with what they made as they are done.

    Few are in flight, so that little memory waits.

    Args:
        work: A function of a module, which other processes can import.
        jobs: Its arguments.
        workers: Processes.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    waiting = iter(jobs)
    running: dict[Future[_Made], _Task] = {}
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        try:
            while True:
                while len(running) < 2 * workers and (job := next(waiting, None)) is not None:
                    running[pool.submit(work, job)] = job
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            # On Ctrl-C or an error, do not sit through the queue.
            pool.shutdown(wait=True, cancel_futures=True)


def _write(writer: DemonstrationWriter, job: _Job, episode: ExpertEpisode) -> None:
    writer.write(
        Demonstration(
            task=writer.task,
            instruction=writer.instruction,
            index=job.index,
            actions=episode.actions.astype(np.float32),
            labels=episode.labels.astype(np.float32),
            proprioception=episode.proprioception,
            images=episode.images,
            states=episode.states,
            joints=episode.joints,
            init_state=job.init_state,
            object_names=episode.object_names,
            object_positions=episode.object_positions,
        ),
        attributes={"noise": job.noise, "seed": job.seed},
    )
