"""Roll a policy out: episodes of groups, played side by side in the worlds of a vector environment."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vlacoach.agents.objectives import require_finite
from vlacoach.agents.prompts import Prompt
from vlacoach.errors import ConfigError
from vlacoach.policies.policy import VLAPolicy
from vlacoach.rewards.trajectory import Trajectory


class ChunkEnvs(Protocol):
    """What a rollout needs of ``LiberoVectorEnv``: worlds that stand still when done, and resets by mask."""

    num_envs: int
    chunk_size: int | None

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Start episodes in the worlds of ``options["reset_mask"]``."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Execute a chunk in every world that is not done."""


@dataclass(frozen=True)
class Job:
    """One episode to play.

    Attributes:
        slot: Position in the list of results.
        group: Which prompt of the batch it belongs to.
        prompt: Task and initial state.
        generator: Draws the episode's action tokens; its own, so that the episode does not depend on its neighbors.
    """

    slot: int
    group: int
    prompt: Prompt
    generator: torch.Generator


@dataclass
class _Episode:
    job: Job
    instruction: str
    features: list[Tensor] = field(default_factory=list)
    proprio: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    log_prob: list[Tensor] = field(default_factory=list)
    executed: list[int] = field(default_factory=list)

    def finish(self, success: bool, valid: bool, terminal_features: Tensor | None) -> Trajectory:
        # A chunk of which nothing ran (the simulation broke down at once) has no token to train on.
        kept = [i for i, count in enumerate(self.executed) if count > 0]
        executed = torch.tensor([self.executed[i] for i in kept], dtype=torch.int64)

        def stack(rows: list[Tensor]) -> Tensor:
            return torch.stack([rows[i] for i in kept]) if kept else rows[0][None][:0]

        return Trajectory(
            task=self.job.prompt.task,
            init_state=self.job.prompt.init_state,
            group=self.job.group,
            slot=self.job.slot,
            instruction=self.instruction,
            features=stack(self.features),
            terminal_features=terminal_features,
            proprio=stack(self.proprio),
            tokens=stack(self.tokens),
            log_prob=stack(self.log_prob),
            executed=executed,
            success=success,
            length=int(executed.sum()),
            valid=valid,
        )


def collect(
    policy: VLAPolicy,
    envs: ChunkEnvs,
    jobs: Sequence[Job],
    temperature: float,
    *,
    keep_features: bool = True,
    on_episode: Callable[[Trajectory], None] | None = None,
    on_look: Callable[[], None] | None = None,
    on_pictures: Callable[[int, Any], None] | None = None,
) -> list[Trajectory]:
    """Play episodes until every job is done; a world takes the next job as soon as it is free.

    The policy looks once per chunk. Its patch features are kept: they serve the reward and every step of the update,
    so the vision tower runs once per frame. The frame after the last action, which the policy never acts on, is
    encoded once too, for the scorers. Tokens and their log-probabilities are recorded as they are sampled.

    Args:
        policy: The policy.
        envs: A vector environment with ``chunk_size`` equal to the policy's, which does not reset by itself.
        jobs: The episodes.
        temperature: Sampling temperature; 0 is greedy.
        keep_features: Keep patch features in the trajectories; evaluation does not need them.
        on_episode: Called with each finished trajectory, in the order in which they finish.
        on_look: Called once per round of the worlds, to show signs of life.
        on_pictures: Called with a job's slot and each of its pictures (H, W, 3) uint8, for videos.

    Returns:
        One trajectory a job, in the order of the jobs.

    Raises:
        ConfigError: The environment's chunk size is not the policy's.
        NonFiniteError: A vision feature or a log-probability is NaN or infinite.
    """
    if envs.chunk_size != policy.chunk_size:
        raise ConfigError(
            f"The policy decodes chunks of {policy.chunk_size}, the environment takes {envs.chunk_size}.",
            f"Make the environment with chunk_size={policy.chunk_size}.",
        )
    waiting = deque(jobs)
    results: dict[int, Trajectory] = {}
    playing: dict[int, _Episode] = {}
    actions = np.zeros((envs.num_envs, policy.chunk_size, policy.action_dim), dtype=np.float32)
    observation: dict[str, Any] = {}
    while waiting or playing:
        observation = _start(envs, playing, waiting) or observation
        worlds = sorted(playing)
        if on_pictures is not None:
            _show(playing, observation, on_pictures)
        features = require_finite("A vision feature of the rollout", policy.encode(_images(observation, worlds)))
        proprio = torch.from_numpy(observation["state"][worlds])
        instructions = [playing[world].instruction for world in worlds]
        generators = [playing[world].job.generator for world in worlds]
        sample = policy.act(features, instructions, proprio, temperature, generators)
        # A broken policy still draws tokens, and a batch that the filter drops would never show what it is.
        require_finite("A log-probability of the rollout", sample.log_prob)
        for row, world in enumerate(worlds):
            _record(playing[world], row, features if keep_features else features[:, :0], proprio, sample)
            actions[world] = sample.actions[row].numpy()
        observation, _, success, truncated, info = envs.step(actions)
        ended = [world for world in worlds if success[world] or truncated[world]]
        for world in worlds:
            playing[world].executed.append(int(info["executed"][world]))
        last = policy.encode(_images(observation, ended)) if ended and keep_features else None
        for row, world in enumerate(ended):
            if on_pictures is not None:
                _show({world: playing[world]}, observation, on_pictures)
            valid = not ("invalid" in info and info["invalid"][world])
            episode = playing.pop(world)
            done = episode.finish(bool(success[world]), valid, None if last is None else last[row])
            results[episode.job.slot] = done
            if on_episode is not None:
                on_episode(done)
        if on_look is not None:
            on_look()
    return [results[job.slot] for job in jobs]


def _start(envs: ChunkEnvs, playing: dict[int, _Episode], waiting: deque[Job]) -> dict[str, Any] | None:
    """Put waiting jobs into free worlds; the new observation, or None if there was nothing to do."""
    fresh: dict[int, Job] = {}
    for world in range(envs.num_envs):
        if waiting and world not in playing:
            fresh[world] = waiting.popleft()
    if not fresh:
        return None
    mask = np.zeros(envs.num_envs, dtype=np.bool_)
    tasks, states = np.zeros(envs.num_envs, dtype=np.int64), np.zeros(envs.num_envs, dtype=np.int64)
    for world, job in fresh.items():
        mask[world], tasks[world], states[world] = True, job.prompt.task, job.prompt.init_state
    observation, info = envs.reset(options={"task": tasks, "init_state": states, "reset_mask": mask})
    for world, job in fresh.items():
        playing[world] = _Episode(job, str(info["instruction"][world]))
    return dict(observation)


def _images(observation: dict[str, Any], worlds: list[int]) -> Any:
    """(B, H, W, 3), or (B, I, H, W, 3) if the environment has several cameras."""
    pictures = [observation[key][worlds] for key in observation if key not in ("state", "task")]
    return torch.from_numpy(pictures[0] if len(pictures) == 1 else np.stack(pictures, axis=1))


def _record(episode: _Episode, row: int, features: Tensor, proprio: Tensor, sample: Any) -> None:
    episode.features.append(features[row])
    episode.proprio.append(proprio[row])
    episode.tokens.append(sample.tokens[row])
    episode.log_prob.append(sample.log_prob[row])


def _show(playing: dict[int, _Episode], observation: dict[str, Any], on_pictures: Callable[[int, Any], None]) -> None:
    key = next(iter(observation))
    for world, episode in playing.items():
        on_pictures(episode.job.slot, observation[key][world])
