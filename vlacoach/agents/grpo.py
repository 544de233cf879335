"""Group relative policy optimization of a vision-language-action model.

Papers: GRPO (Shao et al., arXiv 2402.03300), SRPO (arXiv 2511.15605) for the reward of failures, DAPO (Yu et al.,
arXiv 2503.14476) for the asymmetric clip and dynamic sampling, Dr. GRPO (Liu et al., arXiv 2503.20783) as an option.

What is done, once an update: draw prompts (a task and an initial state each), play ``group_size`` episodes of each,
score the trajectories, keep the groups that say something, compare each trajectory with its siblings, and take a few
clipped gradient steps on the language model's LoRA.

What differs from the papers: the objective is the mean over trajectories of the mean over their tokens, which is
what SRPO's code computes; log-probabilities are those recorded when the tokens were sampled, not recomputed; the
vision tower is frozen, and the features of the rollout serve reward and update; a KL term is there but off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlacoach.agents.agent_state import load_agent, save_agent
from vlacoach.agents.batching import pad_tokens
from vlacoach.agents.evidence import Witness, keeping_evidence
from vlacoach.agents.metrics import episode_fields, rollout_metrics
from vlacoach.agents.micro_batch import choose_micro_batch
from vlacoach.agents.objectives import (
    clipped_loss,
    group_advantage,
    informative_groups,
    kl_penalty,
    require_finite,
    token_mask,
    token_weights,
)
from vlacoach.agents.optimizer_step import optimizer_step
from vlacoach.agents.prompts import PromptSampler
from vlacoach.agents.ranks import Ranks
from vlacoach.agents.recording import RolloutPictures
from vlacoach.agents.rollout import ChunkEnvs, collect, group_jobs
from vlacoach.agents.seeding import Stream, derived_seed, numpy_generator
from vlacoach.agents.sharing import (
    Outcomes,
    SharedBatch,
    StepSizes,
    require_same_weights,
    shared_references,
    shared_trajectories,
)
from vlacoach.policies import lora
from vlacoach.policies.log_prob import action_log_prob
from vlacoach.policies.policy import VLAPolicy
from vlacoach.rewards.bank import ReferenceBank
from vlacoach.rewards.scorers import Scorer
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs import constants as names
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.reporting import NullReporter, Reporter

__all__ = [
    "GRPOAgent",
    "clipped_loss",
    "group_advantage",
    "informative_groups",
    "kl_penalty",
    "token_mask",
]


class GRPOAgent:
    """Trains a policy by reinforcement learning.

    Args:
        policy: The policy; given a LoRA adapter (or ``policy.full``) here, unless it has one.
        envs: Vector environment with the policy's chunk size and ``AutoresetMode.DISABLED``.
        scorer: Scores trajectories; trained on the rollouts where it learns.
        config: Everything that decides the result.
        folder: Where metrics, episodes and checkpoints go; None keeps nothing.
        reporter: Shows progress.
        ranks: The processes that train together, of which this is one; None trains alone.

    Attributes:
        update: Updates done.
        planned_micro_batch: Looks in one forward and backward pass, by the configuration.
        micro_batch: Those of the update; fewer once memory has run out.
        bank: Successes of earlier updates that failures are compared with, if ``reward.reference`` asks for them.
        on_rollout: Called with the trajectories of each update, before the scorer is fitted on them.
        on_beat: Called many times an update, between rounds of the worlds and between micro-batches.
        pictures: Shows and records rollouts; None for neither.
        clock: Seconds that rise while work goes on.
        witness: Sees what an update works on, in case it must be kept as evidence.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        envs: ChunkEnvs,
        scorer: Scorer,
        config: TrainConfig | None = None,
        folder: RunFolder | None = None,
        reporter: Reporter | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        policy.require_tokens()
        self.policy = policy
        self.envs = envs
        self.scorer = scorer
        self.config = config or TrainConfig()
        self.folder = folder
        self.reporter = reporter or NullReporter()
        self.ranks = scorer.peers = ranks or Ranks()
        self.update = 0
        settings, num_tasks = self.config.policy, len(envs.suite.tasks) if hasattr(envs, "suite") else 1
        if settings.full:
            lora.train_language_model(policy)
        elif policy.adapter is None:
            lora.add_lora(
                policy,
                settings.lora_rank,
                settings.lora_alpha,
                seed=derived_seed(self.config.seed, Stream.ADAPTER),
            )
        self.take_parameters()
        self.planned_micro_batch = choose_micro_batch(self.config, policy.config, policy.quantization, policy.device)
        self.micro_batch = self.planned_micro_batch
        tasks = range(num_tasks) if self.config.env.tasks is None else self.config.env.tasks
        self.prompts = PromptSampler(
            tuple(tasks), self.config.env.states, self.config.seed, held_out=self.config.evaluation.states
        )
        banked = self.config.reward.reference == "bank" and scorer.compares
        self.bank = ReferenceBank(self.config.reward.bank_size) if banked else None
        self.on_rollout: Callable[[list[Trajectory]], None] = lambda trajectories: None
        self.on_beat: Callable[[], None] = lambda: None
        self.pictures: RolloutPictures | None = None
        self.clock: Callable[[], float] = time.perf_counter
        self.witness = Witness()
        self._seconds: dict[str, float] = {}

    def take_parameters(self) -> None:
        """Begin with a fresh optimizer of the policy's trainable parameters."""
        grpo = self.config.grpo
        self.parameters = list(lora.trainable_parameters(self.policy).values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=grpo.learning_rate, betas=(0.9, 0.99), weight_decay=grpo.weight_decay
        )

    def learn(self, updates: int | None = None) -> None:
        """Train until ``updates`` updates are done in all; None for the configuration's number.

        Raises:
            DivergedError: A loss, gradient, ratio, embedding, reward, or weight is NaN or infinite, or the first
                ratio of an update is not 1. What the update worked on is then in the folder.
            UpdateMemoryError: The update does not fit into memory.
        """
        for _ in range(self.update, self.config.grpo.updates if updates is None else updates):
            self.learn_once()

    def learn_once(self) -> dict[str, float]:
        """One update: rollout, reward, filter, advantage, gradient steps, log; returns its metrics."""
        self._seconds = {}
        witness = self.witness = Witness()
        with self._stage(names.STAGE_ROLLOUT):
            witness.trajectories = trajectories = self.rollout()
        with self._stage(names.STAGE_REWARD):
            self.on_rollout(trajectories)
            fit = self.fit_scorer(trajectories)
            witness.reward = reward = self.reward(trajectories)
            require_finite("The reward", torch.from_numpy(reward))
            videos = {} if self.pictures is None else self.pictures.finish(trajectories, self.scorer)
            self.remember(trajectories)
        with self._stage(names.STAGE_FILTER):
            kept = self.informative(trajectories, reward)
        with self._stage(names.STAGE_ADVANTAGE):
            witness.advantage = advantage = self.advantage(trajectories, reward)
        with self._stage(names.STAGE_UPDATE):
            stats = self.improve([trajectories[i] for i in kept], advantage[kept])
            require_same_weights(self.parameters, self.ranks)
        self.update += 1
        outcomes = Outcomes.of(trajectories, reward, kept, self.scorer.last_details).gathered(self.ranks)
        metrics = {**rollout_metrics(outcomes), **fit, **stats}
        metrics |= {names.TIME_PREFIX + stage: seconds for stage, seconds in self._seconds.items()}
        metrics[names.TIME_TOTAL] = sum(self._seconds.values())
        self._log(outcomes, metrics, {trajectories[row].slot: found for row, found in videos.items()})
        self.witness = Witness()  # Their features take more memory than all else, and the next rollout needs it.
        return metrics

    # The stages of an update

    def rollout(self) -> list[Trajectory]:
        """Play ``group_size`` episodes of each of the next prompts; with several ranks, this one's share of them."""
        grpo = self.config.grpo
        prompts = self.prompts.draw(self.update * grpo.prompts, grpo.prompts)
        jobs = group_jobs(prompts, self.ranks.mine(len(prompts)), grpo.group_size, self.config.seed, self.update)
        self.reporter.stage(names.STAGE_ROLLOUT, len(jobs))
        won = played = 0

        def show(trajectory: Trajectory) -> None:
            nonlocal won, played
            won, played = won + trajectory.success, played + 1
            self.reporter.advance(1, success=won / played)

        if self.pictures is not None:
            self.pictures.begin(self.update + 1, jobs)
        return collect(
            self.policy,
            self.envs,
            jobs,
            grpo.temperature,
            keep_frames=self.scorer.needs_frames,
            feature_budget=None if grpo.feature_budget is None else int(grpo.feature_budget * 2**30),
            patch_averages=self.scorer.patch_averages,
            on_episode=show,
            on_look=self.beat,
            on_pictures=None if self.pictures is None else self.pictures.take,
        )

    def fit_scorer(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Train a scorer that learns: as soon as there is a success to learn from, and at intervals after that."""
        every = self.config.reward.refit_every
        due = not self.scorer.fitted or (every > 0 and self.update % every == 0)
        if not due or not self.ranks.any(self.scorer.can_fit(trajectories)):
            return {}
        everyone = shared_trajectories(trajectories, self.scorer, self.ranks)
        fit = self.scorer.fit(everyone, seed=derived_seed(self.config.seed, Stream.SCORER, self.update))
        return {f"scorer/{key}": value for key, value in fit.items()}

    def reward(self, trajectories: Sequence[Trajectory]) -> NDArray[np.float64]:
        """(B,) scores. While a scorer that learns has seen no success, outcomes are all there is: all failures."""
        self.scorer.last_details = None
        if not self.scorer.fitted:
            return np.array([float(t.success and t.valid) for t in trajectories])
        if self.bank is None:  # A plugin that knows of no bank has the batch's successes to compare with.
            return self.scorer.rewards(trajectories)
        return self.scorer.rewards(trajectories, self.bank)

    def remember(self, trajectories: Sequence[Trajectory]) -> None:
        """Keep successes as references of later updates; after scoring, where they are references already."""
        if self.bank is not None and self.scorer.fitted:
            for task, reference in shared_references(trajectories, self.scorer, self.ranks):
                self.bank.keep(self.scorer, task, reference)

    def informative(self, trajectories: Sequence[Trajectory], reward: NDArray[np.float64]) -> list[int]:
        """Rows to learn from: valid, in a group whose success rate lies between the filter's bounds.

        With ``keep_graded``, a group that failed throughout stays if its rewards differ.
        """
        grpo = self.config.grpo
        valid = [i for i, trajectory in enumerate(trajectories) if trajectory.valid and trajectory.length > 0]
        group = np.array([trajectories[i].group for i in valid], dtype=np.int64)
        success = np.array([trajectories[i].success for i in valid], dtype=np.bool_)
        length = np.array([trajectories[i].length for i in valid], dtype=np.int64)
        keep = informative_groups(success, length, group, grpo.filter_low, grpo.filter_high).numpy()
        if grpo.keep_graded:
            for number in np.unique(group):
                rows = group == number
                if not success[rows].any() and np.ptp(reward[valid][rows]) > 0:
                    keep[rows] = True
        return [row for row, kept in zip(valid, keep, strict=True) if kept]

    def advantage(self, trajectories: Sequence[Trajectory], reward: NDArray[np.float64]) -> NDArray[np.float32]:
        """(B,) advantages within each group of valid trajectories; 0 for the others."""
        advantage = np.zeros(len(trajectories), dtype=np.float32)
        valid = [i for i, trajectory in enumerate(trajectories) if trajectory.valid]
        if valid:
            group = [trajectories[i].group for i in valid]
            normalize = self.config.grpo.normalize_std
            advantage[valid] = group_advantage(reward[valid], group, normalize, lone_score=False).numpy()
        return advantage

    def improve(self, trajectories: Sequence[Trajectory], advantage: NDArray[np.float32]) -> dict[str, float]:
        """Gradient steps on the trajectories, in mini-batches drawn anew each epoch; returns their mean statistics."""
        grpo = self.config.grpo
        rate = grpo.learning_rate * min(1.0, (self.update + 1) / (grpo.warmup_updates + 1))
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = rate
        history: list[dict[str, float]] = []
        batch = SharedBatch(trajectories, self.ranks)
        if trajectories:
            self.reporter.stage(names.STAGE_UPDATE, grpo.epochs * len(trajectories))
        for epoch in range(grpo.epochs):
            generator = numpy_generator(self.config.seed, Stream.MINIBATCHES, self.update, epoch)
            order = generator.permutation(len(batch))
            for rows in np.array_split(order, min(grpo.minibatches, max(1, len(batch)))):
                if not len(rows):
                    continue
                self.witness.steps += 1
                own, sizes = batch.step(rows)
                chosen = [trajectories[i] for i in own]
                history.append(optimizer_step(self, chosen, advantage[own], sizes, first=not history))
            if grpo.target_kl is not None and history and history[-1][names.TRAIN_KL] > grpo.target_kl:
                break
        stats = {key: float(np.mean([step[key] for step in history])) for key in (history[0] if history else {})}
        if history:
            stats[names.TRAIN_RATIO_FIRST] = history[0]["train/ratio_mean"]
        return {**stats, names.TRAIN_LEARNING_RATE: rate, "train/steps": float(len(history))}

    def token_weights(self, sizes: StepSizes) -> Tensor:
        """(N,) float32: what a token of each trajectory counts for in an optimizer step on all of them."""
        width = self.policy.config.num_action_tokens * int(sizes.looks.max())
        return token_weights(self.policy.action_dim * sizes.actions, width, self.config.grpo.reduction)

    def loss(
        self, trajectories: Sequence[Trajectory], advantage: Tensor, weight: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Clipped loss of trajectories, or of pieces of them, on their stored features and tokens.

        Args:
            trajectories: B trajectories.
            advantage: (B,) float32.
            weight: (B,) float32, see :meth:`token_weights`.

        Returns:
            The scalar loss, and statistics over the executed tokens.
        """
        grpo = self.config.grpo
        # What is not kept is encoded here, once for both passes.
        trajectories = [replace(t, features=t.patch_features()) for t in trajectories]
        log_prob, entropy = self.log_prob(trajectories)
        self.witness.pass_over(trajectories, log_prob)
        batch = pad_tokens(trajectories, self.policy.chunk_size, self.policy.action_dim, log_prob.device)
        new = batch.scatter(log_prob)
        weights = weight.to(new.device)[:, None].expand_as(new)
        old = batch.scatter(torch.cat([t.log_prob for t in trajectories]).to(log_prob.device))
        loss, stats = clipped_loss(
            new,
            old,
            advantage,
            batch.mask,
            grpo.clip_low,
            grpo.clip_high,
            grpo.dual_clip,
            "sum",
            weights,
        )
        stats["entropy"] = float(batch.scatter(entropy.detach())[batch.mask].mean())
        stats["ratio_deviation"] = float((new.detach() - old)[batch.mask].abs().mean())
        if grpo.kl_coefficient > 0:
            with lora.reference(self.policy), torch.no_grad():
                reference, _ = self.log_prob(trajectories)
            divergence = kl_penalty(new, batch.scatter(reference), batch.mask, "sum", weights)
            stats["reference_kl"] = divergence.item()
            loss = loss + grpo.kl_coefficient * divergence
        return loss, stats

    def log_prob(self, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (sum of T, tokens a chunk) of the stored tokens under the current policy."""
        features = torch.cat([t.patch_features() for t in trajectories])
        instructions = [t.instruction for t in trajectories for _ in range(t.num_looks)]
        proprio = torch.cat([t.proprio for t in trajectories])
        tokens = torch.cat([t.tokens for t in trajectories])
        logits = self.policy.logits(features, instructions, proprio, tokens)
        tokens = tokens.to(logits.device)
        return action_log_prob(logits, tokens, self.config.grpo.temperature)

    # Logging, saving, loading

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = self.clock()
        if self.folder is not None:
            self.folder.log_event("stage", stage=name, update=self.update + 1)
            self.folder.progress(name)
        self.ranks.enter(f"{name} of update {self.update + 1}")
        with keeping_evidence(self, name):
            yield
        self._seconds[name] = self._seconds.get(name, 0.0) + self.clock() - start

    def beat(self) -> None:
        """Give a sign of life."""
        if self.folder is not None:
            self.folder.beat()
        self.ranks.beat()
        self.on_beat()

    def _log(self, outcomes: Outcomes, metrics: dict[str, float], videos: Mapping[int, dict[str, Any]]) -> None:
        self.reporter.update(metrics, self.update, self.config.grpo.updates)
        if self.folder is None:
            return
        self.folder.log_metrics(self.update, metrics)
        for row in range(len(outcomes)):
            fields = episode_fields(outcomes, row)
            self.folder.log_episode(self.update, **fields, **videos.get(fields["slot"], {}))

    def save(self, folder: Path) -> None:
        """Write adapter (or weights), scorer and training state into a checkpoint's folder."""
        save_agent(self, folder)

    def load(self, folder: Path) -> None:
        """Go on from what :meth:`save` wrote.

        Raises:
            CheckpointError: Something in it is missing, corrupt, or does not fit.
        """
        load_agent(self, folder)
