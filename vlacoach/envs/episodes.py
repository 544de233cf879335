"""What the single environment and the vector environment's workers share: spaces, and episodes run by the chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vlacoach.envs.perturbations import PerturbedEpisode
from vlacoach.envs.simulator import ACTION_DIM, PROPRIOCEPTION_DIM, SETTLE_STEPS, Simulator, UnstableSimulationError
from vlacoach.errors import ConfigError

CAMERA_KEYS = {"agentview": "image", "robot0_eye_in_hand": "wrist_image"}
"""Observation key of LIBERO's two policy cameras; any other camera is observed under its own name."""

# Table scenes stay within 3 m of the robot's base; orientations are axis-angle below a full turn.
_STATE_BOUND = np.array([3.0] * 3 + [2 * np.pi] * 3 + [0.1] * 2, dtype=np.float32)


def observation_key(camera: str) -> str:
    """Key of a camera's picture in observations."""
    return CAMERA_KEYS.get(camera, camera)


def observation_space(cameras: Sequence[str], image_size: int, num_tasks: int) -> spaces.Dict:
    """Space of one observation.

    Returns:
        ``image`` (and ``wrist_image``) uint8 (H, W, 3), ``state`` float32 (8,) as ``Simulator.proprioception``, and
        ``task``, the index in the suite. The instruction comes in ``info``: Gymnasium's shared memory freezes Text.
    """
    picture = spaces.Box(0, 255, (image_size, image_size, 3), dtype=np.uint8)
    entries: dict[str, spaces.Space[object]] = {observation_key(camera): picture for camera in cameras}
    entries["state"] = spaces.Box(-_STATE_BOUND, _STATE_BOUND, (PROPRIOCEPTION_DIM,), dtype=np.float32)
    entries["task"] = spaces.Discrete(num_tasks)
    return spaces.Dict(entries)


def action_space(chunk_size: int | None) -> spaces.Box:
    """Box(-1, 1) of shape (7,), or (chunk_size, 7) for open-loop chunks."""
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(
            f"chunk_size is {chunk_size}.", "Use a positive number of actions, or None for single actions."
        )
    shape = (ACTION_DIM,) if chunk_size is None else (chunk_size, ACTION_DIM)
    return spaces.Box(-1.0, 1.0, shape, dtype=np.float32)


@dataclass(frozen=True)
class Outcome:
    """What a chunk did.

    Attributes:
        success: The goal holds after the last executed action.
        executed: Actions executed, 1 to K (the successful one included); fewer than K at success or at the limit.
        length: Actions executed in the episode so far.
        truncated: The step limit is reached without success, or the episode is invalid.
        invalid: The simulation became unstable: neither a success nor a failure.
    """

    success: bool
    executed: int
    length: int
    truncated: bool
    invalid: bool = False


class EpisodeRunner:
    """Runs episodes in the worlds of a simulator, a chunk of actions at a time.

    Args:
        simulator: The simulator.
        max_steps: Step limit of an episode.
        settle_steps: Settling steps after each reset.
    """

    def __init__(self, simulator: Simulator, max_steps: int, settle_steps: int = SETTLE_STEPS) -> None:
        self.simulator = simulator
        self.max_steps = max_steps
        self.settle_steps = settle_steps
        self._length = [0] * simulator.num_worlds

    def reset(
        self,
        world: int,
        task: int,
        init_state: int,
        state_seed: int = 0,
        episode: PerturbedEpisode | None = None,
    ) -> None:
        """Start an episode; see :meth:`Simulator.reset`."""
        self.simulator.reset(world, task, init_state, self.settle_steps, state_seed, episode)
        self._length[world] = 0

    def execute(self, world: int, actions: NDArray[np.float64]) -> Outcome:
        """Execute a chunk open loop; stop at success or at the step limit.

        Args:
            world: Index of the world.
            actions: (K, 7).
        """
        executed, success = 0, False
        for action in actions[: self.max_steps - self._length[world]]:
            try:
                success = self.simulator.step(world, action)
            except UnstableSimulationError:
                return Outcome(False, executed, self._length[world], truncated=True, invalid=True)
            executed += 1
            self._length[world] += 1
            if success:
                break
        truncated = not success and self._length[world] >= self.max_steps
        return Outcome(success, executed, self._length[world], truncated)
