"""Is a scorer any good? Its figures on rollouts whose outcome, and whose quality, is known.

What is measured is closeness: minus the distance of a trajectory's embedding to the mean of the task's *other*
successes. The self-referential rule ranks failures by it; measured on successes too, with each left out of its own
reference, it says whether the scorer can tell them apart at all. Figures compare within a task only, as the rule does.

The figures are those of SRPO's table of reward quality (arXiv 2511.15605), with AUROC and order sensitivity beside
them, each with a 95 % bootstrap interval over episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from vlacoach.errors import NonFiniteError, VlacoachError
from vlacoach.rewards.metrics import (
    Estimate,
    auroc,
    bootstrap,
    jensen_shannon,
    maximum_mean_discrepancy,
    monotonicity,
    spearman,
    standardized_mean_difference,
    subsample,
)
from vlacoach.rewards.scorers import Scorer
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.rewards.views import held, num_looks, view

FloatArray = npt.NDArray[np.float64]

NEAR_MISS, GROSS_FAILURE, POLICY = "near-miss", "gross-failure", "policy"
"""Sources that figures of their own are about."""

_ROUNDING = 1e-5


@dataclass(frozen=True)
class LabEpisode:
    """A trajectory, and who made it."""

    trajectory: Trajectory
    source: str


@dataclass(frozen=True)
class ScorerReport:
    """Figures of one scorer; None where the episodes do not allow one.

    Attributes:
        name: What the table calls it.
        spearman: Rank correlation of closeness with time in a success, -1 to 1, mean over successes.
        monotonicity: Share of steps of a success at which closeness rises, 0 to 1.
        mmd: Squared maximum mean discrepancy between embeddings of successes and failures, mean over tasks.
        jensen_shannon: Divergence between terminal closeness of successes and failures, 0 to 1.
        smd: Standardized mean difference between the same.
        auroc: Chance that a success is closer than a failure of its task.
        held_auroc: The same with every episode held at its last look to the length of the longest: successes are
            shorter, and a scorer that reads the clock knows them by that alone.
        policy_auroc: The same among the policy's own episodes: what training will see.
        near_miss_auroc: Chance that a near miss is closer than a gross failure of its task.
        order_sensitivity: How far shuffled looks move the embedding, in median distances between episodes of a task.
        milliseconds: Of embedding a trajectory whose features, or frames, are there.
        parameters: Parameters beside the policy's.
        memory_mb: Their memory, in MB.
        curves: Stage of an episode (0 to 1) to mean standardized closeness of successes, for plots.
        fit: Statistics of training it, if it was trained.
    """

    name: str
    spearman: Estimate | None
    monotonicity: Estimate | None
    mmd: Estimate | None
    jensen_shannon: Estimate | None
    smd: Estimate | None
    auroc: Estimate | None
    held_auroc: Estimate | None
    policy_auroc: Estimate | None
    near_miss_auroc: Estimate | None
    order_sensitivity: float
    milliseconds: float
    parameters: int
    memory_mb: float
    curves: dict[str, list[float]] = field(default_factory=dict)
    fit: dict[str, float] = field(default_factory=dict)


def closeness(embeddings: npt.ArrayLike, success: npt.ArrayLike, task: npt.ArrayLike) -> FloatArray:
    """Minus the distance of each row to the mean of its task's other successes.

    A success is left out of its own reference, so it faces the mean of one success less than there are. A failure is
    held against the same references, and its distances are averaged: the mean of all successes scatters less, and
    would make every failure look closer than a success, the more so with few successes and many features.

    Args:
        embeddings: (B, D).
        success: (B,) bool.
        task: (B,) integers.

    Returns:
        (B,) float64, at most 0; NaN where the task has no other success.

    Raises:
        NonFiniteError: If an embedding is NaN or infinite.
    """
    points = np.asarray(embeddings, dtype=np.float64)
    won, key = np.asarray(success, dtype=bool), np.asarray(task)
    if not np.isfinite(points).all():
        raise NonFiniteError(f"Embedding {int(np.argwhere(~np.isfinite(points))[0, 0])} is not finite.")
    result = np.full(len(points), np.nan)
    for one in np.unique(key):
        winners, losers = np.flatnonzero(won & (key == one)), np.flatnonzero(~won & (key == one))
        if len(winners) == 1:
            result[losers] = -np.linalg.norm(points[losers] - points[winners], axis=1)
        if len(winners) < 2:
            continue
        centers = (points[winners].sum(axis=0) - points[winners]) / (len(winners) - 1)
        result[winners] = -np.linalg.norm(points[winners] - centers, axis=1)
        if len(losers):
            result[losers] = -cdist(points[losers], centers).mean(axis=1)
    return result


def auroc_within(scores: npt.ArrayLike, labels: npt.ArrayLike, task: npt.ArrayLike) -> float:
    """AUROC over pairs of the same task: the chance that a positive outscores a negative of its task.

    Args:
        scores: (B,) finite.
        labels: (B,) bool.
        task: (B,) integers.

    Raises:
        VlacoachError: If no task has both classes.
    """
    values, positive, key = np.asarray(scores), np.asarray(labels, dtype=bool), np.asarray(task)
    area = pairs = 0.0
    for one in np.unique(key):
        rows = key == one
        count = float(positive[rows].sum() * (~positive[rows]).sum())
        if count:
            area += count * auroc(values[rows], positive[rows])
            pairs += count
    if not pairs:
        raise VlacoachError("AUROC needs a task with both classes.")
    return area / pairs


def standardized_within(scores: npt.ArrayLike, task: npt.ArrayLike) -> FloatArray:
    """Scores less their task's mean, in its standard deviations; distances of different tasks differ in scale."""
    values, key = np.asarray(scores, dtype=np.float64), np.asarray(task)
    result = np.zeros(len(values))
    for one in np.unique(key):
        rows = key == one
        result[rows] = (values[rows] - values[rows].mean()) / (values[rows].std() or 1.0)
    return result


def progress_curve(scorer: Scorer, trajectory: Trajectory, reference: npt.ArrayLike) -> FloatArray:
    """Closeness of a success at each of its looks, had it stood still from then on: minus the distance to a reference.

    All points of the curve have the same number of looks, so that counting them tells nothing.

    Args:
        scorer: Embeds.
        trajectory: T looks and the terminal one.
        reference: (D,) embedding of the goal reached: the mean of the task's other successes.

    Returns:
        (T + 1,) float64.
    """
    target = np.asarray(reference, dtype=np.float64)
    looks = num_looks(trajectory)
    # One at a time: a prefix holds all of its patches.
    return np.array([-np.linalg.norm(scorer.embed(held(trajectory, look, looks)) - target) for look in range(looks)])


def assess(
    scorer: Scorer,
    episodes: Sequence[LabEpisode],
    *,
    name: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
    fit: dict[str, float] | None = None,
) -> ScorerReport:
    """Measure a scorer.

    Args:
        scorer: Fitted, on other episodes than these.
        episodes: Valid episodes, with their terminal frame encoded.
        name: What the table calls it; its own name if left out.
        seed: Of shuffles and resamples.
        resamples: Of the bootstrap.
        fit: Statistics of training it, for the report.

    Raises:
        VlacoachError: If no task has two successes.
        NonFiniteError: If an embedding is not finite.
    """
    rng = np.random.default_rng(seed)
    trajectories = [episode.trajectory for episode in episodes]
    success = np.array([trajectory.success for trajectory in trajectories])
    task = np.array([trajectory.task for trajectory in trajectories])
    source = np.array([episode.source for episode in episodes])
    scorer.embed(trajectories[0])  # The first call of a model pays for others.
    started = time.perf_counter()
    points = scorer.embed_all(trajectories).astype(np.float64)
    seconds = time.perf_counter() - started
    score = closeness(points, success, task)
    if not (success & np.isfinite(score)).any():
        raise VlacoachError("No task has two successes to compare.", "Use more episodes, or a better policy.")
    curves = _curves(scorer, trajectories, points, success, task, score)
    longest = max(num_looks(trajectory) for trajectory in trajectories)
    stretched = [scorer.embed(held(trajectory, num_looks(trajectory) - 1, longest)) for trajectory in trajectories]
    level = closeness(np.stack(stretched), success, task)
    figures = _figures(score, level, success, task, source, rng, resamples)
    return ScorerReport(
        name=name or scorer.name,
        spearman=_mean([_or_none(spearman, curve, np.arange(len(curve))) for curve in curves], rng, resamples),
        monotonicity=_mean([_or_none(monotonicity, curve) for curve in curves], rng, resamples),
        mmd=_discrepancy(points, success, task, rng, resamples),
        **figures,
        order_sensitivity=_order_sensitivity(scorer, trajectories, points, task, rng),
        milliseconds=1000.0 * seconds / len(trajectories),
        parameters=sum(int(value.numel()) for value in scorer.parameters()),
        memory_mb=sum(value.numel() * value.element_size() for value in scorer.parameters()) / 1e6,
        curves=_mean_curve(curves),
        fit=dict(fit or {}),
    )


def _curves(
    scorer: Scorer,
    trajectories: Sequence[Trajectory],
    points: FloatArray,
    success: npt.NDArray[np.bool_],
    task: npt.NDArray[np.int64],
    score: FloatArray,
) -> list[FloatArray]:
    curves = []
    for row in np.flatnonzero(success & np.isfinite(score)).tolist():
        others = success & (task == task[row])
        others[row] = False
        curves.append(progress_curve(scorer, trajectories[row], points[others].mean(axis=0)))
    return curves


def _figures(
    score: FloatArray,
    level: FloatArray,
    success: npt.NDArray[np.bool_],
    task: npt.NDArray[np.int64],
    source: npt.NDArray[np.str_],
    rng: np.random.Generator,
    resamples: int,
) -> dict[str, Estimate | None]:
    known = np.isfinite(score)
    score, level, success, task, source = score[known], level[known], success[known], task[known], source[known]
    standard = standardized_within(score, task)
    own = source == POLICY
    staged = ~success & np.isin(source, (NEAR_MISS, GROSS_FAILURE))
    near = source == NEAR_MISS

    everyone = np.ones(len(score), dtype=bool)

    def area(values: FloatArray, rows: npt.NDArray[np.bool_], labels: npt.NDArray[np.bool_]) -> Estimate | None:
        chosen = np.flatnonzero(rows)
        return estimate(
            lambda i: auroc_within(values[chosen][i], labels[chosen][i], task[chosen][i]), len(chosen), rng, resamples
        )

    return {
        "jensen_shannon": estimate(
            lambda i: jensen_shannon(standard[i][success[i]], standard[i][~success[i]]), len(score), rng, resamples
        ),
        "smd": estimate(
            lambda i: standardized_mean_difference(standard[i][success[i]], standard[i][~success[i]]),
            len(score),
            rng,
            resamples,
        ),
        "auroc": area(score, everyone, success),
        "held_auroc": area(level, everyone, success),
        "policy_auroc": area(score, own, success),
        "near_miss_auroc": area(score, staged, near),
    }


def estimate(
    statistic: Callable[[npt.NDArray[np.int64]], float], count: int, rng: np.random.Generator, resamples: int
) -> Estimate | None:
    """:func:`bootstrap`, or None where the figure is undefined."""
    try:
        found = bootstrap(statistic, count, rng, resamples)
    except VlacoachError:
        return None  # There is no such pair of episodes.
    return found if np.isfinite([found.value, found.low, found.high]).all() else None


def _mean(values: Sequence[float | None], rng: np.random.Generator, resamples: int) -> Estimate | None:
    known = np.array([value for value in values if value is not None])
    return bootstrap(lambda rows: float(known[rows].mean()), len(known), rng, resamples) if len(known) else None


def _or_none(figure: Callable[..., float], *columns: npt.ArrayLike) -> float | None:
    try:
        return figure(*columns)
    except NonFiniteError:
        raise
    except VlacoachError:
        return None  # A single look has no course.


def _discrepancy(
    points: FloatArray,
    success: npt.NDArray[np.bool_],
    task: npt.NDArray[np.int64],
    rng: np.random.Generator,
    resamples: int,
) -> Estimate | None:
    def mean_over_tasks(rows: npt.NDArray[np.int64]) -> float:
        found = []
        for one in np.unique(task[rows]):
            here = rows[task[rows] == one]
            won, lost = points[here[success[here]]], points[here[~success[here]]]
            if min(len(won), len(lost)) > 1:
                found.append(maximum_mean_discrepancy(won, lost))
        if not found:
            raise VlacoachError("No task has two successes and two failures.")
        return float(np.mean(found))

    try:
        return subsample(mean_over_tasks, len(points), rng, min(resamples, 200))
    except VlacoachError:
        return None


def _order_sensitivity(
    scorer: Scorer,
    trajectories: Sequence[Trajectory],
    points: FloatArray,
    task: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> float:
    ratios = []
    for one in np.unique(task):
        rows = np.flatnonzero(task == one)
        apart = np.linalg.norm(points[rows][:, None] - points[rows][None], axis=-1)
        typical = float(np.median(apart[np.triu_indices(len(rows), 1)])) if len(rows) > 1 else 0.0
        if typical == 0.0:
            continue
        for row in rows.tolist():
            order = rng.permutation(num_looks(trajectories[row]))
            ratios.append(np.linalg.norm(scorer.embed(view(trajectories[row], order)) - points[row]) / typical)
    sensitivity = float(np.mean(ratios)) if ratios else 0.0
    # Sums in another order round differently; that is not sensitivity.
    return sensitivity if sensitivity > _ROUNDING else 0.0


def _mean_curve(curves: Sequence[FloatArray], stages: int = 21) -> dict[str, list[float]]:
    """Mean and quartiles over successes of closeness, each scaled to run from 0 (its least) to 1 (its most)."""
    grid = np.linspace(0.0, 1.0, stages)
    scaled = [
        np.interp(grid, np.linspace(0.0, 1.0, len(curve)), (curve - curve.min()) / (np.ptp(curve) or 1.0))
        for curve in curves
        if len(curve) > 1
    ]
    if not scaled:
        return {}
    low, middle, high = np.quantile(scaled, [0.25, 0.5, 0.75], axis=0)
    columns = {"stage": grid, "median": middle, "lower": low, "upper": high}
    return {name: [round(float(value), 6) for value in values] for name, values in columns.items()}
