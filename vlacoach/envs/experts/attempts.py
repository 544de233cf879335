"""Attempts of known quality, to measure rewards against: experts who stop knowing what they do at a chosen moment.

How close a failure came is not in the simulator's state in general, but here it is known by construction: whoever
followed the expert for nine tenths of its way came closer than whoever followed it for a tenth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlacoach.data.rollouts import RecordedEpisode
from vlacoach.envs.experts.collection import run_jobs
from vlacoach.envs.experts.rollout import ROTATION_NOISE, get_expert, run_expert
from vlacoach.envs.simulator import ACTION_DIM, Simulator, UnstableSimulationError
from vlacoach.errors import UnknownNameError
from vlacoach.profiles import RenderProfile

EXPERT, NOISY_EXPERT, NEAR_MISS, GROSS_FAILURE = "expert", "noisy-expert", "near-miss", "gross-failure"
SOURCES = (EXPERT, NOISY_EXPERT, NEAR_MISS, GROSS_FAILURE)

FOLLOWED = {NEAR_MISS: (0.7, 0.9), GROSS_FAILURE: (0.0, 0.25)}
"""Share of the expert's episode that is followed, drawn uniformly, before the attempt wanders off."""

_NOISE = {EXPERT: 0.0, NOISY_EXPERT: 0.8, NEAR_MISS: 0.1, GROSS_FAILURE: 0.1}
_WANDER, _MEMORY = 0.5, 0.8


@dataclass(frozen=True)
class Attempt:
    """One attempt to make; a process needs nothing else to make it, always the same.

    Attributes:
        suite: Name of the suite.
        task: Index of the task; it must have an expert.
        init_state: Initial state, 0 to 49.
        source: One of ``SOURCES``.
        seed: Decides noise, the moment of wandering off, and where to.
        max_steps: Step limit.
        chunk_size: Actions between two looks.
        cameras: Whose pictures are taken.
        image_size: Side of a picture in pixels.
        render_profile: One of ``RENDER_PROFILES``.
    """

    suite: str
    task: int
    init_state: int
    source: str
    seed: int
    max_steps: int = 120
    chunk_size: int = 8
    cameras: tuple[str, ...] = ("agentview",)
    image_size: int = 128
    render_profile: RenderProfile = "fast"

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UnknownNameError("kind of attempt", self.source, SOURCES)
        get_expert(self.suite, self.task)


def attempt_all(attempts: Sequence[Attempt], workers: int = 2) -> Iterator[RecordedEpisode]:
    """Make attempts in worker processes and yield them as they are done.

    Whether an attempt succeeded is the simulator's word: a noisy expert may fail, and whoever wanders off may stumble
    into the goal. Attempts whose simulation breaks down are left out.
    """
    for _, episode in run_jobs(make_attempt, attempts, workers):
        if episode is not None:
            yield episode


_simulators: dict[tuple[str, tuple[str, ...], int, RenderProfile], Simulator] = {}
"""Simulators of this process: renderers must not be replaced."""


def make_attempt(attempt: Attempt) -> RecordedEpisode | None:
    """Make one attempt; None if the simulation broke down."""
    key = (attempt.suite, attempt.cameras, attempt.image_size, attempt.render_profile)
    if key not in _simulators:
        suite, cameras, size, profile = key
        _simulators[key] = Simulator(suite, cameras=cameras, image_size=size, render_profile=profile)
    simulator = _simulators[key]
    rng = np.random.default_rng((attempt.seed, attempt.task, attempt.init_state, SOURCES.index(attempt.source)))
    try:
        return _play(simulator, attempt, rng)
    except UnstableSimulationError:
        return None


def _play(simulator: Simulator, attempt: Attempt, rng: np.random.Generator) -> RecordedEpisode:
    follow = attempt.max_steps
    if attempt.source in FOLLOWED:
        whole = run_expert(simulator, 0, attempt.task, attempt.init_state, max_steps=attempt.max_steps)
        follow = round(rng.uniform(*FOLLOWED[attempt.source]) * whole.length)
    simulator.reset(0, attempt.task, attempt.init_state)
    frames = [_look(simulator)]
    success, length = False, 0
    for action in _actions(simulator, attempt, follow, rng):
        success, length = simulator.step(0, action), length + 1
        ended = success or length == attempt.max_steps
        if ended or length % attempt.chunk_size == 0:
            frames.append(_look(simulator))
        if ended:
            break
    return RecordedEpisode(
        suite=attempt.suite,
        task=attempt.task,
        init_state=attempt.init_state,
        instruction=simulator.suite.task(attempt.task).instruction,
        source=attempt.source,
        success=success,
        length=length,
        frames=np.stack(frames),
    )


def _look(simulator: Simulator) -> NDArray[np.uint8]:
    pictures = list(simulator.render(0).values())
    return pictures[0] if len(pictures) == 1 else np.stack(pictures)


def _actions(
    simulator: Simulator, attempt: Attempt, follow: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    scale = _NOISE[attempt.source] * np.array([1.0] * 3 + [ROTATION_NOISE] * 3 + [0.0])
    gripper = -1.0
    expert = get_expert(attempt.suite, attempt.task)(simulator.view(0))
    for _, action in zip(range(follow), expert, strict=False):
        gripper = action[-1]
        yield np.clip(action + scale * rng.standard_normal(ACTION_DIM), -1.0, 1.0)
    drift = np.zeros(ACTION_DIM)
    while True:
        # A slow random walk of the hand's speed; the fingers stay as they are, so that what was grasped stays grasped.
        noise = rng.standard_normal(ACTION_DIM) * np.array([1.0] * 3 + [ROTATION_NOISE] * 3 + [0.0])
        drift = _MEMORY * drift + np.sqrt(1.0 - _MEMORY**2) * _WANDER * noise
        yield np.append(np.clip(drift[:-1], -1.0, 1.0), gripper)
