"""SRPO's self-referential reward: failures are graded by their distance to the batch's own successes.

Paper: Self-Referential Policy Optimization (arXiv 2511.15605). The rule follows SRPO's public implementation
number by number, including what is easy to overlook:

* a row whose embedding is exactly zero scores 0, even if it succeeded, and takes no further part;
* the clusters are found in standardized features, but centers and distances live in the original space;
* once any cluster exists, successes outside of clusters are no reference;
* distances are normalized over the failures of a task, so the nearest failure always gets
  ``ceiling * sigmoid(steepness * offset)`` and a lone failure the middle: the reward ranks, it does not
  measure.

One difference: a non-finite embedding raises. There, a NaN in one failure silently makes the rewards of all
failures of its task NaN.

DBSCAN with ``eps = 0.5`` on standardized features is nearly inert in high dimension (mean distances are near
``sqrt(2 D)``), so the reference is in practice the mean of the successes. ``rule="scaled"`` is ours: the radius follows
the successes' own distances, so that distinct ways to succeed become distinct references in any dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from scipy.special import expit

from vlacoach.errors import NonFiniteError, UnknownNameError, VlacoachError

FloatArray = npt.NDArray[np.float64]

Rule = Literal["srpo", "scaled"]
RULES: tuple[Rule, ...] = ("srpo", "scaled")

NOT_CLUSTERED = -99
"""Cluster label of rows that were not clustered: failures, unusable rows, tasks without both outcomes."""

NOISE = -1
"""Cluster label of a success that belongs to no cluster."""


@dataclass(frozen=True)
class RewardRule:
    """The constants of the rule; the defaults are SRPO's.

    Attributes:
        success_reward: Reward of a success.
        ceiling: Supremum of the reward of a failure.
        steepness: Slope of the sigmoid.
        offset: Normalized distance at which a failure gets half the ceiling.
        eps: DBSCAN radius, in standard deviations of the successes' features.
        min_samples: DBSCAN neighbors (itself included) that make a point a core point.
        range_tolerance: If the distances of a task's failures differ by less than this, all count as halfway.
        rule: ``"srpo"`` uses ``eps`` as it is; ``"scaled"`` uses ``neighbor_scale`` times the median distance of a
            success to its nearest other success.
        neighbor_scale: See ``rule``.
    """

    success_reward: float = 1.0
    ceiling: float = 0.6
    steepness: float = 10.0
    offset: float = 0.5
    eps: float = 0.5
    min_samples: int = 2
    range_tolerance: float = 1e-6
    rule: Rule = "srpo"
    neighbor_scale: float = 1.5


@dataclass(frozen=True)
class SelfReferentialDetails:
    """What the rule computed on the way, one entry a row.

    Attributes:
        score: (B,) float64 rewards.
        distance: (B,) float64 distance of a failure to the nearest success center; NaN where there is none.
        normalized_distance: (B,) float64, 0 (nearest failure of the task) to 1 (farthest); NaN where there is
            none.
        cluster: (B,) int64 cluster of a success within its task, ``NOISE`` or ``NOT_CLUSTERED``.
        cluster_count: Clusters found in all tasks together; 0 means that every reference is a plain mean.
        usable: (B,) bool, False for zero embeddings and rows marked invalid.
    """

    score: FloatArray
    distance: FloatArray
    normalized_distance: FloatArray
    cluster: npt.NDArray[np.int64]
    cluster_count: int
    usable: npt.NDArray[np.bool_]


def self_referential_reward(
    embeddings: npt.ArrayLike,
    success: npt.ArrayLike,
    task: npt.ArrayLike,
    *,
    success_reward: float = 1.0,
    ceiling: float = 0.6,
    steepness: float = 10.0,
    offset: float = 0.5,
    eps: float = 0.5,
    min_samples: int = 2,
    range_tolerance: float = 1e-6,
    rule: Rule = "srpo",
    neighbor_scale: float = 1.5,
    valid: npt.ArrayLike | None = None,
    references: npt.ArrayLike | None = None,
    reference_task: npt.ArrayLike | None = None,
) -> FloatArray:
    """Reward a batch of trajectories: 1 for a success, a graded ``0 .. ceiling`` for a failure.

    A failure at distance d from the nearest center of its task's successes gets
    ``ceiling * sigmoid(steepness * (offset - z))``, with z the distance min-max normalized over the failures
    of the task. A task without a success gives 0 to its failures.

    ``references`` are further successes, such as those of earlier batches. They count as the batch's own do, and have
    no row in the result; with them, a task whose rows all failed is graded too.

    Args:
        embeddings: (B, D) one embedding a trajectory, float32 or float64; computed in float64.
        success: (B,) bool.
        task: (B,) integers or strings; trajectories of one task are compared, whatever their initial state.
        success_reward: Reward of a success.
        ceiling: Supremum of the reward of a failure.
        steepness: Slope of the sigmoid.
        offset: Normalized distance at which a failure gets half the ceiling.
        eps: DBSCAN radius, in standard deviations of the successes' features.
        min_samples: DBSCAN neighbors (itself included) that make a point a core point.
        range_tolerance: If the distances of a task's failures differ by less than this, all get z = 0.5.
        rule: ``"srpo"`` or ``"scaled"``; see :class:`RewardRule`.
        neighbor_scale: See :class:`RewardRule`.
        valid: (B,) bool; rows marked False score 0 and take no part. None: all valid.
        references: (R, D) embeddings of further successes; None: the batch's own are all there are.
        reference_task: (R,) their tasks, named as in ``task``.

    Returns:
        (B,) float64, between 0 and ``max(success_reward, ceiling)``.

    Raises:
        NonFiniteError: If a valid row or a reference holds NaN or an infinity; names it and its task.
        UnknownNameError: If there is no such rule.
        VlacoachError: If shapes do not fit, or a reference is all zeros.
    """
    return self_referential_details(
        embeddings,
        success,
        task,
        success_reward=success_reward,
        ceiling=ceiling,
        steepness=steepness,
        offset=offset,
        eps=eps,
        min_samples=min_samples,
        range_tolerance=range_tolerance,
        rule=rule,
        neighbor_scale=neighbor_scale,
        valid=valid,
        references=references,
        reference_task=reference_task,
    ).score


def self_referential_details(
    embeddings: npt.ArrayLike,
    success: npt.ArrayLike,
    task: npt.ArrayLike,
    *,
    success_reward: float = 1.0,
    ceiling: float = 0.6,
    steepness: float = 10.0,
    offset: float = 0.5,
    eps: float = 0.5,
    min_samples: int = 2,
    range_tolerance: float = 1e-6,
    rule: Rule = "srpo",
    neighbor_scale: float = 1.5,
    valid: npt.ArrayLike | None = None,
    references: npt.ArrayLike | None = None,
    reference_task: npt.ArrayLike | None = None,
) -> SelfReferentialDetails:
    """Compute :func:`self_referential_reward` and keep the numbers on the way; same arguments and errors."""
    points = np.asarray(embeddings, dtype=np.float64)
    won = np.asarray(success, dtype=bool)
    key = np.asarray(task)
    allowed = np.ones(len(won), dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    _check(points, won, key, allowed)
    kept, kept_key = _check_references(references, reference_task, points.shape[1], key)
    if rule not in RULES:
        raise UnknownNameError("reward rule", rule, RULES)

    usable = allowed & np.any(points != 0.0, axis=1)
    rows = len(won)
    score = np.where(usable & won, success_reward, 0.0)
    distance, normalized = np.full(rows, np.nan), np.full(rows, np.nan)
    cluster = np.full(rows, NOT_CLUSTERED, dtype=np.int64)
    clusters = 0
    for one in np.unique(key):
        winners = np.flatnonzero(usable & won & (key == one))
        losers = np.flatnonzero(usable & ~won & (key == one))
        successes = np.concatenate([points[winners], kept[kept_key == one]])
        if not len(successes) or not len(losers):
            continue
        centers, labels = success_centers(successes, eps, min_samples, rule, neighbor_scale)
        cluster[winners] = labels[: len(winners)]
        clusters += int(labels.max()) + 1
        distance[losers] = cdist(points[losers], centers).min(axis=1)
        normalized[losers] = _min_max(distance[losers], range_tolerance)
        score[losers] = ceiling * expit(steepness * (offset - normalized[losers]))
    return SelfReferentialDetails(score, distance, normalized, cluster, clusters, usable)


def success_centers(
    points: npt.ArrayLike, eps: float = 0.5, min_samples: int = 2, rule: Rule = "srpo", neighbor_scale: float = 1.5
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Find what the failures of a task are measured against.

    Args:
        points: (N, D) embeddings of the task's successes, at least one.
        eps: See :class:`RewardRule`; so are the rest.
        min_samples: Neighbors that make a core point.
        rule: ``"srpo"`` or ``"scaled"``.
        neighbor_scale: Of ``"scaled"``.

    Returns:
        (C, D) float64 means of the clusters, or the mean of all if there is no cluster; and (N,) int64 the cluster of
        each success, or ``NOISE``.
    """
    array = np.asarray(points, dtype=np.float64)
    features = _standardize(array)
    radius = eps if rule == "srpo" else neighbor_scale * neighbor_distance(features)
    labels = density_clusters(features, radius, min_samples)
    return _centers(array, labels), labels


def density_clusters(points: npt.ArrayLike, eps: float = 0.5, min_samples: int = 2) -> npt.NDArray[np.int64]:
    """Label points by DBSCAN (Ester et al., 1996), for the few points of a batch.

    Core points have at least ``min_samples`` points (themselves included) within ``eps``; clusters are the
    connected components of the core points, and a border point joins the first cluster that reaches it. With
    ``min_samples=2`` that is connected components of size two or more.

    Args:
        points: (N, D).
        eps: Radius, inclusive.
        min_samples: Neighbors that make a core point.

    Returns:
        (N,) int64 labels 0, 1, ... in order of the clusters' first core points; ``NOISE`` for the rest.
    """
    array = np.asarray(points, dtype=np.float64)
    near = cdist(array, array) <= eps
    core = np.flatnonzero(near.sum(axis=1) >= min_samples)
    labels = np.full(len(array), NOISE, dtype=np.int64)
    if not len(core):
        return labels
    _, component = connected_components(near[np.ix_(core, core)], directed=False)
    # Number the components by their first member, which decides to which one a shared border point goes.
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[inverse]
    reached = np.where(near[:, core], order[None, :], len(core))
    lowest = reached.min(axis=1)
    hit = lowest < len(core)
    labels[hit] = lowest[hit]
    labels[core] = order
    return labels


def neighbor_distance(points: npt.ArrayLike) -> float:
    """Median over points of the distance to the nearest other point.

    Args:
        points: (N, D).

    Returns:
        0 for fewer than two points.
    """
    array = np.asarray(points, dtype=np.float64)
    if len(array) < 2:
        return 0.0
    distance = cdist(array, array)
    np.fill_diagonal(distance, np.inf)
    return float(np.median(distance.min(axis=1)))


def _standardize(points: FloatArray) -> FloatArray:
    # Rounding leaves a tiny variance in a feature that is constant; dividing by it would turn noise into
    # distance.
    count, mean, variance = len(points), points.mean(axis=0), points.var(axis=0)
    tiny = np.finfo(np.float64).eps
    constant = variance <= count * tiny * variance + (count * mean * tiny) ** 2
    return np.asarray((points - mean) / np.where(constant, 1.0, np.sqrt(variance)))


def _centers(points: FloatArray, labels: npt.NDArray[np.int64]) -> FloatArray:
    members = [labels == label for label in range(int(labels.max()) + 1)]
    # Without a cluster, every success counts.
    chosen = members or [np.ones(len(points), dtype=bool)]
    return np.stack([points[rows].mean(axis=0) for rows in chosen])


def _min_max(distance: FloatArray, tolerance: float) -> FloatArray:
    low, high = distance.min(), distance.max()
    if high - low < tolerance:
        return np.full_like(distance, 0.5)
    return np.asarray((distance - low) / (high - low))


def _check(
    points: FloatArray, won: npt.NDArray[np.bool_], key: npt.NDArray[Any], allowed: npt.NDArray[np.bool_]
) -> None:
    rows = len(won)
    columns_fit = all(column.shape == (rows,) for column in (won, key, allowed))
    if points.ndim != 2 or len(points) != rows or not columns_fit:
        raise VlacoachError(
            f"Expected embeddings (B, D) and columns (B,), got embeddings {points.shape}, "
            f"success {won.shape}, task {key.shape}, valid {allowed.shape}."
        )
    bad = np.flatnonzero(allowed & ~np.isfinite(points).all(axis=1))
    if len(bad):
        named = ", ".join(f"row {row} (task {key[row]})" for row in bad[:5])
        raise NonFiniteError(
            f"{len(bad)} of {rows} trajectory embeddings are not finite: {named}.",
            "One such embedding would make every reward of its task meaningless.",
        )


def _check_references(
    references: npt.ArrayLike | None, reference_task: npt.ArrayLike | None, width: int, key: npt.NDArray[Any]
) -> tuple[FloatArray, npt.NDArray[Any]]:
    if (references is None) != (reference_task is None):
        raise VlacoachError("References and the tasks they belong to go together.", "Give both, or neither.")
    if references is None or not len(np.asarray(references)):
        return np.empty((0, width)), np.empty(0, dtype=key.dtype)
    points, tasks = np.asarray(references, dtype=np.float64), np.asarray(reference_task)
    if points.ndim != 2 or points.shape[1] != width or tasks.shape != (len(points),):
        raise VlacoachError(
            f"Expected references (R, {width}) and their tasks (R,), got {points.shape} and {tasks.shape}."
        )
    if (tasks.dtype.kind == "U") != (key.dtype.kind == "U"):
        raise VlacoachError(f"Tasks are named by {key.dtype} in the batch, but by {tasks.dtype} in the references.")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise NonFiniteError(f"Reference {bad[0]} (task {tasks[bad[0]]}) is not finite.")
    zero = np.flatnonzero(~points.any(axis=1))
    if len(zero):
        raise VlacoachError(
            f"Reference {zero[0]} (task {tasks[zero[0]]}) is all zeros.", "It says nothing about its success; drop it."
        )
    return points, tasks
