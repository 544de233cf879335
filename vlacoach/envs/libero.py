"""LIBERO as a Gymnasium environment: one world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.episodes import EpisodeRunner, action_space, observation_key, observation_space
from vlacoach.envs.perturbations import Perturbation, PerturbedEpisode, check_perturbations
from vlacoach.envs.rephrasing import rephrase
from vlacoach.envs.simulator import SETTLE_STEPS, Simulator
from vlacoach.envs.suites import FRESH_STATE, NUM_INITIAL_STATES, get_suite
from vlacoach.errors import ConfigError, UnknownNameError
from vlacoach.profiles import RENDER_PROFILES, RenderProfile

Observation = dict[str, Any]

RESET_OPTIONS = ("task", "init_state", "perturbations", "perturbation_seed")
"""What ``reset(options=...)`` takes."""


class LiberoEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One LIBERO world.

    Observation: ``image`` uint8 (H, W, 3), turned as published policies have it (and ``wrist_image``), ``state``
    float32 (8,): hand position (m), axis-angle (rad), finger positions (m), and ``task``, an index. ``info`` holds
    the ``instruction``, ``init_state``, ``success``, and, when an episode ends, ``episode`` with ``r`` and ``l``.

    Action: Box(-1, 1) of 7: translation (x 0.05 m), rotation vector (x 0.5 rad), gripper (-1 opens, +1 closes);
    or a chunk (K, 7), executed open loop with one picture at its end. ``info["executed"]`` says how many ran.

    Reward 1 and ``terminated`` at success, ``truncated`` at the suite's step limit.

    Args:
        suite: Name of the suite.
        task: Task of every episode; None draws one at each reset.
        chunk_size: Actions a step; None for single actions of shape (7,).
        cameras: Cameras to observe.
        image_size: Height and width of pictures in pixels.
        render_profile: One of ``RENDER_PROFILES``.
        max_steps: Step limit; None for the suite's.
        settle_steps: Steps of doing nothing after a reset.
        render_mode: ``"rgb_array"`` or None.
        exact: Solve for contacts as LIBERO does; see :class:`~vlacoach.envs.simulator.Simulator`.
        perturbations: What to perturb in each episode; at most one perturbation of each axis.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        suite: str = "libero_goal",
        task: int | None = None,
        chunk_size: int | None = None,
        cameras: Sequence[str] = ("agentview",),
        image_size: int = 128,
        render_profile: RenderProfile = "fast",
        max_steps: int | None = None,
        settle_steps: int = SETTLE_STEPS,
        render_mode: str | None = None,
        exact: bool = False,
        perturbations: Sequence[Perturbation] = (),
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UnknownNameError("render mode", render_mode, self.metadata["render_modes"])
        if render_profile not in RENDER_PROFILES:
            raise UnknownNameError("render profile", render_profile, RENDER_PROFILES)
        self.suite = get_suite(suite)
        self.task = None if task is None else self.suite.task(task).index
        self.render_mode = render_mode
        self.observation_space = observation_space(cameras, image_size, len(self.suite.tasks))
        self.action_space = action_space(chunk_size)  # type: ignore[assignment]
        # Scenes and the GL context are made at the first reset, in the process that uses them.
        simulator = Simulator(self.suite, 1, cameras, image_size, render_profile, exact=exact)
        self._runner = EpisodeRunner(simulator, max_steps or self.suite.max_steps, settle_steps)
        self._perturbations = check_perturbations(perturbations)
        self._perturbation_seed = 0
        self._instruction = ""
        self._task = 0
        self._init_state = 0
        self._pictures: dict[str, NDArray[np.uint8]] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds the choice of task and initial state, and the perturbations of this and the following episodes.
            options: ``task`` and ``init_state`` choose them; each is drawn uniformly where absent. An ``init_state`` of
                -1 is none of the fifty official ones but a fresh one, drawn from the task's regions; 1000 and up is
                the fresh one of that number.
                ``perturbations`` takes the place of the environment's own for this episode, and ``perturbation_seed``
                that of ``seed`` in drawing them.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - set(RESET_OPTIONS):
            raise UnknownNameError("reset option", unknown.pop(), RESET_OPTIONS)
        task = options.get("task", self.task)
        self._task = int(self.np_random.integers(len(self.suite.tasks))) if task is None else int(task)
        init_state = options.get("init_state")
        drawn = int(self.np_random.integers(NUM_INITIAL_STATES))
        self._init_state = drawn if init_state is None else int(init_state)
        state_seed = int(self.np_random.integers(2**32)) if self._init_state == FRESH_STATE else 0
        if seed is not None:
            self._perturbation_seed = seed
        episode = PerturbedEpisode(
            check_perturbations(options.get("perturbations", self._perturbations)),
            int(options.get("perturbation_seed", self._perturbation_seed)),
            self._task,
            self._init_state,
            state_seed,
        )
        self._runner.reset(0, self._task, self._init_state, state_seed, episode)
        self._instruction = rephrase(self.suite.task(self._task).instruction, episode)
        return self._observe(), self._info(success=False, executed=0)

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute one action, or one chunk."""
        actions = np.asarray(action, dtype=np.float64)
        if actions.shape != self.action_space.shape:
            raise ConfigError(
                f"The action has shape {actions.shape}.", f"This environment takes {self.action_space.shape}."
            )
        outcome = self._runner.execute(0, np.atleast_2d(actions))
        info = self._info(success=outcome.success, executed=outcome.executed)
        if outcome.invalid:
            info["invalid"] = True
        if outcome.success or outcome.truncated:
            info["episode"] = {"r": float(outcome.success), "l": outcome.length}
        return self._observe(), float(outcome.success), outcome.success, outcome.truncated, info

    def _observe(self) -> Observation:
        self._pictures = self._runner.simulator.render(0)
        observation: Observation = {observation_key(name): picture for name, picture in self._pictures.items()}
        observation["state"] = self._runner.simulator.proprioception(0)
        observation["task"] = self._task
        return observation

    def _info(self, *, success: bool, executed: int) -> dict[str, Any]:
        return {
            "instruction": self._instruction,
            "init_state": self._init_state,
            "success": success,
            "executed": executed,
        }

    def render(self) -> NDArray[np.uint8] | None:
        """The first camera's latest picture as a person sees the scene: upright and not mirrored."""
        if self.render_mode is None or not self._pictures:
            return None
        return np.ascontiguousarray(next(iter(self._pictures.values()))[:, ::-1])
