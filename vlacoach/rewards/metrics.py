"""How good a reward is: does it rank successes above failures, and does it follow progress?

The figures are those of SRPO's comparison of rewards (arXiv 2511.15605): rank correlation and monotonicity of
progress on successes; MMD, Jensen-Shannon divergence, and standardized mean difference between successes and
failures; and AUROC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from vlacoach.errors import NonFiniteError, VlacoachError


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counting half.

    Computed in closed form, as the Mann-Whitney U statistic over the number of pairs.

    Args:
        scores: (B,) finite numbers, higher for what should be positive.
        labels: (B,) bool.

    Returns:
        0 to 1; 0.5 is chance.

    Raises:
        NonFiniteError: If a score is NaN or infinite.
        VlacoachError: If shapes differ, or only one class is present, for which the area is undefined.
    """
    values, positive = _column("scores", scores), np.asarray(labels, dtype=bool)
    if values.shape != positive.shape:
        raise VlacoachError(f"Scores {values.shape} and labels {positive.shape} differ in shape.")
    wins, losses = int(positive.sum()), int((~positive).sum())
    if not wins or not losses:
        raise VlacoachError(f"AUROC needs both classes, got {wins} positive and {losses} negative labels.")
    negatives, positives = np.sort(values[~positive]), values[positive]
    outscored = np.searchsorted(negatives, positives, "left").sum()
    outscored_or_tied = np.searchsorted(negatives, positives, "right").sum()
    return float((outscored + outscored_or_tied) / (2 * wins * losses))


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman's rank correlation, with average ranks for ties.

    Args:
        first: (B,) finite numbers.
        second: (B,) finite numbers.

    Returns:
        -1 to 1.

    Raises:
        NonFiniteError: If a number is NaN or infinite.
        VlacoachError: If shapes differ, or either column is constant, for which it is undefined.
    """
    left, right = _column("first", first), _column("second", second)
    if left.shape != right.shape:
        raise VlacoachError(f"Columns {left.shape} and {right.shape} differ in shape.")
    ranks = _ranks(left), _ranks(right)
    if any(len(rank) < 2 or np.ptp(rank) == 0 for rank in ranks):
        raise VlacoachError("A rank correlation needs two columns that vary.")
    return float(np.corrcoef(*ranks)[0, 1])


def monotonicity(progress: npt.ArrayLike) -> float:
    """Share of the steps of a curve that rise, steps that stay level counting half.

    Args:
        progress: (T,) finite numbers, T at least 2.

    Returns:
        0 (always falls) to 1 (always rises); 0.5 is a coin.

    Raises:
        NonFiniteError: If a number is NaN or infinite.
        VlacoachError: If there is no step.
    """
    steps = np.diff(_column("progress", progress))
    if not len(steps):
        raise VlacoachError("A curve needs two points to rise.")
    return float(((steps > 0) + 0.5 * (steps == 0)).mean())


def standardized_mean_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Cohen's d: difference of the means in pooled standard deviations (unbiased variances).

    Args:
        first: (N,) finite numbers, N at least 2.
        second: (M,) finite numbers, M at least 2.

    Returns:
        Positive if the first are larger; infinite if neither varies and the means differ, 0 if they agree.

    Raises:
        NonFiniteError: If a number is NaN or infinite.
        VlacoachError: If there are too few.
    """
    a, b = _column("first", first), _column("second", second)
    if min(len(a), len(b)) < 2:
        raise VlacoachError(f"A standard deviation needs two numbers, got {len(a)} and {len(b)}.")
    squares = (len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)
    deviation = np.sqrt(squares / (len(a) + len(b) - 2))
    difference = float(a.mean() - b.mean())
    if deviation == 0.0:
        return float(np.sign(difference) * np.inf) if difference else 0.0
    return difference / float(deviation)


def maximum_mean_discrepancy(first: npt.ArrayLike, second: npt.ArrayLike, bandwidth: float | None = None) -> float:
    """Squared MMD with a Gaussian kernel, unbiased (Gretton et al., 2012, equation 3).

    Points must be distinct draws: not for :func:`bootstrap`, whose repeated rows are too much alike.

    Args:
        first: (N, D) finite, N at least 2.
        second: (M, D) finite, M at least 2.
        bandwidth: Standard deviation of the kernel; None for the median distance between any two of the points.

    Returns:
        About 0 if both come from one distribution (it may be slightly negative), at most 2.

    Raises:
        NonFiniteError: If a number is NaN or infinite.
        VlacoachError: If shapes do not fit.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise VlacoachError(f"Expected two arrays (N, D) and (M, D) of two rows or more, got {x.shape} and {y.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise NonFiniteError("Points for MMD are not finite.")
    squared = cdist(np.concatenate([x, y]), np.concatenate([x, y]), "sqeuclidean")
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(squared[np.triu_indices(len(squared), 1)]))) or 1.0
    kernel = np.exp(-squared / (2.0 * bandwidth**2))
    np.fill_diagonal(kernel, 0.0)
    n, m = len(x), len(y)
    within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return float(within - 2.0 * kernel[:n, n:].mean())


def jensen_shannon(first: npt.ArrayLike, second: npt.ArrayLike, bins: int = 20) -> float:
    """Jensen-Shannon divergence, base 2, of the histograms of two samples over their common range.

    Args:
        first: (N,) finite numbers.
        second: (M,) finite numbers.
        bins: Equal bins.

    Returns:
        0 (equal histograms) to 1 (no bin in common).

    Raises:
        NonFiniteError: If a number is NaN or infinite.
        VlacoachError: If a sample is empty.
    """
    a, b = _column("first", first), _column("second", second)
    if not len(a) or not len(b):
        raise VlacoachError("A histogram needs numbers.")
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    if low == high:
        return 0.0
    p, q = (np.histogram(values, bins=bins, range=(low, high))[0] / len(values) for values in (a, b))
    middle = (p + q) / 2

    def divergence(of: npt.NDArray[np.float64]) -> float:
        filled = of > 0
        return float((of[filled] * np.log2(of[filled] / middle[filled])).sum())

    return (divergence(p) + divergence(q)) / 2


@dataclass(frozen=True)
class Estimate:
    """A figure with its uncertainty.

    Attributes:
        value: On all rows.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    count: int,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Percentile bootstrap (Efron, 1979) over rows, which here are episodes.

    Args:
        statistic: Takes row numbers (with repetition) and returns the figure; a resample on which it raises
            ``VlacoachError``, such as one of a single class, is drawn again.
        count: Rows there are.
        rng: Everything random comes from it.
        resamples: Number of resamples.
        level: Of the interval.

    Raises:
        VlacoachError: If the figure is undefined on all rows, or on nearly every resample.
    """
    return _interval(statistic, count, lambda: rng.integers(count, size=count), resamples, level)


def subsample(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    count: int,
    rng: np.random.Generator,
    resamples: int = 200,
    level: float = 0.95,
) -> Estimate:
    """Interval by subsampling halves (Politis and Romano, 1994), for figures that need distinct rows.

    A half scatters around the whole about as much as the whole scatters around the truth, since
    ``Var(half - whole) = (1 / (n / 2) - 1 / n) s^2 = s^2 / n`` for means of distinct rows.

    Args:
        statistic: Takes distinct row numbers, sorted, and returns the figure; see :func:`bootstrap`.
        count: Rows there are.
        rng: Everything random comes from it.
        resamples: Number of halves.
        level: Of the interval.

    Raises:
        VlacoachError: If the figure is undefined on all rows, or on nearly every half.
    """
    return _interval(statistic, count, lambda: np.sort(rng.permutation(count)[: count // 2]), resamples, level)


def _interval(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    count: int,
    draw: Callable[[], npt.NDArray[np.int64]],
    resamples: int,
    level: float,
) -> Estimate:
    value = statistic(np.arange(count))
    draws: list[float] = []
    for _ in range(10 * resamples):
        if len(draws) == resamples:
            break
        try:
            draws.append(statistic(draw()))
        except VlacoachError:
            continue  # A draw of a single class, for instance.
    if len(draws) < resamples:
        raise VlacoachError(f"The figure is undefined on most resamples of {count} rows.", "Use more episodes.")
    tail = (1.0 - level) / 2
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high))


def _ranks(column: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(B,) ranks from 1, equal values sharing their mean: those of ``scipy.stats``, whose import takes a second."""
    _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _column(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise VlacoachError(f"Expected {name} of shape (B,), got {column.shape}.")
    if not np.isfinite(column).all():
        raise NonFiniteError(f"{name} is not finite: {int((~np.isfinite(column)).sum())} of {len(column)}.")
    return column
