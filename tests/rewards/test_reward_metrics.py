from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from vlacoach.errors import NonFiniteError, VlacoachError
from vlacoach.rewards import auroc, spearman
from vlacoach.rewards.metrics import (
    bootstrap,
    jensen_shannon,
    maximum_mean_discrepancy,
    monotonicity,
    standardized_mean_difference,
)


def test_auroc_in_closed_form():
    assert auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    assert auroc([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]) == 0.0
    assert auroc([0.5, 0.5, 0.5], [0, 1, 1]) == 0.5
    # Of four pairs, the positives win two, tie one and lose one.
    assert auroc([1, 3, 1, 4], [0, 0, 1, 1]) == pytest.approx((0.5 + 0 + 1 + 1) / 4)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_agrees_with_scikit_learn(pairs):
    scores, labels = zip(*pairs, strict=True)
    if len(set(labels)) == 1:
        with pytest.raises(VlacoachError, match="both classes"):
            auroc(scores, labels)
    else:
        assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_spearman_agrees_with_scipy(pairs):
    first, second = zip(*pairs, strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        with pytest.raises(VlacoachError, match="vary"):
            spearman(first, second)
    else:
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_spearman_sees_order_only():
    values = np.array([0.3, 1.0, 2.5, 4.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1.0)
    assert spearman(values, -values) == pytest.approx(-1.0)


def test_metrics_refuse_what_they_cannot_rank():
    with pytest.raises(NonFiniteError, match="scores"):
        auroc([math.nan, 1.0], [0, 1])
    with pytest.raises(VlacoachError, match="shape"):
        auroc([1.0, 2.0], [0, 1, 1])
    with pytest.raises(VlacoachError, match="shape"):
        spearman([1.0, 2.0], [1.0, 2.0, 3.0])


def test_monotonicity_counts_rises():
    assert monotonicity([0, 1, 2, 3]) == 1.0
    assert monotonicity([3, 2, 1]) == 0.0
    assert monotonicity([0, 1, 1, 0]) == pytest.approx((1 + 0.5 + 0) / 3)
    with pytest.raises(VlacoachError, match="two points"):
        monotonicity([1.0])
    with pytest.raises(NonFiniteError):
        monotonicity([1.0, math.nan])


def test_the_standardized_mean_difference_in_closed_form():
    # Variances 1 and 4, pooled over 2 + 2 degrees of freedom: 2.5.
    assert standardized_mean_difference([4, 5, 6], [0, 2, 4]) == pytest.approx(3 / math.sqrt(2.5))
    assert standardized_mean_difference([0, 2, 4], [4, 5, 6]) == pytest.approx(-3 / math.sqrt(2.5))
    assert standardized_mean_difference([1, 1], [0, 0]) == math.inf
    assert standardized_mean_difference([1, 1], [1, 1]) == 0.0
    with pytest.raises(VlacoachError, match="two numbers"):
        standardized_mean_difference([1], [1, 2])


def test_mmd_in_closed_form_and_for_one_and_two_distributions():
    # Points 0, 0 against 1, 1: within 1 each, across exp(-1/2) with bandwidth 1.
    zeros, ones = np.zeros((2, 1)), np.ones((2, 1))
    assert maximum_mean_discrepancy(zeros, ones, bandwidth=1.0) == pytest.approx(2 - 2 * math.exp(-0.5))
    rng = np.random.default_rng(0)
    same = [maximum_mean_discrepancy(rng.normal(size=(30, 8)), rng.normal(size=(40, 8))) for _ in range(40)]
    assert abs(np.mean(same)) < 2 * np.std(same) / math.sqrt(len(same)) + 1e-3  # unbiased
    assert maximum_mean_discrepancy(rng.normal(size=(30, 8)), rng.normal(2.0, size=(40, 8))) > 10 * np.std(same)
    with pytest.raises(VlacoachError, match="two rows"):
        maximum_mean_discrepancy(zeros[:1], ones)
    with pytest.raises(NonFiniteError):
        maximum_mean_discrepancy(zeros * math.nan, ones)


def test_jensen_shannon_in_closed_form():
    assert jensen_shannon([0.0, 0.1], [0.9, 1.0], bins=2) == pytest.approx(1.0)
    assert jensen_shannon([0.0, 1.0], [1.0, 0.0], bins=2) == 0.0
    assert jensen_shannon([3.0, 3.0], [3.0]) == 0.0
    # (1, 0) against (1/2, 1/2): the middle is (3/4, 1/4).
    expected = 0.5 * math.log2(4 / 3) + 0.5 * (0.5 * math.log2(2 / 3) + 0.5 * math.log2(2))
    assert jensen_shannon([0.0, 0.1], [0.0, 1.0], bins=2) == pytest.approx(expected)


def test_the_bootstrap_covers_a_mean_and_repeats_itself():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        values = rng.normal(size=50)
        mean = bootstrap(lambda rows: float(values[rows].mean()), 50, np.random.default_rng(seed), resamples=200)  # noqa: B023
        assert mean.value == pytest.approx(values.mean())
        covered += mean.low <= 0.0 <= mean.high
    assert covered >= 50  # 95 % of 60 are 57
    estimates = [bootstrap(lambda rows: float(rows.mean()), 9, np.random.default_rng(1), resamples=50) for _ in "ab"]
    assert estimates[0] == estimates[1]


def test_the_bootstrap_draws_again_where_a_figure_is_undefined():
    labels = np.array([True, False, False, False])
    estimate = bootstrap(lambda rows: auroc(rows, labels[rows]), 4, np.random.default_rng(0), resamples=50)
    assert (estimate.value, estimate.high) == (0.0, 0.0)

    def never(rows: np.ndarray) -> float:
        if len(np.unique(rows)) < len(rows):
            raise VlacoachError("undefined")
        return 0.0

    with pytest.raises(VlacoachError, match="undefined on most resamples"):
        bootstrap(never, 30, np.random.default_rng(0), resamples=50)
