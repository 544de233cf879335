"""LIBERO as a Gymnasium vector environment: worker processes, each with many worlds on shared models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from vlacoach.envs.episodes import Outcome, action_space, observation_key, observation_space
from vlacoach.envs.libero import RESET_OPTIONS, LiberoEnv
from vlacoach.envs.perturbations import Perturbation, PerturbedEpisode, check_perturbations
from vlacoach.envs.rendering import find_gl_backend
from vlacoach.envs.rephrasing import rephrase
from vlacoach.envs.simulator import SETTLE_STEPS
from vlacoach.envs.suites import FRESH_STATE, NUM_INITIAL_STATES, get_suite
from vlacoach.envs.workers import Pending, WorkerPool, WorkerSettings
from vlacoach.errors import ConfigError, UnknownNameError
from vlacoach.profiles import RENDER_PROFILES, RenderProfile


class LiberoVectorEnv(gymnasium.vector.VectorEnv[dict[str, Any], NDArray[np.float32], NDArray[Any]]):
    """``num_envs`` LIBERO worlds, dealt to worker processes; observations and actions as ``LiberoEnv``, batched.

    Worlds may be at different tasks. With ``AutoresetMode.DISABLED``, the default, a finished world stands still
    (no reward, ``info["executed"]`` 0) until ``reset(options={"reset_mask": ...})`` starts it anew; rollouts of
    groups use this. ``NEXT_STEP`` and ``SAME_STEP`` work as Gymnasium defines them.

    A worker process that dies or hangs, or a simulation that becomes unstable, does not end the run: the process is
    replaced, and the worlds it had come back truncated at the next step, with ``info["invalid"]`` set. They are neither
    successes nor failures.

    Args:
        num_envs: Number of worlds.
        suite: Name of the suite.
        task: Task of every episode; None draws one at each reset.
        workers: Worker processes; None for one a core.
        chunk_size: Actions a step; None for single actions.
        cameras: Cameras to observe.
        image_size: Height and width of pictures in pixels.
        render_profile: One of ``RENDER_PROFILES``.
        max_steps: Step limit; None for the suite's.
        settle_steps: Steps of doing nothing after a reset.
        autoreset_mode: One of Gymnasium's three.
        max_episode_steps: Gymnasium's name for ``max_steps``, which wins over it.
        worker_timeout: Seconds without an answer after which a worker counts as hanging. Compiling a scene for the
            first time is part of an answer.
        exact: Solve for contacts as LIBERO does; see :class:`~vlacoach.envs.simulator.Simulator`.
        threads: Threads of each worker that step its worlds; None shares the cores out among the workers. Fewer workers
            with more threads take less memory, but draw on fewer cores: each worker's pictures are drawn by one.
        perturbations: What to perturb in each episode; at most one perturbation of each axis.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's own convention
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        num_envs: int = 1,
        suite: str = "libero_goal",
        task: int | None = None,
        workers: int | None = None,
        chunk_size: int | None = None,
        cameras: Sequence[str] = ("agentview",),
        image_size: int = 128,
        render_profile: RenderProfile = "fast",
        max_steps: int | None = None,
        settle_steps: int = SETTLE_STEPS,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        worker_timeout: float = 300.0,
        threads: int | None = None,
        exact: bool = False,
        perturbations: Sequence[Perturbation] = (),
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs is {num_envs}.", "Use at least one environment.")
        if render_profile not in RENDER_PROFILES:
            raise UnknownNameError("render profile", render_profile, RENDER_PROFILES)
        if render_mode not in (None, *LiberoEnv.metadata["render_modes"]):
            raise UnknownNameError("render mode", render_mode, LiberoEnv.metadata["render_modes"])
        self.num_envs = num_envs
        self.suite = get_suite(suite)
        self.task = None if task is None else self.suite.task(task).index
        self.chunk_size = chunk_size
        self.max_steps = max_episode_steps or max_steps or self.suite.max_steps
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = observation_space(cameras, image_size, len(self.suite.tasks))
        self.single_action_space = action_space(chunk_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._cameras = tuple(cameras)
        self._task_of = np.zeros(num_envs, dtype=np.int64)
        self._init_state_of = np.zeros(num_envs, dtype=np.int64)
        self._perturbations = check_perturbations(perturbations)
        self._perturbation_seed = 0
        self._instruction_of = np.full(num_envs, self.suite.tasks[0].instruction, dtype=object)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._done = np.ones(num_envs, dtype=np.bool_)
        backend = find_gl_backend()
        cores = os.cpu_count() or 1
        count = max(1, min(num_envs, workers or cores))
        threads = max(1, cores // count) if threads is None else threads
        if threads < 1:
            raise ConfigError(f"threads is {threads}.", "Use at least one, or None for a share of the cores.")
        shares = np.array_split(np.arange(num_envs), count)
        settings = [
            WorkerSettings(
                suite, len(share), self._cameras, image_size, render_profile, self.max_steps, settle_steps, backend,
                int(share[0]), num_envs, threads, exact,
            )
            for share in shares
        ]  # fmt: skip
        self._pool = WorkerPool(settings, worker_timeout)

    @property
    def processes(self) -> list[Any]:
        """The worker processes."""
        return self._pool.processes

    @property
    def workers_lost(self) -> int:
        """Worker processes that died or hung so far, and were replaced."""
        return self._pool.replaced

    def perturb(self, perturbations: Sequence[Perturbation], seed: int = 0) -> None:
        """Perturb the episodes that are started from now on; those that are under way stay as they are.

        Args:
            perturbations: At most one of each axis; none for plain episodes.
            seed: What they are drawn from, with task and initial state. A later ``reset(seed=...)`` replaces it.

        Raises:
            ConfigError: An axis comes twice.
        """
        self._perturbations = check_perturbations(perturbations)
        self._perturbation_seed = seed

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episodes.

        Args:
            seed: Seeds the choice of tasks and initial states, and the perturbations of these and the following
                episodes (an integer; of a list, the first).
            options: ``task`` and ``init_state``, each an integer or an array (N,), choose them; where absent they
                are drawn. An ``init_state`` of -1 is none of the fifty official ones but a fresh one, drawn from the
                task's regions; 1000 and up is the fresh one of that number. ``reset_mask``, bool (N,), limits the
                reset to some worlds; their rows alone are used.
                ``perturbations`` takes the place of the environment's own in the episodes that are started now, and
                ``perturbation_seed``, an integer or an array (N,), that of ``seed`` in drawing them.
        """
        seed = seed[0] if isinstance(seed, list) else seed
        super().reset(seed=seed)
        if seed is not None:
            self._perturbation_seed = seed
        observation, _, _, _, info = self.finish(self.begin_reset(options))
        return observation, info

    def begin_reset(self, options: dict[str, Any] | None = None) -> Pending:
        """Start episodes as :meth:`reset` does, without waiting; :meth:`finish` gives the observation."""
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs)), dtype=np.bool_)
        if unknown := set(options) - set(RESET_OPTIONS):
            raise UnknownNameError("reset option", unknown.pop(), [*RESET_OPTIONS, "reset_mask"])
        if mask.shape != (self.num_envs,):
            raise ConfigError(f"reset_mask has shape {mask.shape}.", f"It must have shape ({self.num_envs},).")
        chosen_task = options.get("task", self.task)
        tasks = self._choose(chosen_task, len(self.suite.tasks), "task")
        states = self._choose(options.get("init_state"), NUM_INITIAL_STATES, "init_state")
        seeds = self._choose(options.get("perturbation_seed", self._perturbation_seed), 1, "perturbation_seed")
        perturbations = check_perturbations(options.get("perturbations", self._perturbations))
        return self._restart(np.flatnonzero(mask), tasks, states, perturbations, seeds)

    def _choose(self, given: ArrayLike | None, count: int, name: str) -> NDArray[np.int64]:
        if given is None:
            return self.np_random.integers(count, size=self.num_envs)
        values = np.asarray(given, dtype=np.int64)
        if values.shape not in ((), (self.num_envs,)):
            raise ConfigError(f"{name} has shape {values.shape}.", f"Give one integer, or an array ({self.num_envs},).")
        return np.broadcast_to(values, (self.num_envs,))

    def _restart(
        self,
        worlds: NDArray[np.int64],
        tasks: NDArray[np.int64],
        states: NDArray[np.int64],
        perturbations: tuple[Perturbation, ...],
        seeds: NDArray[np.int64],
    ) -> Pending:
        for world in worlds:
            self.suite.task(int(tasks[world]))
        self._task_of[worlds], self._init_state_of[worlds] = tasks[worlds], states[worlds]
        self._done[worlds] = False
        self._length[worlds] = 0
        state_seeds = np.zeros(self.num_envs, dtype=np.int64)
        if np.any(states[worlds] == FRESH_STATE):
            state_seeds = self.np_random.integers(2**32, size=self.num_envs)
        jobs: dict[int, tuple[Any, ...]] = {}
        for world in worlds.tolist():
            task, state, state_seed = int(tasks[world]), int(states[world]), int(state_seeds[world])
            episode = PerturbedEpisode(perturbations, int(seeds[world]), task, state, state_seed)
            self._instruction_of[world] = rephrase(self.suite.tasks[task].instruction, episode)
            jobs[world] = (task, state, state_seed, episode)
        return self._pool.begin("reset", jobs)

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[dict[str, Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Execute one action, or one chunk, in every world that is not finished."""
        finished = self._done.copy()
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._reset_drawn(finished)
        return self.finish(self.begin_step(actions, ~finished))

    def begin_step(self, actions: NDArray[np.float32], worlds: NDArray[np.bool_]) -> Pending:
        """Execute a chunk in some worlds without waiting; meanwhile others can be looked at.

        Args:
            actions: (N, ...) as :meth:`step` takes them; only the rows of ``worlds`` count.
            worlds: (N,) bool; finished worlds among them stand still.

        Returns:
            What to give to :meth:`finish`.
        """
        batch = np.asarray(actions, dtype=np.float64)
        if batch.shape != self.action_space.shape:
            raise ConfigError(f"The actions have shape {batch.shape}.", f"They must have {self.action_space.shape}.")
        if not np.all(np.isfinite(batch)):
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(batch))[0])
            raise ConfigError(
                f"The action of world {where[0]} is {batch[where]} at index {where[1:]}.", "Actions must be finite."
            )
        batch = batch.reshape(self.num_envs, -1, batch.shape[-1])
        return self._pool.begin("step", {int(w): (batch[w],) for w in np.flatnonzero(worlds & ~self._done)})

    def finish(
        self, pending: Pending
    ) -> tuple[dict[str, Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Wait for begun work; returns what :meth:`step` returns, of which the rows of the worlds at work count."""
        outcomes = self._pool.wait(pending)
        return self._result({world: outcome for world, outcome in outcomes.items() if outcome is not None})

    def _reset_drawn(self, mask: NDArray[np.bool_]) -> None:
        if np.any(mask):
            tasks = self._choose(self.task, len(self.suite.tasks), "task")
            states = self._choose(None, NUM_INITIAL_STATES, "init_state")
            seeds = np.full(self.num_envs, self._perturbation_seed)
            self.finish(self._restart(np.flatnonzero(mask), tasks, states, self._perturbations, seeds))

    def _result(
        self, outcomes: dict[int, Outcome]
    ) -> tuple[dict[str, Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        success, truncated, invalid = (np.zeros(self.num_envs, dtype=np.bool_) for _ in range(3))
        executed, length = (np.zeros(self.num_envs, dtype=np.int64) for _ in range(2))
        for world, outcome in outcomes.items():
            success[world], truncated[world] = outcome.success, outcome.truncated
            invalid[world], executed[world] = outcome.invalid, outcome.executed
            # A process that was lost does not know how far its worlds had come.
            self._length[world] = length[world] = max(outcome.length, self._length[world])
        ended = success | truncated
        self._done |= ended
        info = self._info(executed)
        info |= {"success": success, "_success": np.ones_like(success)}
        if np.any(ended):
            statistics = {"r": success.astype(np.float64), "_r": ended, "l": length, "_l": ended}
            info |= {"episode": statistics, "_episode": ended}
        if np.any(invalid):
            info |= {"invalid": invalid, "_invalid": invalid}
        observation = self._observation()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and np.any(ended):
            final = np.full(self.num_envs, None, dtype=object)
            for index in np.flatnonzero(ended):
                final[index] = {key: value[index] for key, value in observation.items()}
            info |= {"final_obs": final, "_final_obs": ended}
            info |= {
                "final_info": {"episode": info.pop("episode"), "_episode": info.pop("_episode")},
                "_final_info": ended,
            }
            self._reset_drawn(ended)
            observation = self._observation()
        return observation, success.astype(np.float64), success, truncated, info

    def _observation(self) -> dict[str, Any]:
        # Copies: callers keep observations, and the workers write the next ones into the same memory.
        pictures = {observation_key(name): self._pool.images[:, i].copy() for i, name in enumerate(self._cameras)}
        return {**pictures, "state": self._pool.state.copy(), "task": self._task_of.copy()}

    def _info(self, executed: NDArray[np.int64]) -> dict[str, Any]:
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        values = {
            "instruction": self._instruction_of.copy(),
            "init_state": self._init_state_of.copy(),
            "executed": executed,
        }
        return {**values, **{f"_{name}": everyone.copy() for name in values}}

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Each world's latest picture of the first camera, upright and not mirrored."""
        if self.render_mode is None:
            return None
        return tuple(np.ascontiguousarray(picture[:, ::-1]) for picture in self._pool.images[:, 0])

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the workers; none is left behind."""
        self._pool.close()
