"""What an evaluation and a training run found, as plain data that is written, read and compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vlacoach.errors import RunError
from vlacoach.runs.constants import RESULTS_FILE, SCHEMA_VERSION
from vlacoach.runs.files import plain, replace_text
from vlacoach.runs.statistics import (
    ClusteredDifference,
    Interval,
    PairedDifference,
    cluster_bootstrap,
    clustered_difference,
    paired_difference,
    wilson_interval,
)

PERTURBATIONS = "env.perturbations"
"""Among an evaluation's settings: what its episodes are perturbed by, such as ``["camera:3"]``."""


class Episode(Protocol):
    """What is needed of an episode to count it."""

    @property
    def task(self) -> int:
        """Index of the task."""

    @property
    def init_state(self) -> int:
        """Index of the initial state."""

    @property
    def success(self) -> bool:
        """Whether it succeeded."""

    @property
    def length(self) -> int:
        """Control steps."""


@dataclass(frozen=True)
class TaskResult:
    """Episodes of one task.

    Attributes:
        task: Index of the task in its suite.
        name: Its name or instruction.
        states: ``(N,)`` initial state of each episode.
        success: ``(N,)`` whether the episode succeeded.
        lengths: ``(N,)`` control steps of the episode.
    """

    task: int
    name: str
    states: tuple[int, ...]
    success: tuple[bool, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.states) == len(self.success) == len(self.lengths):
            raise ValueError(f"task {self.task} has states, successes and lengths of different numbers")

    @property
    def successes(self) -> int:
        """Episodes that succeeded."""
        return sum(self.success)

    @property
    def episodes(self) -> int:
        """Episodes in all."""
        return len(self.success)

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the success rate."""
        return wilson_interval(self.successes, self.episodes)


@dataclass(frozen=True)
class EvaluationResult:
    """Episodes of one policy on one split of a suite's initial states.

    Attributes:
        suite: Name of the suite.
        split: ``"held-out"``, ``"train"`` or ``"all"``.
        policy: Which policy acted.
        temperature: Sampling temperature; 0 is greedy.
        seeds: Seeds of the episodes; each task's episodes are those of the first seed, then of the next.
        tasks: One entry for each task.
        seconds: Wall-clock time it took.
        protocol: Protocol whose settings were used as a basis, or None.
        settings: Every setting that decides the result, by dotted key, as it was used.
    """

    suite: str
    split: str
    policy: str
    temperature: float
    seeds: tuple[int, ...]
    tasks: tuple[TaskResult, ...]
    seconds: float
    protocol: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Episode],
        names: Mapping[int, str],
        *,
        suite: str,
        split: str,
        policy: str,
        temperature: float,
        seeds: Iterable[int],
        seconds: float,
        protocol: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> EvaluationResult:
        """Sort episodes by task.

        Args:
            episodes: Episodes in any order; within a task they stay in the order given, which pairs them.
            names: Name or instruction of each task.
            suite: Name of the suite.
            split: ``"held-out"``, ``"train"`` or ``"all"``.
            policy: Which policy acted.
            temperature: Sampling temperature; 0 is greedy.
            seeds: Seeds of the episodes, whose episodes come one seed after the other.
            seconds: Wall-clock time it took.
            protocol: Protocol whose settings were used as a basis, or None.
            settings: Every setting that decides the result, as it was used.
        """
        by_task: dict[int, list[Episode]] = {}
        for episode in episodes:
            by_task.setdefault(episode.task, []).append(episode)
        tasks = tuple(
            TaskResult(
                task=task,
                name=names.get(task, ""),
                states=tuple(episode.init_state for episode in by_task[task]),
                success=tuple(bool(episode.success) for episode in by_task[task]),
                lengths=tuple(int(episode.length) for episode in by_task[task]),
            )
            for task in sorted(by_task)
        )
        return cls(suite, split, policy, temperature, tuple(seeds), tasks, seconds, protocol, dict(settings or {}))

    @property
    def success(self) -> npt.NDArray[np.bool_]:
        """``(N,)`` bool, every episode, task after task."""
        return np.array([flag for task in self.tasks for flag in task.success], dtype=bool)

    @property
    def successes(self) -> int:
        """Episodes that succeeded, over all tasks."""
        return sum(task.successes for task in self.tasks)

    @property
    def episodes(self) -> int:
        """Episodes in all."""
        return sum(task.episodes for task in self.tasks)

    @property
    def rate(self) -> float:
        """Success rate over all episodes, in [0, 1]; NaN without episodes."""
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of :attr:`rate`."""
        return wilson_interval(self.successes, self.episodes)

    @property
    def perturbations(self) -> tuple[str, ...]:
        """What every episode was perturbed by, all at once, for example ``("camera:3",)``."""
        return tuple(self.settings.get(PERTURBATIONS, ()))

    @property
    def states(self) -> npt.NDArray[np.int64]:
        """``(N, 2)`` int64, task and initial state of each episode, in the order of :attr:`success`."""
        return np.array([(task.task, state) for task in self.tasks for state in task.states], dtype=np.int64)

    @property
    def repeated(self) -> bool:
        """Whether an initial state has several episodes, which are then not independent."""
        return any(len(set(task.states)) < task.episodes for task in self.tasks)

    @property
    def clustered_interval(self) -> Interval:
        """95 % bootstrap interval of :attr:`rate` with (task, initial state) as clusters; [0, 1] without episodes."""
        if not self.episodes:
            return Interval(0.0, 1.0)
        states = self.states
        return cluster_bootstrap(self.success, states[:, 1], states[:, 0])

    def to_json(self) -> dict[str, Any]:
        """JSON types, with the rate and its interval spelled out for readers that do no arithmetic."""
        interval, clustered = self.interval, self.clustered_interval
        summary: dict[str, Any] = {
            "success": self.rate,
            "low": interval.low,
            "high": interval.high,
            "episodes": self.episodes,
        }
        summary |= {"clusters": len({*map(tuple, self.states.tolist())}), "clustered": asdict(clustered)}
        return plain({**asdict(self), "summary": summary})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvaluationResult:
        """Inverse of :meth:`to_json`.

        Raises:
            RunError: The data are not an evaluation.
        """
        try:
            tasks = tuple(
                TaskResult(
                    task=int(task["task"]),
                    name=str(task["name"]),
                    states=tuple(int(state) for state in task["states"]),
                    success=tuple(bool(flag) for flag in task["success"]),
                    lengths=tuple(int(length) for length in task["lengths"]),
                )
                for task in data["tasks"]
            )
            return cls(
                suite=str(data["suite"]),
                split=str(data["split"]),
                policy=str(data["policy"]),
                temperature=float(data["temperature"]),
                seeds=tuple(int(seed) for seed in data["seeds"]),
                tasks=tasks,
                seconds=float(data["seconds"]),
                protocol=None if data["protocol"] is None else str(data["protocol"]),
                settings=dict(data["settings"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"Not an evaluation result: {type(error).__name__} {error}.") from error


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same episodes.

    Attributes:
        before: The earlier.
        after: The later.
        tasks: Paired difference of each task, in the order of ``before.tasks``.
        overall: Paired difference over all episodes.
        clustered: The same with (task, initial state) as clusters, for several episodes of a state.
    """

    before: EvaluationResult
    after: EvaluationResult
    tasks: tuple[PairedDifference, ...]
    overall: PairedDifference
    clustered: ClusteredDifference

    def to_json(self) -> dict[str, Any]:
        """JSON types: both evaluations, the overall difference, and the same over clusters."""
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "difference": plain(asdict(self.overall)),
            "clustered": plain(asdict(self.clustered)),
        }


def compare(before: EvaluationResult, after: EvaluationResult) -> Comparison:
    """Pair two evaluations episode by episode.

    Raises:
        RunError: They are not of the same tasks, initial states and seeds, so that nothing can be paired.
    """
    keys = [[(task.task, task.states) for task in result.tasks] for result in (before, after)]
    if (before.suite, before.seeds, keys[0]) != (after.suite, after.seeds, keys[1]):
        raise RunError(
            "The two evaluations are not of the same tasks, initial states and seeds.",
            "Evaluate both with the same --suite, --tasks, --split, --trials and --seeds.",
        )
    if before.episodes == 0:
        raise RunError("The two evaluations have no episodes.")
    tasks = tuple(
        paired_difference(first.success, second.success)
        for first, second in zip(before.tasks, after.tasks, strict=True)
    )
    states = before.states
    overall = paired_difference(before.success, after.success)
    clustered = clustered_difference(before.success, after.success, states[:, 1], states[:, 0])
    return Comparison(before, after, tasks, overall, clustered)


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves.

    Attributes:
        run: Its folder.
        updates: Updates done.
        seconds: Wall-clock time, evaluations included.
        comparisons: Split (``"held-out"``, ``"train"``) to evaluation before and after; empty if none was made.
        artifacts: What it is (``"adapter"``, ``"plot"``, ``"video"``) to where it is.
    """

    run: Path
    updates: int
    seconds: float
    comparisons: Mapping[str, Comparison]
    artifacts: Mapping[str, Path]

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "schema_version": SCHEMA_VERSION,
            "run": str(self.run),
            "updates": self.updates,
            "seconds": round(self.seconds, 3),
            "comparisons": {split: comparison.to_json() for split, comparison in self.comparisons.items()},
            "artifacts": {name: str(path) for name, path in self.artifacts.items()},
        }


class Result(Protocol):
    """Whatever was found and can be written."""

    def to_json(self) -> dict[str, Any]:
        """JSON types."""


def write_results(result: Result, file: Path) -> None:
    """Write a result as JSON, whole or not at all.

    Raises:
        RunError: The file cannot be written.
    """
    replace_text(file, json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")


def read_baseline(file: Path) -> dict[str, EvaluationResult]:
    """Evaluations before training, by split; empty if there is no such file yet.

    Raises:
        RunError: The file is damaged.
    """
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return {str(split): EvaluationResult.from_json(entry) for split, entry in data.items()}
    except (OSError, ValueError, AttributeError, RunError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error


def read_comparisons(file: Path) -> dict[str, Comparison]:
    """Comparisons of a training run's results file; empty if there is no such file yet.

    Raises:
        RunError: The file is damaged.
    """
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        pairs = {
            str(split): (
                EvaluationResult.from_json(entry["before"]),
                EvaluationResult.from_json(entry["after"]),
            )
            for split, entry in data["comparisons"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} cannot be read: {type(error).__name__} {error}.") from error
    return {split: compare(before, after) for split, (before, after) in pairs.items()}


def read_train_result(run: Path) -> TrainResult:
    """What a finished training left in its folder, wherever that has been copied to.

    Raises:
        RunError: The results file is missing or damaged.
    """
    file = run / RESULTS_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        artifacts = {str(name): run / Path(path).relative_to(data["run"]) for name, path in data["artifacts"].items()}
        return TrainResult(run, int(data["updates"]), float(data["seconds"]), read_comparisons(file), artifacts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} cannot be read: {type(error).__name__} {error}.") from error
