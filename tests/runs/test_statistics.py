"""Intervals against closed forms, exact enumeration and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlacoach.runs.statistics import (
    Interval,
    cluster_bootstrap,
    clustered_difference,
    mcnemar_exact,
    moving_average,
    paired_difference,
    wilson_interval,
)

Z = 1.959963984540054


def test_wilson_solves_its_defining_equation():
    # The ends are the rates p at which the observed rate lies z standard errors away.
    for successes, n in ((1, 10), (7, 20), (50, 100), (199, 200)):
        interval = wilson_interval(successes, n)
        for p in (interval.low, interval.high):
            assert abs(successes / n - p) == pytest.approx(Z * math.sqrt(p * (1 - p) / n), rel=1e-9)


def test_wilson_at_the_ends():
    assert wilson_interval(0, 10).low == 0.0
    assert wilson_interval(0, 10).high == pytest.approx(Z**2 / (10 + Z**2))
    assert wilson_interval(10, 10) == Interval(pytest.approx(10 / (10 + Z**2)), 1.0)
    assert wilson_interval(0, 0) == Interval(0.0, 1.0)


def test_wilson_is_symmetric_and_widens_with_confidence():
    a, b = wilson_interval(3, 20), wilson_interval(17, 20)
    assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low))
    wide = wilson_interval(3, 20, 0.99)
    assert wide.low < a.low < a.high < wide.high


@pytest.mark.parametrize("args", [(5, 3), (-1, 3), (1, 2, 0.0), (1, 2, 1.0), (1, 2, 95)])
def test_wilson_refuses_nonsense(args):
    with pytest.raises(ValueError, match=r"impossible|confidence"):
        wilson_interval(*args)


@pytest.mark.parametrize(("gained", "lost"), [(5, 0), (8, 2), (3, 3), (1, 9), (0, 0)])
def test_mcnemar_is_the_binomial_tail_doubled(gained, lost):
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert mcnemar_exact(gained, lost) == pytest.approx(min(1.0, 2 * tail))


def table(both, gained, lost, neither):
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * (both + gained) + [False] * (lost + neither)
    return np.array(before), np.array(after)


def test_counts_and_rates():
    result = paired_difference(*table(10, 12, 3, 15))
    assert (result.pairs, result.gained, result.lost) == (40, 12, 3)
    assert result.before == 13 / 40
    assert result.after == 22 / 40
    assert result.difference == pytest.approx(9 / 40)
    assert result.p_value == pytest.approx(mcnemar_exact(12, 3))


def test_interval_turns_round_with_the_direction():
    forward = paired_difference(*table(10, 12, 3, 15)).interval
    backward = paired_difference(*table(10, 3, 12, 15)).interval
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))


def test_without_correlation_wilson_errors_add_in_squares():
    # both * neither == gained * lost, so the correlation is zero.
    result = paired_difference(*table(6, 6, 4, 4))
    after, before = wilson_interval(12, 20), wilson_interval(10, 20)
    below = math.hypot(0.6 - after.low, before.high - 0.5)
    above = math.hypot(after.high - 0.6, 0.5 - before.low)
    assert (result.interval.low, result.interval.high) == pytest.approx((0.1 - below, 0.1 + above))


def test_pairing_narrows_the_interval_when_outcomes_agree():
    paired = paired_difference(*table(45, 5, 0, 50)).interval
    shuffled = paired_difference(*table(23, 27, 22, 28)).interval
    assert paired.high - paired.low < 0.7 * (shuffled.high - shuffled.low)


def test_unchanged_and_total_change():
    same = paired_difference(*table(5, 0, 0, 5))
    assert same.p_value == 1.0
    assert same.interval.low < 0 < same.interval.high
    total = paired_difference(*table(0, 10, 0, 0))
    assert total.difference == 1.0
    assert total.interval.high == 1.0
    assert total.interval.low > 0.5


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        # A shared difficulty makes the pairs correlated; the true rates are 0.45 and 0.60.
        difficulty = generator.random(60)
        before = difficulty < np.where(generator.random(60) < 0.5, 0.45, generator.random(60) < 0.45)
        after = difficulty < np.where(generator.random(60) < 0.5, 0.60, generator.random(60) < 0.60)
        interval = paired_difference(before, after).interval
        covered += interval.low <= 0.15 <= interval.high
    assert 925 <= covered <= 985


@pytest.mark.parametrize(("before", "after"), [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_paired_refuses_unequal_or_empty(before, after):
    with pytest.raises(ValueError, match="N > 0"):
        paired_difference(before, after)


def test_moving_average_has_no_bias_at_its_start():
    np.testing.assert_allclose(moving_average([0.5, 0.5, 0.5]), 0.5)
    np.testing.assert_allclose(moving_average([1.0, 0.0], 0.5), [1.0, 1 / 3])
    averages = moving_average([math.nan, 1.0, math.nan], 0.9)
    assert math.isnan(averages[0])
    np.testing.assert_allclose(averages[1:], 1.0)


def binomial_quantile(n, p, q):
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= q:
            return k
    return n


@pytest.mark.parametrize(("n", "k"), [(20, 6), (50, 25), (100, 90)])
def test_the_bootstrap_of_single_episodes_is_the_binomial(n, k):
    # Drawing n of n with replacement, of which k succeed, is n draws with probability k / n.
    interval = cluster_bootstrap([1] * k + [0] * (n - k), range(n), [0] * n)
    assert interval.low == pytest.approx(binomial_quantile(n, k / n, 0.025) / n, abs=1.01 / n)
    assert interval.high == pytest.approx(binomial_quantile(n, k / n, 0.975) / n, abs=1.01 / n)


def test_copies_of_an_episode_narrow_nothing():
    values, states = np.array([1, 0, 1, 1, 0, 0, 0, 1]), np.arange(8)
    once = cluster_bootstrap(values, states, np.zeros(8))
    thrice = cluster_bootstrap(np.repeat(values, 3), np.repeat(states, 3), np.zeros(24))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    apart = cluster_bootstrap(np.repeat(values, 3), np.arange(24), np.zeros(24))
    assert apart.high - apart.low < 0.7 * (once.high - once.low)


def test_tasks_are_not_drawn():
    # All that differs is the task: drawing within tasks changes nothing.
    interval = cluster_bootstrap([1] * 5 + [0] * 5, [*range(5)] * 2, [0] * 5 + [1] * 5)
    assert interval == Interval(0.5, 0.5)
    assert cluster_bootstrap([1] * 5 + [0] * 5, range(10), [0] * 10).low < 0.4


def test_one_pair_a_cluster_is_mcnemar():
    before, after = table(5, 8, 2, 4)
    found = clustered_difference(before, after, range(19), [0] * 19)
    assert (found.clusters, found.improved, found.worsened) == (19, 8, 2)
    assert found.p_value == mcnemar_exact(8, 2)
    assert found.interval.low < 6 / 19 < found.interval.high


def test_states_of_different_tasks_are_different_clusters_and_count_once():
    # Task 0: state 3 gains twice; task 1: state 3 loses once and gains once, state 4 loses.
    before = [False, False, True, False, True]
    after = [True, True, False, True, False]
    found = clustered_difference(before, after, [3, 3, 3, 3, 4], [0, 0, 1, 1, 1])
    assert (found.clusters, found.improved, found.worsened, found.p_value) == (3, 1, 1, 1.0)


@pytest.mark.parametrize(
    "args", [([], [], []), ([1, 0], [1], [0, 0]), ([1, 0], [1, 2], [0]), ([1], [1], [0], 1.5), ([[1]], [[1]], [[1]])]
)
def test_the_bootstrap_refuses_nonsense(args):
    with pytest.raises(ValueError, match=r"N > 0|confidence"):
        cluster_bootstrap(*args)
