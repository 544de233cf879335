"""The reward lab: make rollouts of known outcome and quality, and measure scorers on them.

Scorers that learn are fitted on one half of the initial states and measured on the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vlacoach.agents.prompts import Prompt
from vlacoach.agents.rollout import Job, collect, one_thread
from vlacoach.agents.seeding import Stream, derived_seed, torch_generator
from vlacoach.data.rollouts import RecordedEpisode
from vlacoach.envs.experts.attempts import EXPERT, GROSS_FAILURE, NEAR_MISS, NOISY_EXPERT, Attempt, attempt_all
from vlacoach.envs.suites import NUM_INITIAL_STATES
from vlacoach.envs.vector import LiberoVectorEnv
from vlacoach.errors import ConfigError, VlacoachError
from vlacoach.policies.policy import VLAPolicy
from vlacoach.rewards.bench import POLICY, LabEpisode, ScorerReport, assess, closeness
from vlacoach.rewards.registry import make_scorer
from vlacoach.rewards.scorers import Scorer
from vlacoach.rewards.self_referential import self_referential_details
from vlacoach.rewards.siglip import SiglipScorer, cell_means
from vlacoach.rewards.siglip_t import SiglipTScorer
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs.reporting import NullReporter, Reporter

SHARES = {POLICY: 8, EXPERT: 2, NOISY_EXPERT: 4, NEAR_MISS: 5, GROSS_FAILURE: 5}
"""Parts of a task's episodes that come from each source."""

DEFAULT_SCORERS = (
    "siglip-t",
    "siglip-t:fusion=add",
    "siglip-t:untrained=true",
    "siglip-t:fusion=add,untrained=true",
    "siglip",
    "v-jepa",
    "pixels",
)
"""What ``vlacoach reward bench`` compares."""

_ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer as the command line names it: ``name`` or ``name:option=value,option=value``.

    Attributes:
        text: As written.
        name: Of the scorer.
        options: Of its factory.
        untrained: Leave the temporal MLP at random weights, for comparison: what training does for it.
    """

    text: str
    name: str
    options: Mapping[str, Any]
    untrained: bool = False

    @classmethod
    def parse(cls, text: str) -> ScorerSpec:
        """Read ``name:option=value,...``; values are YAML.

        Raises:
            ConfigError: An option has no value.
        """
        import yaml

        name, _, rest = text.partition(":")
        options: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise ConfigError(
                    f"Option {part!r} of scorer {name!r} has no value.",
                    "Write name:option=value, for example siglip-t:fusion=add.",
                )
            try:
                options[key.strip()] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"The value {value!r} of option {key!r} of scorer {name!r} is no YAML.") from error
        return cls(text, name.strip(), options, bool(options.pop("untrained", False)))


def collect_rollouts(
    policy: VLAPolicy,
    suite: str,
    tasks: Sequence[int],
    episodes: int,
    *,
    states: Sequence[int] = range(NUM_INITIAL_STATES),
    max_steps: int = 120,
    num_envs: int = 16,
    workers: int = 2,
    temperature: float = 1.0,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[RecordedEpisode]:
    """Make rollouts of every kind: of the policy, of experts, of noisy experts, near misses and gross failures.

    Args:
        policy: The policy; its cameras, and its size and kind of pictures, are used throughout.
        suite: Name of a suite that has experts.
        tasks: Indices of tasks that have experts.
        episodes: Episodes for each task, of all kinds together.
        states: Initial states, used in turn by every kind.
        max_steps: Step limit of an episode.
        num_envs: Worlds the policy plays in side by side.
        workers: Processes.
        temperature: The policy's sampling temperature.
        seed: Everything random comes from it.
        reporter: Shows progress.

    Returns:
        The episodes, by task and source; those whose simulation broke down are left out.

    Raises:
        ConfigError: A task has no expert.
    """
    reporter = reporter or NullReporter()
    total = sum(SHARES.values())
    counts = {source: max(1, round(episodes * share / total)) for source, share in SHARES.items()}
    attempts = [
        Attempt(
            suite, task, int(states[number % len(states)]), source, seed=seed + number // len(states),
            max_steps=max_steps, chunk_size=policy.chunk_size, cameras=policy.cameras, image_size=policy.image_size,
            render_profile=policy.config.render_profile,
        )
        for task in tasks
        for source, count in counts.items()
        if source != POLICY
        for number in range(count)
    ]  # fmt: skip
    reporter.stage("attempts of scripted experts", len(attempts))
    made = []
    for episode in attempt_all(attempts, workers):
        made.append(episode)
        reporter.advance(1)
    prompts = [Prompt(task, int(states[n % len(states)])) for task in tasks for n in range(counts[POLICY])]
    made += _play(policy, suite, prompts, max_steps, num_envs, workers, temperature, seed, reporter)
    order = {source: number for number, source in enumerate(SHARES)}
    return sorted(made, key=lambda one: (one.task, order[one.source], one.init_state, one.length))


def _play(
    policy: VLAPolicy,
    suite: str,
    prompts: Sequence[Prompt],
    max_steps: int,
    num_envs: int,
    workers: int,
    temperature: float,
    seed: int,
    reporter: Reporter,
) -> list[RecordedEpisode]:
    jobs = [Job(i, i, prompt, torch_generator(seed, Stream.LAB, i)) for i, prompt in enumerate(prompts)]
    reporter.stage("episodes of the policy", len(jobs))
    envs = LiberoVectorEnv(
        num_envs=min(num_envs, len(jobs)),
        suite=suite,
        workers=workers,
        chunk_size=policy.chunk_size,
        cameras=policy.cameras,
        image_size=policy.image_size,
        render_profile=policy.config.render_profile,
        max_steps=max_steps,
    )
    looks: dict[int, list[NDArray[np.uint8]]] = {job.slot: [] for job in jobs}
    try:
        played = collect(
            policy,
            envs,
            jobs,
            temperature,
            keep_features=False,
            on_episode=lambda _: reporter.advance(1),
            on_pictures=lambda slot, look: looks[slot].append(look),
        )
    finally:
        envs.close()
    return [
        RecordedEpisode(
            suite, t.task, t.init_state, t.instruction, POLICY, t.success, t.length, np.stack(looks[t.slot])
        )
        for t in played
        if t.valid
    ]


def as_trajectory(policy: VLAPolicy, episode: RecordedEpisode, slot: int = 0) -> Trajectory:
    """A recorded episode as scorers take it: its frames, encoded by the policy's vision tower; no actions."""
    frames = torch.from_numpy(episode.frames)
    parts = [policy.encode(frames[i : i + _ENCODED_AT_ONCE]) for i in range(0, len(frames), _ENCODED_AT_ONCE)]
    features = torch.cat(parts).cpu()
    looks = len(frames) - 1
    executed = torch.zeros(looks, dtype=torch.int64)
    if looks:
        executed[-1] = episode.length
    return Trajectory(
        task=episode.task,
        init_state=episode.init_state,
        group=slot,
        slot=slot,
        instruction=episode.instruction,
        features=features[:-1],
        terminal_features=features[-1],
        proprio=torch.zeros(looks, 0),
        tokens=torch.zeros(looks, 0, dtype=torch.int64),
        log_prob=torch.zeros(looks, 0),
        executed=executed,
        success=episode.success,
        length=episode.length if looks else 0,
        frames=torch.from_numpy(episode.pictures),
    )


def bench(
    policy: VLAPolicy,
    recorded: Sequence[RecordedEpisode],
    scorers: Sequence[tuple[ScorerSpec, Scorer]],
    *,
    seed: int = 0,
    resamples: int = 1000,
    reporter: Reporter | None = None,
) -> list[ScorerReport]:
    """Measure scorers on rollouts.

    Args:
        policy: Gives the features.
        recorded: The rollouts; scorers are fitted on even initial states and measured on odd ones.
        scorers: The scorers, with what the command line called them; see :func:`build`.
        seed: Everything random comes from it.
        resamples: Of the bootstrap.
        reporter: Shows progress.

    Raises:
        ConfigError: The rollouts are of several suites.
        VlacoachError: One half of the rollouts has no task with two successes.
    """
    reporter = reporter or NullReporter()
    check_suites(recorded)
    with one_thread():  # Small matrices: more threads only wait for each other, and a cost is that of one core.
        return _measure(policy, recorded, scorers, seed, resamples, reporter)


def _measure(
    policy: VLAPolicy,
    recorded: Sequence[RecordedEpisode],
    scorers: Sequence[tuple[ScorerSpec, Scorer]],
    seed: int,
    resamples: int,
    reporter: Reporter,
) -> list[ScorerReport]:
    reporter.stage("vision features", len(recorded))
    episodes = []
    for slot, one in enumerate(recorded):
        episodes.append(LabEpisode(as_trajectory(policy, one, slot), one.source))
        reporter.advance(1)
    learning = [one.trajectory for one in episodes if one.trajectory.init_state % 2 == 0]
    measured = [one for one in episodes if one.trajectory.init_state % 2 == 1]
    if not learning or not measured:
        raise VlacoachError(
            "All rollouts start from even, or all from odd, initial states.",
            "Scorers are fitted on even states and measured on odd ones: collect rollouts from both.",
        )
    reporter.stage("scorers", len(scorers))
    reports = []
    for spec, scorer in scorers:
        statistics = fit(scorer, learning, spec.untrained, seed)
        reports.append(assess(scorer, measured, name=spec.text, seed=seed, resamples=resamples, fit=statistics))
        reporter.advance(1)
    return reports


def build(spec: ScorerSpec, policy: VLAPolicy) -> Scorer:
    """The scorer of a specification; one that is to stay untrained takes no steps.

    Raises:
        UnknownNameError: There is no such scorer or option.
        ConfigError: An option has a value that does not fit, the scorer embeds nothing, or it cannot be left untrained.
    """
    options = {**spec.options, "steps": 0} if spec.untrained else dict(spec.options)
    if spec.untrained and spec.name != "siglip-t":
        raise ConfigError(f"Scorer {spec.name!r} cannot be left untrained.", "Only siglip-t has an MLP to train.")
    try:
        scorer = make_scorer(spec.name, policy=policy, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"An option of scorer {spec.text!r} has a value that does not fit: {error}.") from error
    if not scorer.compares:
        raise ConfigError(f"Scorer {spec.name!r} embeds nothing that could be measured.", "Its reward is the outcome.")
    if isinstance(scorer, SiglipScorer):
        cell_means(torch.zeros(1, policy.num_patches, 1), scorer.grid)
    return scorer


def check_suites(episodes: Iterable[RecordedEpisode]) -> None:
    """Refuse episodes of several suites, whose tasks have the same numbers; videos do not say theirs.

    Raises:
        ConfigError: There are several.
    """
    suites = sorted({episode.suite for episode in episodes} - {""})
    if len(suites) > 1:
        raise ConfigError(
            f"The episodes are of several suites: {', '.join(suites)}.", "Compare episodes of one suite only."
        )


def fit(scorer: Scorer, trajectories: Sequence[Trajectory], untrained: bool, seed: int) -> dict[str, float]:
    """Train a scorer that learns; or give an MLP that is to stay untrained random weights in all of its layers.

    The MLP's last layer starts at zero, which makes an untrained one the identity. As the seed of this idea had it,
    all weights were random and stayed so; that is what ``untrained`` reproduces.
    """
    if not scorer.can_fit(trajectories):
        return {}
    statistics = scorer.fit(trajectories, seed=derived_seed(seed, Stream.SCORER))
    if untrained and isinstance(scorer, SiglipTScorer):
        generator = torch.Generator().manual_seed(seed)
        nn.init.xavier_uniform_(scorer.fusion.outer.weight, generator=generator)
        return {}
    return statistics


@dataclass(frozen=True)
class EpisodeScore:
    """What a scorer says of one episode.

    Attributes:
        episode: What it is.
        task: Index of its task.
        distance: To the nearest reference center of the task.
        closer_than: Share of the reference's failures of the task that lie farther away, 0 to 1.
        closer_than_successes: Share of the reference's successes that lie farther from the other successes.
        reward: What the self-referential rule gives it as a failure among the reference's failures, 0 to 0.6.
    """

    episode: str
    task: int
    distance: float
    closer_than: float
    closer_than_successes: float
    reward: float


def score_episodes(
    scorer: Scorer, references: Sequence[Trajectory], episodes: Mapping[str, Trajectory]
) -> list[EpisodeScore]:
    """Score single episodes against reference rollouts of their tasks.

    Args:
        scorer: Fitted.
        references: Rollouts with successes and failures.
        episodes: What to score, by name; each as if it had failed.

    Raises:
        VlacoachError: The references of a task lack successes or failures.
    """
    scores = []
    embedded: dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
    for name, episode in episodes.items():
        task = episode.task
        if task not in embedded:
            rows = [one for one in references if one.task == task and one.valid]
            won = np.array([one.success for one in rows], dtype=bool)
            if won.sum() < 2 or won.all():
                raise VlacoachError(
                    f"The reference rollouts have {won.sum()} successes and {(~won).sum()} failures of task {task}.",
                    "Two successes and one failure are needed; see: vlacoach reward bench --save FILE",
                )
            embedded[task] = scorer.embed_all(rows), won
        points, won = embedded[task]
        every = np.concatenate([points, scorer.embed_all([episode])])
        outcome = np.append(won, False)
        details = self_referential_details(every, outcome, np.zeros(len(every)), **asdict(scorer.rule))
        near = closeness(every, outcome, np.zeros(len(every)))
        scores.append(
            EpisodeScore(
                episode=name,
                task=task,
                distance=float(details.distance[-1]),
                closer_than=float((details.distance[:-1][~won] > details.distance[-1]).mean()),
                closer_than_successes=float((near[:-1][won] < near[-1]).mean()),
                reward=float(details.score[-1]),
            )
        )
    return scores
