"""One LIBERO world to be played by hand; all of it belongs to the thread that resets it first, as GL contexts do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.simulator import ACTION_DIM, Simulator
from vlacoach.envs.suites import FIRST_FRESH_STATE, FRESH_STATE, NUM_INITIAL_STATES

OPEN, CLOSED = -1.0, 1.0
"""What the last number of an action does to the gripper."""

_GRIPPER_STEPS = 10
"""Control steps in which the fingers come to where they are told."""


@dataclass(frozen=True)
class View:
    """What there is to see of the world.

    Attributes:
        picture: (H, W, 3) uint8, as a person sees the scene.
        instruction: What is to be done.
        state: Initial state, or -1 for a fresh one.
        seed: Seed of a fresh state.
        step: Control steps since the reset.
        success: Whether the goal holds.
        action: (7,) last action; zeros after a reset.
        hand: (3,) position of the hand in meters.
    """

    picture: NDArray[np.uint8]
    instruction: str
    state: int
    seed: int
    step: int
    success: bool
    action: NDArray[np.float64]
    hand: NDArray[np.float64]


class World(Protocol):
    """What is played."""

    def reset(self) -> View:
        """Start anew from the same state."""

    def next_state(self) -> View:
        """Start from the next state."""

    def move(self, motion: NDArray[np.float64]) -> View:
        """Take one control step.

        Args:
            motion: (6,) translation and rotation, each in [-1, 1].
        """

    def toggle_gripper(self) -> View:
        """Open or close the gripper."""


class SimulatedWorld:
    """A task of a suite, in the simulator.

    Args:
        suite: Name of the suite.
        task: Index of the task.
        state: Initial state to begin with, or -1 for a fresh one.
        seed: Seed of a fresh state.
        image_size: Height and width of pictures in pixels.
    """

    def __init__(self, suite: str, task: int, state: int = 0, seed: int = 0, image_size: int = 128) -> None:
        self._simulator = Simulator(suite, image_size=image_size)
        self._task = task
        self._state = state
        self._seed = seed
        self._gripper = OPEN
        self._step = 0
        self._action = np.zeros(ACTION_DIM)

    def reset(self) -> View:
        """Start anew from the same state.

        Raises:
            SimulatorError: The simulator or its renderer does not work.
        """
        self._simulator.reset(0, self._task, self._state, state_seed=self._seed)
        self._gripper, self._step = OPEN, 0
        self._action = np.zeros(ACTION_DIM)
        return self._view(self._simulator.success(0))

    def next_state(self) -> View:
        """Start from the next official state, or from another fresh one."""
        if self._state == FRESH_STATE:
            self._seed = (self._seed + 1) % 2**32
        elif self._state >= FIRST_FRESH_STATE:
            self._state += 1
        else:
            self._state = (self._state + 1) % NUM_INITIAL_STATES
        return self.reset()

    def move(self, motion: NDArray[np.float64]) -> View:
        """Take one control step.

        Args:
            motion: (6,) translation and rotation, each in [-1, 1].

        Raises:
            UnstableSimulationError: The world has to be reset.
        """
        return self._act(np.append(motion, self._gripper), 1)

    def toggle_gripper(self) -> View:
        """Open or close the gripper, and wait until it is."""
        self._gripper = -self._gripper
        return self._act(np.array([0.0] * 6 + [self._gripper]), _GRIPPER_STEPS)

    def _act(self, action: NDArray[np.float64], steps: int) -> View:
        self._action = action
        success = False
        for _ in range(steps):
            success = self._simulator.step(0, action)
            self._step += 1
        return self._view(success)

    def _view(self, success: bool) -> View:
        (picture,) = self._simulator.render(0).values()
        view = self._simulator.view(0)
        return View(
            picture=np.ascontiguousarray(picture[:, ::-1]),  # Policies see the scene mirrored; people should not.
            instruction=view.task.instruction,
            state=self._state,
            seed=self._seed,
            step=self._step,
            success=success,
            action=self._action.copy(),
            hand=view.end_effector()[0],
        )
