"""Success of each task of a run: at first, at last, and on held-out states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlacoach.runs import constants as names
from vlacoach.runs.results import EvaluationResult
from vlacoach.runs.statistics import Interval, wilson_interval

SHARE = 10
"""The first and the last tenth of the updates are compared."""


@dataclass(frozen=True)
class Count:
    """Successes among episodes.

    Attributes:
        successes: Episodes that succeeded.
        episodes: Episodes in all.
    """

    successes: int = 0
    episodes: int = 0

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the rate."""
        return wilson_interval(self.successes, self.episodes)


@dataclass(frozen=True)
class TaskRow:
    """One task of a run.

    Attributes:
        task: Index of the task in its suite.
        name: Its name; empty if no evaluation says it.
        first: Rollouts of the first updates.
        last: Rollouts of the last updates.
        before: Held-out episodes before training.
        after: Held-out episodes after training.
    """

    task: int
    name: str
    first: Count
    last: Count
    before: Count
    after: Count


def window(episodes: Sequence[Mapping[str, Any]]) -> int:
    """Updates that count as the first, and as the last: a tenth of those there are, at least one."""
    return max(1, len(_updates(episodes)) // SHARE)


def _updates(episodes: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({episode[names.STEP] for episode in episodes if isinstance(episode.get(names.STEP), int)})


def task_rows(
    episodes: Sequence[Mapping[str, Any]], before: EvaluationResult | None, after: EvaluationResult | None
) -> list[TaskRow]:
    """Success by task.

    Args:
        episodes: Lines of episodes.jsonl; invalid episodes do not count.
        before: The held-out evaluation before training, if there is one.
        after: The held-out evaluation after training, if there is one.

    Returns:
        One row a task, in the order of their indices.
    """
    updates, width = _updates(episodes), window(episodes)
    first = _counts(episodes, set(updates[:width]))
    last = _counts(episodes, set(updates[-width:]))
    held_out = [
        {task.task: Count(task.successes, task.episodes) for task in result.tasks} if result else {}
        for result in (before, after)
    ]
    titles = {task.task: task.name for result in (before, after) if result for task in result.tasks}
    nothing = Count()
    return [
        TaskRow(
            task,
            titles.get(task, ""),
            first.get(task, nothing),
            last.get(task, nothing),
            *(counts.get(task, nothing) for counts in held_out),
        )
        for task in sorted({*first, *last, *titles})
    ]


def _counts(episodes: Sequence[Mapping[str, Any]], updates: set[int]) -> dict[int, Count]:
    counts: dict[int, Count] = {}
    for episode in episodes:
        task = episode.get("task")
        if isinstance(task, int) and episode.get(names.STEP) in updates and episode.get("valid", True):
            known = counts.get(task, Count())
            counts[task] = Count(known.successes + bool(episode.get("success")), known.episodes + 1)
    return counts
