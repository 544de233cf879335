"""Measure a policy's success on given tasks and initial states."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlacoach.agents.evaluation_settings import render_profile, used_settings
from vlacoach.agents.keeping import EpisodeKeeper
from vlacoach.agents.micro_batch import choose_micro_batch
from vlacoach.agents.prompts import Prompt
from vlacoach.agents.ranks import Ranks
from vlacoach.agents.rollout import ChunkEnvs, Job, collect
from vlacoach.agents.seeding import Stream, torch_generator
from vlacoach.agents.video import VideoRecorder
from vlacoach.envs.perturbations import Perturbation
from vlacoach.envs.vector import LiberoVectorEnv
from vlacoach.errors import ConfigError, SimulatorError
from vlacoach.policies import OpenVLAOptions, load_policy, lora
from vlacoach.policies.checkpoint import PolicyFacts, check_policy
from vlacoach.policies.openvla import require_tokens
from vlacoach.policies.policy import CAMERAS, VLAPolicy
from vlacoach.policies.source import BUILT_IN
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.constants import ADAPTER_FOLDER, POLICY_FOLDER, STAGE_EVALUATION
from vlacoach.runs.evaluations import Played
from vlacoach.runs.reporting import NullReporter, Reporter
from vlacoach.runs.results import EvaluationResult


@dataclass(frozen=True)
class EpisodeResult:
    """Outcome of one evaluation episode.

    Attributes:
        task: Index of the task.
        init_state: Index of the initial state.
        trial: How often this task and state came before.
        success: Whether the goal was reached.
        length: Executed actions.
    """

    task: int
    init_state: int
    trial: int
    success: bool
    length: int


States = Sequence[int] | Mapping[int, Sequence[int]]
"""Initial states: the same of every task, or those of each."""


def evaluation_plan(tasks: Sequence[int], states: States, trials: int) -> list[Prompt]:
    """``trials`` episodes a task, its states in turn."""
    of_task = states if isinstance(states, Mapping) else dict.fromkeys(tasks, states)
    return [Prompt(task, of_task[task][trial % len(of_task[task])]) for task in tasks for trial in range(trials)]


def evaluate(
    policy: VLAPolicy,
    envs: ChunkEnvs,
    plan: Sequence[Prompt],
    temperature: float = 0.0,
    seed: int = 0,
    reporter: Reporter | None = None,
    on_pictures: Callable[[int, Any], None] | None = None,
    on_look: Callable[[], None] | None = None,
    on_episode: Callable[[Trajectory], None] | None = None,
    played: Mapping[int, Played] | None = None,
    ranks: Ranks | None = None,
) -> list[EpisodeResult]:
    """Play a plan.

    Two calls with the same plan and seed draw the same random numbers for each episode, so that before and after
    are paired. An episode whose simulation broke down is played again, at most three times.

    Args:
        policy: The policy.
        envs: Vector environment whose chunk size is the policy's.
        plan: The episodes.
        temperature: Sampling temperature; 0 is greedy.
        seed: Seed of the sampling.
        reporter: Shows progress.
        on_pictures: See :func:`vlacoach.agents.rollout.collect`; slots are the plan's episodes.
        on_look: Called once per round of the worlds.
        on_episode: Called with each episode that ended, valid or not; its slot is its number in the plan.
        played: Outcomes that are known already, by number in the plan; these episodes are not played.
        ranks: Processes that share the episodes out among them; None plays all here.

    Returns:
        One outcome an episode, in the order of the plan, the same on all ranks.

    Raises:
        SimulatorError: A simulation broke down in every attempt.
    """
    reporter, ranks = reporter or NullReporter(), ranks or Ranks()
    outcomes = dict(played or {})
    count, won = len(outcomes), sum(outcome.success for outcome in outcomes.values())
    if count:
        reporter.advance(count, success=won / count)

    def ended(trajectory: Trajectory) -> None:
        nonlocal won, count
        won, count = won + trajectory.success, count + 1
        if trajectory.valid:
            outcomes[trajectory.slot] = Played(trajectory.success, trajectory.length)
        if on_episode is not None:
            on_episode(trajectory)
        reporter.advance(1, success=won / count)

    owner = _owners(plan, ranks.size)
    todo = [i for i in range(len(plan)) if i not in outcomes]
    for attempt in range(3):
        mine = [i for i in todo if owner[i] == ranks.rank]
        jobs = [Job(i, i, plan[i], torch_generator(seed, Stream.EVALUATION, i, attempt)) for i in mine]
        collect(
            policy,
            envs,
            jobs,
            temperature,
            keep_features=False,
            on_episode=ended,
            on_pictures=on_pictures,
            on_look=on_look,
        )
        for ended_there in ranks.gather_json([[i, asdict(outcomes[i])] for i in mine if i in outcomes]):
            outcomes |= {i: Played(**fields) for i, fields in ended_there}
        todo = [i for i in todo if i not in outcomes]
        if not todo:
            break
    else:
        raise SimulatorError(
            f"The episode of task {plan[todo[0]].task}, initial state {plan[todo[0]].init_state}, broke down in three "
            "attempts: the simulation became unstable, or its process was lost.",
            "If warnings speak of lost processes, free some memory; else leave this state out.",
        )
    seen: dict[Prompt, int] = {}
    results = []
    for i, prompt in enumerate(plan):
        trial = seen[prompt] = seen.get(prompt, -1) + 1
        outcome = outcomes[i]
        results.append(EpisodeResult(prompt.task, prompt.init_state, trial, outcome.success, outcome.length))
    return results


def _owners(plan: Sequence[Prompt], size: int) -> list[int]:
    """Which rank plays each episode: those of a task in turn, the first, of which there are videos, by the leader."""
    seen: dict[int, int] = {}
    owners = []
    for prompt in plan:
        number = seen[prompt.task] = seen.get(prompt.task, -1) + 1
        owners.append(number % size)
    return owners


def evaluate_split(
    policy: VLAPolicy,
    envs: LiberoVectorEnv,
    config: TrainConfig,
    states: States,
    split: str,
    reporter: Reporter | None = None,
    on_look: Callable[[], None] | None = None,
    videos: VideoRecorder | None = None,
    on_pictures: Callable[[Prompt, int, Any], None] | None = None,
    protocol: str | None = None,
    seeds: Sequence[int] | None = None,
    keeper: EpisodeKeeper | None = None,
    label: str | None = None,
    perturbations: Sequence[Perturbation] = (),
    ranks: Ranks | None = None,
) -> EvaluationResult:
    """Evaluate a policy as a configuration says, on some initial states.

    Args:
        policy: The policy.
        envs: Vector environment of the configuration's suite; what it was perturbed by is replaced.
        config: Says which tasks, how many trials, at which temperature, and with which seed.
        states: Initial states, taken in turn.
        split: What these states are called: ``"held-out"``, ``"train"``, ``"all"``, or ``"protocol"``.
        reporter: Shows progress.
        on_look: Called once per round of the worlds.
        videos: Records the first episode of each task.
        on_pictures: Called with the prompt of an episode, its number, and each of its pictures (H, W, 3) uint8.
        protocol: Name of the protocol that the configuration follows, for the record.
        seeds: Seeds, each of which plays the whole plan; None is the configuration's.
        keeper: Keeps each episode as it ends, and knows those that are not to be played again.
        label: What the policy is called in the result; None is its name.
        perturbations: What to perturb every episode by, all at once; drawn from the episode's seed.
        ranks: See :func:`evaluate`.
    """
    reporter = reporter or NullReporter()
    tasks = envs.suite.select(config.env.tasks)
    plan = evaluation_plan([task.index for task in tasks], states, config.evaluation.trials)
    seeds = (config.seed,) if seeds is None else tuple(seeds)
    where = ", ".join([f"{split} states", *map(str, perturbations)])
    reporter.stage(f"{STAGE_EVALUATION} ({where})", len(plan) * len(seeds))
    started = time.perf_counter()
    record = None if videos is None else videos.watch(plan, {task.index: task.name for task in tasks})

    def show(seed: int, number: int, picture: Any) -> None:
        if keeper is not None:
            keeper.look(seed, number, plan[number], picture)
        if record is not None and seed == seeds[0]:
            record(number, picture)
        if on_pictures is not None:
            on_pictures(plan[number], number, picture)

    def end(seed: int, trajectory: Trajectory) -> None:
        if keeper is not None:
            keeper.ended(seed, trajectory.slot, trajectory)

    temperature, episodes = config.evaluation.temperature, []
    for seed in seeds:
        envs.perturb(perturbations, seed)
        episodes += evaluate(
            policy,
            envs,
            plan,
            temperature,
            seed,
            reporter,
            on_pictures=partial(show, seed),
            on_look=on_look,
            on_episode=partial(end, seed),
            played=None if keeper is None else keeper.played(seed, plan),
            ranks=ranks,
        )
    if videos is not None:
        videos.write()
    return EvaluationResult.from_episodes(
        episodes,
        {task.index: task.instruction for task in tasks},
        suite=envs.suite.name,
        split=split,
        policy=label or policy.name,
        temperature=temperature,
        seeds=seeds,
        seconds=time.perf_counter() - started if keeper is None else keeper.seconds,
        protocol=protocol,
        settings=used_settings(config, policy, envs.suite.max_steps, perturbations),
    )


def make_envs(config: TrainConfig, policy: VLAPolicy) -> LiberoVectorEnv:
    """The vector environment of a configuration, with the policy's chunk size and kind of pictures."""
    env = config.env
    return LiberoVectorEnv(
        num_envs=env.num_envs,
        suite=env.suite,
        workers=env.workers,
        chunk_size=policy.chunk_size,
        cameras=policy.cameras if env.cameras == "policy" else env.cameras,
        image_size=policy.image_size if env.image_size == "policy" else env.image_size,
        render_profile=render_profile(config, policy),
        max_steps=env.max_steps,
        settle_steps=env.settle_steps,
        exact=env.exact,
    )


def load_trained(config: TrainConfig, checkpoint: Path | None = None, *, for_training: bool = False) -> VLAPolicy:
    """The policy of a configuration, with what a checkpoint of a run has learned.

    Args:
        config: Names the policy, and says how it is to be used.
        checkpoint: A checkpoint's folder, or None for the policy as it was before training.
        for_training: Leave aside a regression head, which has nothing to train, unless it is asked for.

    Raises:
        CheckpointError: It is missing, corrupt, or does not fit.
    """
    settings = config.policy
    if checkpoint is not None and (checkpoint / POLICY_FOLDER).is_dir():
        return load_policy(checkpoint / POLICY_FOLDER, _device(config), settings.precision)
    policy = load_policy(
        settings.path,
        # Steps of an optimizer are too small for weights that are held in bfloat16.
        precision="fp32" if settings.full else settings.precision,
        **_policy_arguments(config, for_training or checkpoint is not None or settings.adapter is not None),
    )
    policy.precision = settings.precision
    policy.gradient_checkpointing = settings.gradient_checkpointing
    if checkpoint is not None:
        lora.load_adapter(policy, checkpoint / ADAPTER_FOLDER, trainable=False)
    elif settings.adapter is not None:
        lora.load_adapter(policy, Path(settings.adapter), trainable=for_training)
    return policy


def pinned(config: TrainConfig) -> TrainConfig:
    """A configuration that names the very policy it means, wherever and whenever it is read again.

    A Hub id gets its commit, a folder its whole path, and what was left to the folder or the machine is written out.
    The policy is checked first (:func:`check_trainable`).
    """
    found, settings = check_trainable(config), config.policy
    config = with_micro_batch(config, found)
    if settings.path in BUILT_IN:
        return config
    changes: dict[str, Any] = {"revision": found.revision, "quantize": found.quantization}
    if Path(settings.path).is_dir():
        changes["path"] = str(Path(settings.path).resolve())
    if settings.adapter is not None:
        changes["adapter"] = str(Path(settings.adapter).resolve())
    if found.options is not None:
        changes |= {
            "head": found.options.head,
            "num_images": found.options.num_images,
            "proprio": found.options.proprio,
            "unnorm_key": found.statistics,
        }
    return config.model_copy(update={"policy": settings.model_copy(update=changes)})


def with_micro_batch(config: TrainConfig, found: PolicyFacts) -> TrainConfig:
    """A configuration that says how many looks go through the policy at once; see :func:`choose_micro_batch`."""
    looks = choose_micro_batch(config, found.config, found.quantization, torch.device(_device(config)))
    return config.model_copy(update={"grpo": config.grpo.model_copy(update={"micro_batch": looks})})


def check_trainable(config: TrainConfig) -> PolicyFacts:
    """Refuse a policy that cannot be loaded or trained, before its weights are read and anything is written.

    Raises:
        VlacoachError: As :func:`load_trained` would, and for a head that has nothing to train.
    """
    settings = config.policy
    found = check_policy(settings.path, **_policy_arguments(config, True))
    require_tokens(found.config, settings.path)
    if found.adapter is not None:
        raise ConfigError(
            f"{settings.path} is an adapter, which is trained on from its base.",
            "adapter_config.json in it names the base: --policy BASE --set policy.adapter=FOLDER.",
        )
    if settings.full and found.quantization != "none":
        raise ConfigError(
            f"Weights that are quantized ({found.quantization}) cannot be trained.",
            "Train a LoRA adapter on them, or add --quantize none.",
        )
    if settings.adapter is not None:
        lora.check_adapter(Path(settings.adapter))
    if found.config.num_images > len(CAMERAS):
        raise ConfigError(
            f"policy.num_images is {found.config.num_images}; LIBERO has {len(CAMERAS)} cameras.",
            "Use as many as the policy was trained with.",
        )
    return found


def _policy_arguments(config: TrainConfig, tokens_only: bool) -> dict[str, Any]:
    settings = config.policy
    return {
        "device": _device(config),
        "quantize": settings.quantize,
        "revision": settings.revision,
        "unnorm_key": settings.unnorm_key,
        "options": OpenVLAOptions.from_settings(settings, tokens_only),
    }


def _device(config: TrainConfig) -> str:
    wanted = config.policy.device
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda" if present else "cpu"
    _, _, index = wanted.partition(":")
    if wanted.startswith("cuda") and int(index or 0) >= present:
        raise ConfigError(
            f"policy.device is {wanted!r}, and torch finds {present} CUDA devices here.",
            "Leave it at auto, or check the driver with nvidia-smi and torch's build with vlacoach doctor.",
        )
    return wanted
