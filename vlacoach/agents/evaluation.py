"""Measure a policy's success on given tasks and initial states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlacoach.agents.prompts import Prompt
from vlacoach.agents.rollout import ChunkEnvs, Job, collect
from vlacoach.agents.seeding import Stream, torch_generator
from vlacoach.errors import SimulatorError
from vlacoach.policies.policy import VLAPolicy
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs.reporting import NullReporter, Reporter
from vlacoach.runs.statistics import Interval, PairedDifference, paired_difference, wilson_interval


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


@dataclass(frozen=True)
class Evaluation:
    """Outcomes of an evaluation; episodes of equal position in two evaluations of one plan are pairs.

    Attributes:
        episodes: In the order of the plan.
        temperature: Sampling temperature; 0 is greedy.
    """

    episodes: tuple[EpisodeResult, ...]
    temperature: float

    @property
    def tasks(self) -> tuple[int, ...]:
        """Tasks that were evaluated, ascending."""
        return tuple(sorted({episode.task for episode in self.episodes}))

    def success(self, task: int | None = None) -> NDArray[np.bool_]:
        """(N,) success of each episode, of one task or of all."""
        return np.array([e.success for e in self.episodes if task in (None, e.task)], dtype=np.bool_)

    def rate(self, task: int | None = None) -> float:
        """Success rate, of one task or of all."""
        return float(self.success(task).mean())

    def interval(self, task: int | None = None) -> Interval:
        """Wilson's 95 % interval of the success rate."""
        success = self.success(task)
        return wilson_interval(int(success.sum()), len(success))

    def compare(self, before: Evaluation, task: int | None = None) -> PairedDifference:
        """Paired difference to an evaluation of the same plan."""
        return paired_difference(before.success(task), self.success(task))

    def to_dict(self) -> dict[str, Any]:
        """JSON values: rates, intervals, and every episode."""
        interval = self.interval()
        return {
            "success": self.rate(),
            "interval": [interval.low, interval.high],
            "episodes": [asdict(episode) for episode in self.episodes],
            "temperature": self.temperature,
            "tasks": {
                str(task): {
                    "success": self.rate(task),
                    "interval": [self.interval(task).low, self.interval(task).high],
                    "episodes": len(self.success(task)),
                    "mean_length": float(np.mean([e.length for e in self.episodes if e.task == task])),
                }
                for task in self.tasks
            },
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluation:
        """Read what :meth:`to_dict` gave."""
        return cls(tuple(EpisodeResult(**episode) for episode in values["episodes"]), values["temperature"])


def evaluation_plan(tasks: Sequence[int], states: Sequence[int], trials: int) -> list[Prompt]:
    """``trials`` episodes a task, its states in turn."""
    return [Prompt(task, states[trial % len(states)]) for task in tasks for trial in range(trials)]


def evaluate(
    policy: VLAPolicy,
    envs: ChunkEnvs,
    plan: Sequence[Prompt],
    temperature: float = 0.0,
    seed: int = 0,
    reporter: Reporter | None = None,
    on_pictures: Callable[[int, Any], None] | None = None,
    on_look: Callable[[], None] | None = None,
) -> Evaluation:
    """Play a plan and count successes.

    Two calls with the same plan and seed draw the same random numbers for each episode, so that before and after
    are paired. An episode whose simulation broke down is played again, at most three times.

    Args:
        policy: The policy.
        envs: Vector environment whose chunk size is the policy's.
        plan: The episodes.
        temperature: Sampling temperature; 0 is greedy.
        seed: Seed of the sampling.
        reporter: Shows progress.
        on_pictures: Called with an episode's number and each of its pictures.
        on_look: Called once per round of the worlds.
    """
    reporter = reporter or NullReporter()
    won = played = 0

    def show(trajectory: Trajectory) -> None:
        nonlocal won, played
        won, played = won + trajectory.success, played + 1
        reporter.advance(1, success=won / played)

    outcomes: dict[int, Trajectory] = {}
    todo = list(range(len(plan)))
    for attempt in range(3):
        jobs = [Job(i, i, plan[i], torch_generator(seed, Stream.EVALUATION, i, attempt)) for i in todo]
        played_now = collect(
            policy,
            envs,
            jobs,
            temperature,
            keep_features=False,
            on_episode=show,
            on_pictures=on_pictures,
            on_look=on_look,
        )
        outcomes |= {trajectory.slot: trajectory for trajectory in played_now}
        todo = [i for i in todo if not outcomes[i].valid]
        if not todo:
            break
    else:
        raise SimulatorError(
            f"The simulation of task {plan[todo[0]].task}, initial state {plan[todo[0]].init_state}, became unstable "
            "in three attempts.",
            "Leave this state out; the episode is neither a success nor a failure.",
        )
    seen: dict[Prompt, int] = {}
    results = []
    for i, prompt in enumerate(plan):
        trial = seen[prompt] = seen.get(prompt, -1) + 1
        outcome = outcomes[i]
        results.append(EpisodeResult(prompt.task, prompt.init_state, trial, outcome.success, outcome.length))
    return Evaluation(tuple(results), temperature)
