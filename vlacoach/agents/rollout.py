"""Roll a policy out: episodes of groups, played side by side in the worlds of a vector environment."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vlacoach.agents.objectives import require_finite
from vlacoach.agents.prompts import Prompt
from vlacoach.agents.seeding import Stream, torch_generator
from vlacoach.errors import ConfigError
from vlacoach.policies.policy import VLAPolicy
from vlacoach.rewards.siglip import average_patches
from vlacoach.rewards.trajectory import PatchAverages, RecomputedFeatures, Trajectory


class ChunkEnvs(Protocol):
    """What a rollout needs of ``LiberoVectorEnv``: worlds that stand still when done, and work that is begun."""

    num_envs: int
    chunk_size: int | None

    def begin_reset(self, options: dict[str, Any] | None = None) -> Any:
        """Start episodes in the worlds of ``options["reset_mask"]``."""

    def begin_step(self, actions: Any, worlds: Any) -> Any:
        """Execute a chunk in the worlds of a mask."""

    def finish(self, pending: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Wait for begun work; what ``step`` returns."""


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
    frames: list[Tensor] = field(default_factory=list)
    looks: list[Tensor] | None = None
    averages: list[Tensor] = field(default_factory=list)

    def finish(
        self,
        success: bool,
        valid: bool,
        terminal_features: Tensor | None,
        policy: VLAPolicy,
        kind: PatchAverages | None,
    ) -> Trajectory:
        # A chunk of which nothing ran (the simulation broke down at once) has no token to train on.
        kept = [i for i, count in enumerate(self.executed) if count > 0]
        executed = torch.tensor([self.executed[i] for i in kept], dtype=torch.int64)

        def stack(rows: list[Tensor]) -> Tensor:
            return torch.stack([rows[i] for i in kept]) if kept else rows[0][None][:0]

        features: Tensor | RecomputedFeatures
        if self.looks is None:
            features = stack(self.features)
        else:
            averages = {} if kind is None else {kind: stack(self.averages)}
            features = RecomputedFeatures(stack(self.looks), policy.encode, averages=averages)
        # One frame before each chunk, and the one after the last.
        frames = [self.frames[i] for i in [*kept, len(self.frames) - 1]] if self.frames else []
        return Trajectory(
            task=self.job.prompt.task,
            init_state=self.job.prompt.init_state,
            group=self.job.group,
            slot=self.job.slot,
            instruction=self.instruction,
            features=features,
            terminal_features=terminal_features,
            proprio=stack(self.proprio),
            tokens=stack(self.tokens),
            log_prob=stack(self.log_prob),
            executed=executed,
            success=success,
            length=int(executed.sum()),
            valid=valid,
            frames=torch.stack(frames) if frames else None,
        )


def group_jobs(prompts: Sequence[Prompt], groups: Iterable[int], group_size: int, seed: int, update: int) -> list[Job]:
    """The episodes of some groups of an update, each with random numbers of its own, whoever plays them.

    Args:
        prompts: Of all groups of the update.
        groups: Which of them.
        group_size: Episodes of a prompt.
        seed: The run's.
        update: Number of the update.
    """
    return [
        Job(
            slot=group * group_size + sample,
            group=group,
            prompt=prompts[group],
            generator=torch_generator(seed, Stream.ROLLOUT, update, group, sample),
        )
        for group in groups
        for sample in range(group_size)
    ]


def collect(
    policy: VLAPolicy,
    envs: ChunkEnvs,
    jobs: Sequence[Job],
    temperature: float,
    *,
    keep_features: bool = True,
    keep_frames: bool = False,
    feature_budget: int | None = None,
    patch_averages: PatchAverages | None = None,
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
        keep_frames: Keep the first camera's pictures in the trajectories, for scorers that look for themselves.
        feature_budget: Bytes of host memory for features. Episodes that begin when it is used up keep their pictures
            instead, and the tower runs again whenever their features are asked for. None is no limit.
        patch_averages: What to keep of the features of such episodes all the same; see ``Scorer.patch_averages``.
        on_episode: Called with each finished trajectory, in the order in which they finish.
        on_look: Called once per round of the worlds, to show signs of life.
        on_pictures: Called with a job's slot and what the policy sees at each of its looks, the frame after the last
            action included: ([I,] H, W, 3) uint8.

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
    rollout = _Rollout(
        policy,
        envs,
        deque(jobs),
        temperature,
        keep_features,
        keep_frames,
        feature_budget,
        patch_averages,
        on_episode,
        on_pictures,
    )
    # While the simulator works on one half of the worlds, the policy looks at the other.
    lanes = [list(range(lane, envs.num_envs, 2)) for lane in range(min(2, envs.num_envs))]
    begun: dict[int, list[tuple[list[int], Any]]] = {}
    with one_thread():
        while rollout.waiting or rollout.playing:
            for lane, worlds in enumerate(lanes):
                for busy, pending in begun.pop(lane, []):
                    rollout.land(busy, *envs.finish(pending))
                begun[lane] = rollout.launch(worlds)
                if on_look is not None:
                    on_look()
    return [rollout.results[job.slot] for job in jobs]


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: the cores belong to the simulator, and threads that wait for each other stall."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class _Rollout:
    """Episodes in progress.

    Attributes:
        waiting: Jobs no world has taken yet.
        playing: Episode of each world that has one.
        results: Finished trajectories, by slot.
    """

    policy: VLAPolicy
    envs: ChunkEnvs
    waiting: deque[Job]
    temperature: float
    keep_features: bool
    keep_frames: bool
    feature_budget: int | None
    patch_averages: PatchAverages | None
    on_episode: Callable[[Trajectory], None] | None
    on_pictures: Callable[[int, Any], None] | None
    playing: dict[int, _Episode] = field(default_factory=dict)
    results: dict[int, Trajectory] = field(default_factory=dict)
    _seen: dict[int, dict[str, Any]] = field(default_factory=dict)
    _kept_bytes: int = 0

    def launch(self, worlds: Sequence[int]) -> list[tuple[list[int], Any]]:
        """Act in the worlds whose picture is there, and start waiting jobs in those that are free, without waiting.

        Returns:
            Worlds at work, and what to wait for.
        """
        ready = [world for world in worlds if world in self._seen]
        begun = [(ready, self._act(ready))] if ready else []
        fresh = {world: self.waiting.popleft() for world in worlds if self.waiting and world not in self.playing}
        if fresh:
            begun.append((list(fresh), self._start(fresh)))
        return begun

    def land(
        self, worlds: Sequence[int], observation: Any, reward: Any, success: Any, truncated: Any, info: Any
    ) -> None:
        """Take in what begun work led to: new pictures, and episodes that have ended."""
        ended = [world for world in worlds if success[world] or truncated[world]]
        for world in worlds:
            episode = self.playing[world]
            if len(episode.executed) < len(episode.tokens):
                episode.executed.append(int(info["executed"][world]))
            episode.instruction = str(info["instruction"][world])
            self._seen[world] = {key: value[world] for key, value in observation.items()}
            if self.keep_frames:
                episode.frames.append(torch.from_numpy(next(iter(self._seen[world].values()))))
            if self.on_pictures is not None:
                self.on_pictures(episode.job.slot, _images(self._seen, [world])[0].numpy())
        last = self.policy.encode(_images(self._seen, ended)) if ended and self.keep_features else None
        for row, world in enumerate(ended):
            del self._seen[world]
            episode = self.playing.pop(world)
            valid = not ("invalid" in info and info["invalid"][world])
            terminal = None if last is None else last[row].cpu().clone()
            done = episode.finish(bool(success[world]), valid, terminal, self.policy, self.patch_averages)
            self.results[episode.job.slot] = done
            if self.on_episode is not None:
                self.on_episode(done)

    def _act(self, worlds: Sequence[int]) -> Any:
        images = _images(self._seen, worlds)
        features = require_finite("A vision feature of the rollout", self.policy.encode(images))
        proprio = torch.from_numpy(np.stack([self._seen[world]["state"] for world in worlds]))
        instructions = [self.playing[world].instruction for world in worlds]
        generators = [self.playing[world].job.generator for world in worlds]
        sample = self.policy.act(features, instructions, proprio, self.temperature, generators)
        # A broken policy still draws tokens, and a batch that the filter drops would never show what it is.
        require_finite("A log-probability of the rollout", sample.log_prob)
        require_finite("An action of the rollout", sample.actions)
        actions = np.zeros((self.envs.num_envs, self.policy.chunk_size, self.policy.action_dim), dtype=np.float32)
        mask = np.zeros(self.envs.num_envs, dtype=np.bool_)
        kept = features.cpu() if self.keep_features else features[:, :0].cpu()
        for row, world in enumerate(worlds):
            episode = self.playing[world]
            if episode.looks is None:
                # A view would keep the whole batch's memory until the last of its episodes is done.
                episode.features.append(kept[row].clone())
                self._kept_bytes += kept[row].numel() * kept.element_size()
            else:
                episode.looks.append(images[row])
                if self.patch_averages is not None:
                    episode.averages.append(average_patches(features[row][None], self.patch_averages)[0].cpu())
            episode.proprio.append(proprio[row])
            episode.tokens.append(sample.tokens[row])
            episode.log_prob.append(sample.log_prob[row])
            actions[world], mask[world] = sample.actions[row].numpy(), True
            del self._seen[world]
        return self.envs.begin_step(actions, mask)

    def _start(self, fresh: dict[int, Job]) -> Any:
        count = self.envs.num_envs
        mask, tasks, states = np.zeros(count, dtype=np.bool_), np.zeros(count, np.int64), np.zeros(count, np.int64)
        for world, job in fresh.items():
            mask[world], tasks[world], states[world] = True, job.prompt.task, job.prompt.init_state
            spent = self.keep_features and self.feature_budget is not None and self._kept_bytes >= self.feature_budget
            self.playing[world] = _Episode(job, "", looks=[] if spent else None)
        return self.envs.begin_reset({"task": tasks, "init_state": states, "reset_mask": mask})


def _images(seen: dict[int, dict[str, Any]], worlds: Sequence[int]) -> Tensor:
    """(B, H, W, 3) pictures of some worlds, or (B, I, H, W, 3) if the environment has several cameras."""
    keys = [key for key in seen[worlds[0]] if key not in ("state", "task")]
    pictures = [np.stack([seen[world][key] for world in worlds]) for key in keys]
    return torch.from_numpy(pictures[0] if len(pictures) == 1 else np.stack(pictures, axis=1))
