"""A run on one page: is it learning, is it healthy, when does it end. Computed from what was read of its folder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlacoach.runs import constants as names
from vlacoach.runs.series import Series, SeriesTable
from vlacoach.runs.statistics import Interval, wilson_interval
from vlacoach.runs.watching import RunWatcher

STAGES = (
    names.STAGE_ROLLOUT,
    names.STAGE_REWARD,
    names.STAGE_FILTER,
    names.STAGE_ADVANTAGE,
    names.STAGE_UPDATE,
)
"""Stages of an update, in order."""

RECENT = 10
"""Updates that speeds and forecasts are taken from."""

ACTIVE = (names.STATUS_CREATED, names.STATUS_RUNNING, names.STATUS_PAUSED)
"""States of a run that is at work."""


@dataclass(frozen=True)
class Rate:
    """A success rate.

    Attributes:
        step: Updates done when it was measured.
        rate: In [0, 1].
        episodes: Episodes it was measured on, or None if that is unknown.
        low: Lower end of Wilson's 95 % interval, or None.
        high: Upper end.
    """

    step: int
    rate: float
    episodes: int | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Success:
    """A success rate over the run.

    Attributes:
        now: The newest.
        start: The oldest.
        best: The highest.
    """

    now: Rate
    start: Rate
    best: Rate


@dataclass(frozen=True)
class TaskSuccess:
    """Success on one task.

    Attributes:
        task: Index in the suite.
        rates: (update, rate) of every update that played it.
        successes: Successes in the newest updates.
        episodes: Episodes of the newest updates.
        interval: Wilson's 95 % interval of their rate.
        trend: Rate of the newest updates less that of as many before, or None.
        held_out: Newest rate on held-out states, or None.
    """

    task: int
    rates: tuple[tuple[int, float], ...]
    successes: int
    episodes: int
    interval: Interval
    trend: float | None
    held_out: float | None

    @property
    def rate(self) -> float:
        """Success rate over the newest updates, in [0, 1]; NaN without episodes."""
        return self.successes / self.episodes if self.episodes else math.nan


@dataclass(frozen=True)
class Overview:
    """What a glance at a run should tell.

    Attributes:
        run: Name of the folder.
        path: The folder.
        status: A status of run.json, or ``"stalled"``.
        error: Why it failed, or None.
        problem: What cannot be read of it, or None.
        update: Updates done.
        updates: Updates in all, or None.
        stage: What it is doing, or None if it does nothing.
        done: Units of work done in the stage, or None.
        total: Units of work in the stage, or None.
        shares: Stage to its share of the time of the newest updates, in [0, 1].
        elapsed: Seconds of work so far, or None.
        remaining: Seconds until the last update is done, or None.
        success: Success of rollouts, sampled, on training states; None before the first update.
        held_out: Success on held-out states.
        training_states: Success of evaluations on training states.
        health: Metric to its newest value, for reward, groups, loss and gradient.
        env_steps_per_second: Control steps of all worlds a second, in rollouts.
        episodes_per_second: Episodes a second, in rollouts.
        system: Key of system.jsonl to its newest value.
        workers_replaced: Simulator processes that were lost so far.
        alerts: Alerts, oldest first.
        broken_lines: File to lines that could not be read.
        nonfinite: Metric to how often it was not finite.
    """

    run: str
    path: str
    status: str
    error: str | None
    problem: str | None
    update: int
    updates: int | None
    stage: str | None
    done: int | None
    total: int | None
    shares: dict[str, float]
    elapsed: float | None
    remaining: float | None
    success: Success | None
    held_out: Success | None
    training_states: Success | None
    health: dict[str, float]
    env_steps_per_second: float | None
    episodes_per_second: float | None
    system: dict[str, float]
    workers_replaced: int
    alerts: list[dict[str, Any]]
    broken_lines: dict[str, int]
    nonfinite: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


HEALTH = (
    names.REWARD_MEAN,
    names.REWARD_FAILURE_MEAN,
    names.REWARD_AUROC,
    names.ROLLOUT_GROUPS,
    names.ROLLOUT_GROUPS_KEPT,
    names.ROLLOUT_GROUPS_FAILED,
    names.ROLLOUT_GROUPS_SOLVED,
    names.ROLLOUT_LENGTH,
    names.TRAIN_LOSS,
    names.TRAIN_RATIO_FIRST,
    names.TRAIN_CLIP_FRACTION,
    names.TRAIN_KL,
    names.TRAIN_REFERENCE_KL,
    names.TRAIN_ENTROPY,
    names.TRAIN_GRADIENT_NORM,
    names.TRAIN_LEARNING_RATE,
)
"""Metrics whose newest value an overview shows."""


def overview(watcher: RunWatcher) -> Overview:
    """Sum a run up."""
    metrics, active = watcher.metrics, watcher.status in ACTIVE
    beat = watcher.heartbeat if active else {}
    update = _update(metrics)
    updates = _whole(watcher.config.get("grpo.updates"))
    rollout_seconds = metrics.last(names.TIME_PREFIX + names.STAGE_ROLLOUT)
    return Overview(
        run=watcher.path.resolve().name,
        path=str(watcher.path),
        status=watcher.status,
        error=watcher.info.get("error"),
        problem=watcher.problem,
        update=update,
        updates=updates,
        stage=str(beat["stage"]) if beat.get("stage") else None,
        done=_whole(beat.get("done")),
        total=_whole(beat.get("total")),
        shares=stage_shares(metrics),
        elapsed=metrics.last(names.TIME_ELAPSED),
        remaining=_remaining(watcher, update, updates) if active else None,
        success=_success(metrics, names.ROLLOUT_SUCCESS, names.ROLLOUT_EPISODES),
        held_out=_success(metrics, names.EVAL_SUCCESS, names.EVAL_EPISODES),
        training_states=_success(metrics, names.EVAL_TRAIN_SUCCESS, names.EVAL_TRAIN_EPISODES),
        health={key: value for key in HEALTH if (value := metrics.last(key)) is not None},
        env_steps_per_second=_per(metrics.last(names.ROLLOUT_ENV_STEPS), rollout_seconds),
        episodes_per_second=_per(metrics.last(names.ROLLOUT_EPISODES), rollout_seconds),
        system={key: value for key in watcher.system if (value := watcher.system.last(key)) is not None},
        workers_replaced=int(metrics.last(names.WORKERS_REPLACED) or 0),
        alerts=list(watcher.alerts),
        broken_lines=watcher.broken,
        nonfinite=metrics.gaps,
    )


def stage_shares(metrics: SeriesTable) -> dict[str, float]:
    """Stage to its share of the time of the newest updates."""
    seconds = {}
    for stage in STAGES:
        key = names.TIME_PREFIX + stage
        if key in metrics:
            seconds[stage] = sum(metrics[key].recent(RECENT))
    total = sum(seconds.values())
    return {stage: value / total for stage, value in seconds.items()} if total > 0 else {}


def tasks(watcher: RunWatcher) -> list[TaskSuccess]:
    """Success on each task that was played, the worst first."""
    prefix = f"{names.ROLLOUT_SUCCESS}/"
    played = _played(watcher)
    found = []
    for key in watcher.metrics:
        if not key.startswith(prefix) or not key[len(prefix) :].isdecimal():
            continue
        task = int(key[len(prefix) :])
        column = watcher.metrics[key]
        pairs = zip(column.steps, column.values, strict=True)
        rates = tuple((int(step), float(value)) for step, value in pairs if math.isfinite(step))
        successes, episodes = played.get(task, (0, 0))
        interval = wilson_interval(successes, episodes)
        values = column.recent(2 * RECENT)
        half = len(values) // 2
        trend = sum(values[half:]) / (len(values) - half) - sum(values[:half]) / half if half else None
        held_out = watcher.metrics.last(f"{names.EVAL_SUCCESS}/{task}")
        found.append(TaskSuccess(task, rates, successes, episodes, interval, trend, held_out))
    return sorted(found, key=lambda task: (math.isnan(task.rate), task.rate, task.task))


def _played(watcher: RunWatcher) -> dict[int, tuple[int, int]]:
    """Successes and episodes of each task in the newest updates."""
    newest = watcher.episodes[-1].get(names.STEP, 0) if watcher.episodes else 0
    counts: dict[int, tuple[int, int]] = {}
    for episode in reversed(watcher.episodes):
        step, task = episode.get(names.STEP), episode.get("task")
        if not isinstance(step, int) or not isinstance(task, int):
            continue
        if step <= newest - RECENT:
            break
        if episode.get("valid", True):
            won, played = counts.get(task, (0, 0))
            counts[task] = (won + bool(episode.get("success")), played + 1)
    return counts


def _update(metrics: SeriesTable) -> int:
    steps = [metrics[key].steps for key in (names.TIME_TOTAL, names.ROLLOUT_SUCCESS) if key in metrics]
    newest = [float(column[-1]) for column in steps if len(column)]
    return int(max((step for step in newest if math.isfinite(step)), default=0))


def _success(metrics: SeriesTable, key: str, count_key: str) -> Success | None:
    if key not in metrics:
        return None
    column = metrics[key]
    steps, times, values = column.steps, column.times, column.values
    usable = np.flatnonzero((values >= 0) & (values <= 1) & np.isfinite(steps))
    if not len(usable):
        return None
    counts = metrics[count_key] if count_key in metrics else Series()
    # A line has both; lines of a run that was stopped in between may have one of them.
    episodes = dict(zip(counts.times.tolist(), counts.values.tolist(), strict=True))

    def at(row: int) -> Rate:
        return _rate(steps[row], values[row], episodes.get(float(times[row])))

    return Success(at(usable[-1]), at(usable[0]), at(usable[np.argmax(values[usable])]))


def _rate(step: float, rate: float, episodes: float | None) -> Rate:
    if episodes is None or not episodes >= 1 or math.isinf(episodes):
        return Rate(int(step), float(rate), None, None, None)
    count = int(episodes)
    interval = wilson_interval(round(rate * count), count)
    return Rate(int(step), float(rate), count, interval.low, interval.high)


def _remaining(watcher: RunWatcher, update: int, updates: int | None) -> float | None:
    metrics = watcher.metrics
    if names.TIME_ELAPSED not in metrics:
        return None
    column = metrics[names.TIME_ELAPSED]
    usable = np.isfinite(column.values) & np.isfinite(column.steps)
    elapsed, steps = column.values[usable][-RECENT - 1 :], column.steps[usable][-RECENT - 1 :]
    if not len(steps):
        return None
    estimates = []
    span = steps[-1] - steps[0]
    # From the second update on: the first one also paid for what came before it.
    each = (elapsed[-1] - elapsed[0]) / span if span > 0 else metrics.last(names.TIME_TOTAL)
    if updates is not None and each is not None:
        estimates.append(each * (updates - update))
    minutes = watcher.config.get("grpo.minutes")
    if isinstance(minutes, (int, float)) and not isinstance(minutes, bool):
        estimates.append(60.0 * minutes - elapsed[-1])
    # Whatever has passed since the last update was logged is part of the estimate.
    since = min(max(0.0, _age(watcher)), each or 0.0)
    finite = [estimate for estimate in estimates if math.isfinite(estimate)]
    return float(max(0.0, min(finite) - since)) if finite else None


def _age(watcher: RunWatcher) -> float:
    beat = watcher.heartbeat.get(names.TIME)
    last = watcher.metrics[names.TIME_ELAPSED].times[-1]
    return float(beat - last) if isinstance(beat, (int, float)) and math.isfinite(last) else 0.0


def _per(amount: float | None, seconds: float | None) -> float | None:
    return amount / seconds if amount is not None and seconds else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
