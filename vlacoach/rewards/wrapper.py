"""The self-referential reward as a Gymnasium wrapper: usable with any learner, without the agent of this project.

The rule compares the failures of a batch with each other, but a wrapper sees one episode end at a time. So the batch of
a failure is the failures of its task that ended last, itself among them, and the references are those of a bank
(:class:`~vlacoach.rewards.bank.ReferenceBank`), which grows by the successes that are seen.

With ``dense=True`` each step is paid by potential-based shaping (Ng, Harada and Russell, ICML 1999):
``discount * phi(next) - phi(now)``, with the closeness ``phi = -d / (d + d_0)``. Here d is the distance of what the
episode has shown so far from the nearest reference, and d_0 that of its first look, so that phi is -1/2 at first, 0 at
a reference and -1 infinitely far away, whatever the scale of the embedding. References are those known at the episode's
start: a change of phi is always a change of the world. The potential of a terminal state is 0, without which shaping
would change what is optimal (Grzes, AAMAS 2017); it is also what a success comes to, which is where the references are.
A truncated episode has no terminal state: its last closeness stands, and learners that bootstrap go on from it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from vlacoach.errors import ConfigError
from vlacoach.rewards.bank import ReferenceBank, checked_reference
from vlacoach.rewards.scorers import Scorer, check_says_something
from vlacoach.rewards.self_referential import self_referential_reward, success_centers
from vlacoach.rewards.siglip import SiglipScorer
from vlacoach.rewards.trajectory import Trajectory

Observation: TypeAlias = "dict[str, Any]"
Encode: TypeAlias = "Callable[[NDArray[np.uint8]], Tensor]"
"""Pictures (B, H, W, 3), or (B, I, H, W, 3) of several cameras, to patch features (B, P, D)."""

_NOT_PICTURES = ("state", "task")


class SelfReferentialReward(VectorWrapper[Observation, Any, Observation, Any, NDArray[Any]]):
    """Replaces the reward of a vector environment by the self-referential one.

    The reward comes with the last step of an episode: ``success_reward`` (1) for one that terminates, which in the
    environments of this project is success; for one that is truncated, the graded reward of a failure. That is 0 as
    long as no success of its task is known, and half the ceiling for a failure that is the first of its task. Episodes
    that broke down (``info["invalid"]``) get 0, and nothing is learned from them.

    With ``dense``, each step is paid by the change in closeness instead, and success by ``success_reward`` on top. With
    ``discount=1`` the shaping of an episode adds up to ``phi(last) - phi(first)``. An episode that starts before any
    success of its task is known has closeness 0 throughout. ``info["closeness"]`` (N,) float64 says what phi is.

    All autoreset modes work. ``info["episode"]`` and the like stay the environment's own.

    Args:
        envs: Vector environment with observations that hold pictures first, ``task``, and, where the scorer reads it,
            ``state``; ``LiberoVectorEnv`` is one. One step is one look, so it should take as many actions a step as the
            scorer was trained with.
        scorer: Scores; trained already, if it is one that learns.
        bank: Successes to compare with; None starts without any.
        encode: Patch features of pictures, such as ``policy.encode``; None for a scorer that reads none. Runs once for
            each look.
        dense: Pay each step by the change in closeness. The scorer then embeds the episode so far at every step.
        discount: Of the learner, 0 to 1; enters with ``dense`` only.
        learn: Whether successes enter the bank.
        window: Failures of each task that a failure is compared with, at most, beside those of the same step.

    Attributes:
        bank: The successes known; save it with ``bank.save(folder)``.

    Raises:
        ConfigError: Something does not fit; the message says what.
    """

    def __init__(
        self,
        envs: VectorEnv[Observation, Any, NDArray[Any]],
        scorer: Scorer,
        bank: ReferenceBank | None = None,
        *,
        encode: Encode | None = None,
        dense: bool = False,
        discount: float = 1.0,
        learn: bool = True,
        window: int = 32,
    ) -> None:
        super().__init__(envs)
        _check(envs, scorer, encode, discount, window)
        self.scorer = scorer
        self.bank = ReferenceBank() if bank is None else bank
        self.encode = encode
        self.dense = dense
        self.discount = discount
        self.learn = learn
        self._mode = AutoresetMode(envs.metadata["autoreset_mode"])
        self._episodes: dict[int, _Episode] = {}
        self._failures: dict[int, deque[Tensor]] = defaultdict(lambda: deque(maxlen=window))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start episodes; as the environment does, all of them or those of ``options["reset_mask"]``."""
        # Taken first: an environment may empty the options.
        started = _worlds((options or {}).get("reset_mask", np.ones(self.num_envs)))
        observation, info = self.env.reset(seed=seed, options=options)
        broken = _column(info, "invalid", self.num_envs)
        for world in started:
            self._episodes.pop(world, None)
        self._begin([world for world in started if not broken[world]], observation, info)
        return observation, self._with_closeness(info)

    def step(
        self, actions: Any
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step, and pay by the scorer.

        Returns:
            As the environment; rewards (N,) float64.

        Raises:
            NonFiniteError: A feature or an embedding is not finite; names the world as slot.
            VlacoachError: An embedding is missing or all zeros; names the world as slot.
        """
        observation, _, terminated, truncated, info = self.env.step(actions)
        standing = [world for world in range(self.num_envs) if world not in self._episodes]
        ended = terminated | truncated
        broken = _column(info, "invalid", self.num_envs) & ended
        for world in _worlds(broken):
            self._episodes.pop(world, None)
        final = info["final_obs"] if "final_obs" in info else np.full(self.num_envs, None)
        seen = {world: _row(observation, world) if final[world] is None else final[world] for world in self._episodes}
        self._look(seen, info, _column(info, "executed", self.num_envs, default=1))
        reward = np.zeros(self.num_envs)
        finished = {
            world: episode.trajectory(world, bool(terminated[world]))
            for world, episode in self._episodes.items()
            if ended[world]
        }
        if self.learn and self.scorer.compares:
            self.bank.add(self.scorer, finished.values())
        if self.dense:
            self._pay_by_step(reward, terminated)
        else:
            self._pay_at_end(reward, finished)
        info = self._with_closeness(info)
        for world in finished:
            del self._episodes[world]
        if self._mode is AutoresetMode.SAME_STEP:
            self._begin(_worlds(ended), observation, {})
        elif self._mode is AutoresetMode.NEXT_STEP:
            self._begin(standing, observation, info)
        return observation, reward, terminated, truncated, info

    # Rewards

    def _pay_at_end(self, reward: NDArray[np.float64], finished: Mapping[int, Trajectory]) -> None:
        """Write the rewards of finished episodes into ``reward`` (N,)."""
        if not self.scorer.compares:
            reward[list(finished)] = self.scorer.rewards(list(finished.values()))
            return
        lost: dict[int, list[int]] = defaultdict(list)
        for world, trajectory in finished.items():
            if trajectory.success:
                reward[world] = self.scorer.rule.success_reward
            else:
                lost[trajectory.task].append(world)
        for task, worlds in lost.items():
            reward[worlds] = self._grade(task, [finished[world] for world in worlds])

    def _grade(self, task: int, failures: list[Trajectory]) -> NDArray[np.float64]:
        """Rewards of failures of a task that ended in the same step; they enter the window."""
        recent = list(self._failures[task])
        new = [checked_reference(self.scorer, trajectory) for trajectory in failures]
        embeddings = np.stack([self.scorer.embed_reference(one) for one in [*recent, *new]])
        for row, trajectory in zip(embeddings[len(recent) :], failures, strict=True):
            check_says_something("embedding", row, trajectory)
        references, owners = self.bank.embeddings(self.scorer, [task])
        self._failures[task].extend(new)
        rewards = self_referential_reward(
            embeddings,
            np.zeros(len(embeddings), dtype=np.bool_),
            np.full(len(embeddings), task),
            **asdict(self.scorer.rule),
            references=references,
            reference_task=owners,
        )
        return rewards[len(recent) :]

    def _pay_by_step(self, reward: NDArray[np.float64], terminated: NDArray[np.bool_]) -> None:
        """Write what this step is worth to each world at play into ``reward`` (N,)."""
        for world, episode in self._episodes.items():
            now = 0.0 if terminated[world] else self._closeness(world, episode)
            reward[world] = self.discount * now - episode.closeness
            reward[world] += self.scorer.rule.success_reward if terminated[world] else 0.0
            episode.closeness = now

    def _closeness(self, world: int, episode: _Episode) -> float:
        """Potential of what an episode has shown so far, -1 to 0."""
        if episode.centers is None:
            return 0.0
        embedding = self.scorer.embed_all([episode.trajectory(world, success=False)])
        distance = float(cdist(embedding, episode.centers).min())
        if episode.first_distance is None:
            episode.first_distance = distance
        return -distance / (distance + episode.first_distance) if distance > 0 else 0.0

    def _centers(self, task: int) -> NDArray[np.float64] | None:
        """References (C, D) of a task, or None if there are none."""
        if not self.scorer.compares or task not in self.bank.tasks:
            return None
        rule = self.scorer.rule
        points, _ = self.bank.embeddings(self.scorer, [task])
        return success_centers(points, rule.eps, rule.min_samples, rule.rule, rule.neighbor_scale)[0]

    def _with_closeness(self, info: dict[str, Any]) -> dict[str, Any]:
        if not self.dense:
            return info
        closeness, known = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.bool_)
        for world, episode in self._episodes.items():
            closeness[world], known[world] = episode.closeness, True
        return {**info, "closeness": closeness, "_closeness": known}

    # What the worlds show

    def _begin(self, worlds: Iterable[int], observation: Observation, info: Mapping[str, Any]) -> None:
        """Start to keep the looks of worlds whose episode has just begun."""
        rows = {world: _row(observation, world) for world in worlds}
        centers: dict[int, NDArray[np.float64] | None] = {}
        for world, row in rows.items():
            task = int(row["task"])
            if self.dense and task not in centers:
                centers[task] = self._centers(task)
            self._episodes[world] = _Episode(task, centers.get(task))
        self._look(rows, info, None)
        for world in rows if self.dense else ():
            self._episodes[world].closeness = self._closeness(world, self._episodes[world])

    def _look(
        self, rows: Mapping[int, Observation], info: Mapping[str, Any], executed: NDArray[np.int64] | None
    ) -> None:
        """Keep what worlds show now, after the actions they executed; None at the start of an episode."""
        pictures = {
            world: [value for key, value in row.items() if key not in _NOT_PICTURES] for world, row in rows.items()
        }
        features = None
        if self.encode is not None and rows:
            stacked = [np.stack(camera) for camera in zip(*pictures.values(), strict=True)]
            with torch.no_grad():
                features = self.encode(stacked[0] if len(stacked) == 1 else np.stack(stacked, axis=1))
        for number, (world, row) in enumerate(rows.items()):
            episode = self._episodes[world]
            episode.features.append(torch.zeros(0, 0) if features is None else features[number])
            episode.proprio.append(torch.tensor(np.asarray(row.get("state", ())), dtype=torch.float32))
            if self.scorer.needs_frames:
                episode.frames.append(torch.tensor(pictures[world][0]))
            if executed is not None:
                episode.executed.append(int(executed[world]))
            if "init_state" in info:
                episode.init_state = int(info["init_state"][world])
            if "instruction" in info:
                episode.instruction = str(info["instruction"][world])


@dataclass
class _Episode:
    """What a world has shown since its episode began.

    Attributes:
        task: Index of the task.
        centers: (C, D) references at the start of the episode; None if there were none, or if nothing is paid by step.
        first_distance: Distance of the first look from them.
        closeness: Potential at the latest look.
    """

    task: int
    centers: NDArray[np.float64] | None
    first_distance: float | None = None
    closeness: float = 0.0
    init_state: int = -1
    instruction: str = ""
    features: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)
    proprio: list[Tensor] = field(default_factory=list)
    executed: list[int] = field(default_factory=list)

    def trajectory(self, world: int, success: bool) -> Trajectory:
        """The episode up to now, the latest look as its end. Nobody here knows of tokens, so it has none."""
        count = len(self.executed)
        features = torch.stack(self.features)
        return Trajectory(
            task=self.task,
            init_state=self.init_state,
            group=0,
            slot=world,
            instruction=self.instruction,
            features=features[:-1],
            terminal_features=features[-1],
            proprio=torch.stack(self.proprio)[:-1],
            tokens=torch.zeros(count, 0, dtype=torch.int64),
            log_prob=torch.zeros(count, 0),
            executed=torch.tensor(self.executed, dtype=torch.int64),
            success=success,
            length=sum(self.executed),
            frames=torch.stack(self.frames) if self.frames else None,
        )


def _check(envs: Any, scorer: Scorer, encode: Encode | None, discount: float, window: int) -> None:
    space = envs.single_observation_space
    if not isinstance(space, gymnasium.spaces.Dict) or "task" not in space.spaces:
        raise ConfigError(f"The observations of {envs} do not name their task.", "They must be a Dict with 'task'.")
    if "autoreset_mode" not in envs.metadata:
        raise ConfigError(f"{envs} does not say how it resets.", "Set metadata['autoreset_mode'] to an AutoresetMode.")
    if not scorer.fitted:
        raise ConfigError(
            f"Scorer {scorer.name!r} is untrained.",
            "Load a trained one with vlacoach.rewards.load_scorer, or call its fit(trajectories) first.",
        )
    if isinstance(scorer, SiglipScorer) and encode is None:
        raise ConfigError(f"Scorer {scorer.name!r} reads patch features.", "Pass encode=policy.encode.")
    if not 0.0 <= discount <= 1.0:
        raise ConfigError(f"discount is {discount}.", "Use a number from 0 to 1.")
    if window < 1:
        raise ConfigError(f"window is {window}.", "Use at least 1.")


def _column(info: Mapping[str, Any], name: str, count: int, default: int = 0) -> NDArray[np.int64]:
    """Numbers (N,) of an info dictionary."""
    return np.asarray(info.get(name, np.full(count, default)), dtype=np.int64)


def _worlds(mask: NDArray[Any]) -> list[int]:
    return [int(world) for world in np.flatnonzero(mask)]


def _row(observation: Observation, world: int) -> Observation:
    return {key: value[world] for key, value in observation.items()}
