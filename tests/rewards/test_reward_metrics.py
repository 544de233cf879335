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
