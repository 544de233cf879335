from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlacoach.cli.dashboard.bars import histogram, interval_bar, progress_bar, sparkline

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.mark.parametrize(
    ("rate", "low", "high", "bar"),
    [
        (0.5, 0.2, 0.8, "██▒▒▒┃▒▒▒··"),
        (0.0, 0.0, 0.3, "┃▒▒▒·······"),
        (1.0, 0.7, 1.0, "███████▒▒▒┃"),
        (1.0, 1.0, 1.0, "██████████┃"),
        (math.nan, 0.0, 1.0, "···········"),
    ],
)
def test_a_rate_is_a_stroke_within_its_interval(rate, low, high, bar):
    assert interval_bar(rate, low, high, 11).plain == bar
    table = str.maketrans("█▒┃·", "#=|-")
    assert interval_bar(rate, low, high, 11, ascii=True).plain == bar.translate(table)


def test_a_sparkline_has_a_level_for_each_eighth_and_holes_for_gaps():
    values = [0, 1, 2, 3, math.nan, 4, 5, 6, 7, math.inf]
    assert sparkline(values, 12).plain == "▁▂▃▄ ▅▆▇█   "
    assert sparkline(values, 12, ascii=True).plain == "_.-~ =+*#   "


def test_a_sparkline_of_fixed_range_does_not_stretch():
    assert sparkline([0.4, 0.6], 2, low=0, high=1).plain == "▄▅"
    assert sparkline([-3, 9], 2, low=0, high=1).plain == "▁█"


def test_a_sparkline_of_equal_values_is_in_the_middle():
    assert sparkline([2, 2, 2], 3).plain == "▅▅▅"


def test_a_long_series_is_averaged_into_the_cells():
    assert sparkline([0, 2, 6, 8, math.nan, math.nan, 14, math.nan], 4).plain == "▁▄ █"


def test_a_sparkline_without_values_is_blank():
    assert sparkline([], 5).plain == "     "
    assert sparkline([math.nan], 5).plain == "     "


@pytest.mark.parametrize(
    ("done", "total", "bar"),
    [(0, 8, "····"), (4, 8, "██··"), (3, 8, "█▌··"), (8, 8, "████"), (9, 8, "████"), (-1, 8, "····"), (1, 0, "····")],
)
def test_progress_is_filled_to_an_eighth_of_a_cell(done, total, bar):
    assert progress_bar(done, total, 4).plain == bar


def test_progress_in_ascii_is_filled_by_whole_cells():
    assert progress_bar(3, 8, 8, ascii=True).plain == "###-----"


def test_overlaid_histograms_have_a_glyph_each_and_one_for_both():
    rows = [row.plain for row in histogram([0.6, 0.9, 0.9, 1.0], [0.0, 0.0, 0.1, 0.6], 2, 35, 6, ascii=True)]
    # Shares: successes 0 and 4 of 4, failures 3 and 1 of 4, in bins [0, 0.5) and [0.5, 1].
    assert rows == [
        "o success 4  x failure 4  # both   ",
        "100%|" + " " * 15 + "o" * 15,
        "    |" + "x" * 15 + "o" * 15,
        "    |" + "x" * 15 + "o" * 15,
        "  0%|" + "x" * 15 + "#" * 15,
        "     0" + " " * 28 + "1",
    ]


def test_histograms_with_color_read_without_it():
    rows = [row.plain for row in histogram([1.0], [0.0, 1.0], 2, 35, 5)]
    assert set(rows[1][5:]) == {" ", "▒"}
    assert set(rows[3][5:]) == {"░", "█"}


def test_a_single_value_among_many_does_not_vanish():
    rows = [row.plain for row in histogram([0.0] * 1000 + [1.0], [], 10, 35, 8, ascii=True)]
    assert rows[-2][5:] == "ooo" + " " * 24 + "ooo"


def test_gaps_are_left_out_and_counted_in_the_legend():
    rows = histogram([1.0, math.nan], [2.0, math.inf, 3.0], 4, 60, 5)
    assert rows[0].plain.strip() == "▒ success 1  ░ failure 2  █ both  2 gaps"


def test_a_histogram_of_nothing_says_so():
    assert [row.plain.strip() for row in histogram([], [math.nan], 4, 20, 5)] == ["no values yet"]


def test_a_histogram_without_room_is_refused():
    with pytest.raises(ValueError, match="needs 12 cells by 3 rows, not 11 by 3"):
        histogram([1], [2], 4, 11, 3)


values_of_any_kind = st.lists(st.floats(width=64), max_size=30)


@given(
    values_of_any_kind, values_of_any_kind, st.integers(1, 50), st.integers(12, 120), st.integers(3, 20), st.booleans()
)
def test_histograms_of_any_values_have_the_size_asked_for(a, b, bins, width, height, ascii):
    rows = histogram(a, b, bins, width, height, ascii)
    assert len(rows) in (1, height)
    assert all(row.cell_len == width for row in rows)
    assert not ascii or all(row.plain.isascii() for row in rows)


@given(values_of_any_kind, st.integers(0, 60), st.booleans())
def test_bars_of_any_values_have_the_width_asked_for(values, width, ascii):
    assert sparkline(values, width, ascii).cell_len == width
    for value in values:
        assert interval_bar(value, 0.2, 0.8, width, ascii).cell_len == width
        assert progress_bar(np.nan_to_num(value), 7.0, width, ascii).cell_len == width
