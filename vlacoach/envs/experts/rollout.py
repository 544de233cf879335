"""One episode of a scripted expert, clean or with noise on what is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.experts.motion import Expert
from vlacoach.envs.recording import EpisodeRecorder
from vlacoach.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from vlacoach.envs.simulator import Simulator

MODULES = {
    "libero_goal": "vlacoach.envs.experts.goal",
    "libero_spatial": "vlacoach.envs.experts.spatial",
    "libero_object": "vlacoach.envs.experts.objects",
}
"""Module of each suite that has experts; it holds ``EXPERTS``, task index to expert."""

ROTATION_NOISE = 0.3
"""Noise on rotations relative to that on translations."""


def get_experts(suite: str) -> Mapping[int, Expert]:
    """The experts of a suite by task index.

    Raises:
        UnknownNameError: No expert was written for the suite.
    """
    if suite not in MODULES:
        raise UnknownNameError("suite with scripted experts", suite, MODULES)
    experts: Mapping[int, Expert] = import_module(MODULES[suite]).EXPERTS
    return experts


def get_expert(suite: str, task: int) -> Expert:
    """The expert of one task.

    Raises:
        ConfigError: No expert was written for the task.
    """
    experts = get_experts(suite)
    if task not in experts:
        listing = ", ".join(str(index) for index in sorted(experts))
        raise ConfigError(f"No scripted expert solves task {task} of {suite}.", f"Tasks with an expert: {listing}.")
    return experts[task]


@dataclass
class ExpertEpisode:
    """What an expert did; row t of every array belongs to the moment before action t.

    Attributes:
        success: Whether the task's goal was reached.
        labels: (T, 7) float64, the expert's own actions, in [-1, 1].
        actions: (T, 7) float64, what was executed: the labels, with noise if there was any.
        states: (T, D) float64, as ``Simulator.state``.
        proprioception: (T, 8) float32, as ``Simulator.proprioception``.
        joints: (T, 7) float64, arm joint positions in rad.
        images: Camera to (T, H, W, 3) uint8, as ``Simulator.render``; empty if nothing was rendered.
        object_names: Names of objects and fixtures.
        object_positions: (T, K, 3) float32, their positions in m.
    """

    success: bool
    labels: NDArray[np.float64]
    actions: NDArray[np.float64]
    states: NDArray[np.float64]
    proprioception: NDArray[np.float32]
    joints: NDArray[np.float64]
    object_names: tuple[str, ...]
    object_positions: NDArray[np.float32]
    images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of actions executed."""
        return len(self.actions)


def run_expert(
    simulator: Simulator,
    world: int,
    task: int,
    init_state: int,
    *,
    noise: float = 0.0,
    rotation_noise: float = ROTATION_NOISE,
    rng: np.random.Generator | None = None,
    max_steps: int | None = None,
    render: bool = False,
) -> ExpertEpisode:
    """Reset a world and let the task's expert act until success or until the step limit.

    With noise this is DART (Laskey et al., 2017): the expert's action is disturbed before it is executed, the
    label stays clean, and the data therefore shows how to come back from small mistakes.

    Args:
        simulator: The simulator.
        world: Index of the world to use.
        task: Index of the task in the simulator's suite.
        init_state: Initial state, 0 to 49.
        noise: Standard deviation of the Gaussian noise on the three translations (in units of the action).
        rotation_noise: Standard deviation of the noise on rotations, as a fraction of ``noise``.
        rng: Source of the noise; needed if there is any.
        max_steps: Step limit; the suite's own if left out.
        render: Whether to record the simulator's cameras.

    Returns:
        The episode; the gripper command is never disturbed.

    Raises:
        ConfigError: No expert solves the task, or there is noise and no ``rng``.
        UnstableSimulationError: MuJoCo reports a bad state.
    """
    if noise > 0 and rng is None:
        raise ConfigError("Noise needs a random generator.", "Pass rng=numpy.random.default_rng(seed).")
    expert = get_expert(simulator.suite.name, task)
    simulator.reset(world, task, init_state)
    recorder = EpisodeRecorder(simulator, world, render)
    limit = simulator.suite.max_steps if max_steps is None else max_steps
    scale = np.array([noise] * 3 + [noise * rotation_noise] * 3 + [0.0])
    labels: list[NDArray[np.float64]] = []
    actions: list[NDArray[np.float64]] = []
    success = False
    for label in expert(simulator.view(world)):
        recorder.observe()
        action = label if rng is None else np.clip(label + scale * rng.standard_normal(7), -1.0, 1.0)
        labels.append(label)
        actions.append(action)
        success = simulator.step(world, action)
        if success or len(actions) >= limit:
            break
    return ExpertEpisode(
        success=success,
        labels=np.stack(labels),
        actions=np.stack(actions),
        **recorder.arrays(),
    )
