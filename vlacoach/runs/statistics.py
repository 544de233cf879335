"""Intervals and tests for success rates: numbers a reader can believe.

Sources:
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
        paired data", Statistics in Medicine 17 (1998), method 10.
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
        Psychometrika 12 (1947); here in its exact, binomial form.
    B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13: percentile intervals.
    C. A. Field and A. H. Welsh, "Bootstrapping clustered data", JRSS B 69 (2007): resampling whole clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two have a point in common."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class PairedDifference:
    """What changed between two measurements of the same episodes.

    Attributes:
        pairs: Number of pairs.
        before: Success rate before, in [0, 1].
        after: Success rate after, in [0, 1].
        difference: ``after - before``, in [-1, 1].
        interval: Confidence interval of the difference.
        gained: Pairs that failed before and succeeded after.
        lost: Pairs that succeeded before and failed after.
        p_value: McNemar's exact two-sided p-value of "no change".
    """

    pairs: int
    before: float
    after: float
    difference: float
    interval: Interval
    gained: int
    lost: int
    p_value: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927).

    Args:
        successes: Successes, 0 to ``n``.
        n: Trials; 0 gives the interval [0, 1], which knows nothing.
        confidence: Coverage, between 0 and 1.

    Returns:
        The interval, within [0, 1].

    Raises:
        ValueError: The counts are impossible or the confidence is not between 0 and 1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials are impossible")
    z = _normal_quantile(confidence)
    if n == 0:
        return Interval(0.0, 1.0)
    rate = successes / n
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the formula is exact on paper and off by a rounding error in floats.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return Interval(low, high)


def mcnemar_exact(gained: int, lost: int) -> float:
    """McNemar's exact test: are changes in both directions equally likely?

    Args:
        gained: Pairs that changed from failure to success.
        lost: Pairs that changed from success to failure.

    Returns:
        Two-sided p-value; 1 if nothing changed.
    """
    changed = gained + lost
    # Of a binomial with p = 1/2, which is symmetric; exact, for Python's integers do not overflow.
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << changed))


def paired_difference(before: npt.ArrayLike, after: npt.ArrayLike, confidence: float = 0.95) -> PairedDifference:
    """Compare two measurements of the same episodes.

    Args:
        before: ``(N,)`` bool, success of each episode before.
        after: ``(N,)`` bool, success of the same episodes (task, state, seed) after, in the same order.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        The difference with Newcombe's interval for paired data (1998, method 10) and McNemar's exact p-value.

    Raises:
        ValueError: The arrays are empty or not of one length.
    """
    first = np.asarray(before, dtype=bool)
    second = np.asarray(after, dtype=bool)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"before and after must be (N,) with N > 0, not {first.shape} and {second.shape}")
    both = int(np.sum(first & second))
    gained = int(np.sum(~first & second))
    lost = int(np.sum(first & ~second))
    neither = int(first.size) - both - gained - lost
    return PairedDifference(
        pairs=int(first.size),
        before=(both + lost) / first.size,
        after=(both + gained) / first.size,
        difference=(gained - lost) / first.size,
        interval=_newcombe_paired(both, gained, lost, neither, confidence),
        gained=gained,
        lost=lost,
        p_value=mcnemar_exact(gained, lost),
    )


@dataclass(frozen=True)
class ClusteredDifference:
    """What changed, where several episodes of a cluster (a task's initial state) are not independent.

    Attributes:
        clusters: Number of clusters.
        interval: Bootstrap interval of the difference, whole clusters drawn.
        improved: Clusters with more successes after than before.
        worsened: Clusters with fewer.
        p_value: McNemar's exact two-sided p-value over clusters; with one pair a cluster, over pairs.
    """

    clusters: int
    interval: Interval
    improved: int
    worsened: int
    p_value: float


def cluster_bootstrap(
    values: npt.ArrayLike,
    clusters: npt.ArrayLike,
    strata: npt.ArrayLike,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a mean, with clusters drawn with replacement within each stratum.

    Episodes of one initial state resemble each other, so the state is what is drawn, with all its episodes. Tasks are
    strata: they are the benchmark and not a sample from one.

    Args:
        values: ``(N,)`` numbers, for example successes, or differences of paired successes.
        clusters: ``(N,)`` which cluster of its stratum each belongs to.
        strata: ``(N,)`` which stratum.
        confidence: Coverage, between 0 and 1.
        resamples: How often clusters are drawn.
        seed: Seed of the drawing: the same data have the same interval.

    Returns:
        The interval of the mean over all ``N``.

    Raises:
        ValueError: The arrays are empty or not of one length, or the confidence is not between 0 and 1.
    """
    number = np.asarray(values, dtype=np.float64)
    cluster, stratum = np.asarray(clusters), np.asarray(strata)
    if number.ndim != 1 or number.size == 0 or number.shape != cluster.shape or number.shape != stratum.shape:
        raise ValueError(f"values, clusters and strata must be (N,) with N > 0, not {number.shape} and others")
    _normal_quantile(confidence)  # Refuses what is no confidence.
    generator = np.random.default_rng(seed)
    totals, counts = np.zeros(resamples), np.zeros(resamples)
    for one in np.unique(stratum):
        inside = stratum == one
        names, index = np.unique(cluster[inside], return_inverse=True)
        sums = np.bincount(index, weights=number[inside])
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        totals += drawn @ sums
        counts += drawn @ np.bincount(index)
    tail = (1 - confidence) / 2
    low, high = np.quantile(totals / counts, [tail, 1 - tail])
    return Interval(float(low), float(high))


def clustered_difference(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    clusters: npt.ArrayLike,
    strata: npt.ArrayLike,
    confidence: float = 0.95,
) -> ClusteredDifference:
    """Compare two measurements of the same episodes, of which several belong to one cluster.

    Args:
        before: ``(N,)`` bool, success of each episode before.
        after: ``(N,)`` bool, success of the same episodes after, in the same order.
        clusters: ``(N,)`` initial state of each.
        strata: ``(N,)`` task of each.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        The bootstrap interval, and McNemar's exact test of which way clusters went.

    Raises:
        ValueError: The arrays are empty or not of one length.
    """
    change = np.asarray(after, dtype=np.int64) - np.asarray(before, dtype=np.int64)
    interval = cluster_bootstrap(change, clusters, strata, confidence)
    keys = np.stack([np.asarray(strata), np.asarray(clusters)], axis=1)
    names, index = np.unique(keys, axis=0, return_inverse=True)
    sums = np.bincount(index.reshape(-1), weights=change)
    improved, worsened = int(np.sum(sums > 0)), int(np.sum(sums < 0))
    return ClusteredDifference(len(names), interval, improved, worsened, mcnemar_exact(improved, worsened))


def _newcombe_paired(both: int, gained: int, lost: int, neither: int, confidence: float) -> Interval:
    """Newcombe's method 10: Wilson intervals of the two rates, squared and added with their correlation."""
    n = both + gained + lost + neither
    after, before = both + gained, both + lost
    rate_after, rate_before = after / n, before / n
    a = wilson_interval(after, n, confidence)
    b = wilson_interval(before, n, confidence)
    correlation = 0.0
    margins = after * (n - after) * before * (n - before)
    if margins > 0:
        surplus = float(both * neither - gained * lost)
        if surplus > 0:  # The continuity correction applies to positive correlation only.
            surplus = max(surplus - n / 2, 0.0)
        correlation = surplus / math.sqrt(margins)
    below = _combine(rate_after - a.low, b.high - rate_before, correlation)
    above = _combine(a.high - rate_after, rate_before - b.low, correlation)
    difference = rate_after - rate_before
    return Interval(max(-1.0, difference - below), min(1.0, difference + above))


def _combine(x: float, y: float, correlation: float) -> float:
    return math.sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def moving_average(values: npt.ArrayLike, weight: float = 0.8) -> npt.NDArray[np.float64]:
    """Exponential moving average without a bias toward its start (as Adam corrects its moments).

    Args:
        values: ``(N,)`` numbers; NaN is passed over and repeats the average so far.
        weight: Share of the past, in [0, 1).

    Returns:
        ``(N,)`` float64; NaN until the first number.
    """
    averages: list[float] = []
    total = norm = 0.0
    # Python's floats: one at a time, NumPy's take several times as long.
    for value in np.asarray(values, dtype=np.float64).tolist():
        if not math.isnan(value):
            total = weight * total + (1 - weight) * value
            norm = weight * norm + (1 - weight)
        averages.append(total / norm if norm > 0 else math.nan)
    return np.array(averages, dtype=np.float64)


def rate_with_interval(successes: int, episodes: int, interval: Interval) -> str:
    """A success rate with its interval in percent, for example ``"43.0 [36, 50]"``; a dash without episodes."""
    if episodes == 0:
        return "-"
    return f"{100 * successes / episodes:.1f} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def change_with_interval(difference: PairedDifference) -> str:
    """A paired difference with its interval in points, for example ``"+28.0 [+19, +36]"``."""
    interval = difference.interval
    return f"{100 * difference.difference:+.1f} [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}]"
