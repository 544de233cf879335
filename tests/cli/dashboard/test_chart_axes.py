from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlacoach.cli.dashboard import axes

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0, "0"),
        (-0.0, "0"),
        (0.25, "0.25"),
        (1200, "1.2k"),
        (3e-5, "3e-5"),
        (-3.25e-5, "-3.25e-5"),
        (12e6, "12M"),
        (5e9, "5G"),
        (7.5e12, "7.5T"),
        (1e15, "1e15"),
        (999.4, "999"),
        (999.6, "1k"),
        (999_999, "1M"),
        (0.001, "0.001"),
        (0.00099999, "0.001"),
        (100, "100"),
        (120, "120"),
        (-0.125, "-0.125"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (1.7976931348623157e308, "1.8e308"),
        (5e-324, "4.94e-324"),
    ],
)
def test_numbers_are_short(value, label):
    assert axes.compact_number(value) == label


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1, 2, [0, 0.5, 1]),
        (0, 1999, 4, [0, 500, 1000, 1500]),
        (-3, 7, 5, [-2, 0, 2, 4, 6]),
        (0.13, 0.17, 4, [0.13, 0.14, 0.15, 0.16, 0.17]),
        (3, 9, 1, []),
    ],
)
def test_ticks_are_multiples_of_one_two_or_five(low, high, count, ticks):
    assert axes.linear_ticks(low, high, count) == pytest.approx(ticks)


def test_ticks_of_whole_numbers_are_at_least_one_apart():
    assert axes.linear_ticks(10, 12, 10, smallest=1.0).tolist() == [10, 11, 12]


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(1, 9),
)
def test_ticks_lie_on_the_axis_in_order_and_are_not_too_many(a, b, count):
    low, high = axes.spread_range(min(a, b), max(a, b))
    assert low < high
    ticks = axes.linear_ticks(low, high, count)
    assert ticks.size <= count + 1
    assert np.all(np.diff(ticks) > 0)
    tolerance = 1e-6 * (high / 2 - low / 2)
    assert np.all((ticks >= low - tolerance) & (ticks <= high + tolerance))
    assert len(axes.tick_labels(ticks)) == ticks.size


def test_log_ticks_are_powers_of_ten():
    assert axes.log_ticks(-3.2, 1.1, 9).tolist() == [-3, -2, -1, 0, 1]
    assert axes.log_ticks(-6.0, 6.0, 3).tolist() == [-6, -2, 2, 6]
    assert axes.tick_labels(10.0 ** axes.log_ticks(-5.0, 6.0, 12)) == [
        *("1e-5", "1e-4", "0.001", "0.01", "0.1", "1"),
        *("10", "100", "1k", "10k", "100k", "1M"),
    ]


def test_log_ticks_within_one_power_are_round_numbers():
    assert 10 ** axes.log_ticks(math.log10(20), math.log10(60), 4) == pytest.approx([20, 30, 40, 50, 60])


@given(st.floats(-323.3, 308.25), st.floats(-323.3, 308.25), st.integers(1, 9))
def test_log_ticks_lie_on_the_axis(a, b, count):
    low, high = min(a, b), max(a, b) + 0.5
    ticks = axes.log_ticks(low, high, count)
    assert np.all((ticks >= low - 1e-6) & (ticks <= high + 1e-6))


def test_labels_have_the_digits_that_tell_them_apart():
    assert axes.tick_labels(np.array([0.9975, 0.998, 0.9985])) == ["0.9975", "0.998", "0.9985"]
    assert axes.tick_labels(np.array([1000.0, 1050.0, 1100.0])) == ["1k", "1.05k", "1.1k"]
    assert axes.tick_labels(np.array([123456.0, 123457.0])) == ["123.456k", "123.457k"]


def test_logarithms_of_zero_and_below_are_gaps_and_counted():
    logarithms, hidden = axes.log_values(np.array([100.0, 0.0, -5.0, np.nan, np.inf, 0.001]))
    assert hidden == 2
    assert logarithms == pytest.approx([2, np.nan, np.nan, np.nan, np.nan, -3], nan_ok=True)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, (0, 1)), (0, 0, (-0.5, 0.5)), (4, 4, (2, 6)), (-4, -4, (-6, -2)), (1e-5, 1e-5, (0.5e-5, 1.5e-5))],
)
def test_a_range_without_extent_is_widened(low, high, expected):
    assert axes.spread_range(low, high) == pytest.approx(expected)
