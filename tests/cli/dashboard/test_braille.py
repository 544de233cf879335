from __future__ import annotations

import numpy as np
import pytest

from vlacoach.cli.dashboard import braille
from vlacoach.cli.dashboard.canvas import decode

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def drawn(values, width, height, bottom, top, ascii=False, steps=None):
    values = np.asarray(values, dtype=float)
    steps = np.arange(len(values), dtype=float) if steps is None else np.asarray(steps, dtype=float)
    envelope = braille.decimate(steps, values, 2 * width, float(steps[0]), float(steps[-1]))
    bits = braille.pack(braille.dot_grid(envelope, height, bottom, top))
    return [decode(row) for row in braille.glyphs(bits, ascii)]


def test_a_rising_line_is_a_diagonal_of_single_dots():
    assert drawn(range(8), 4, 2, 0, 7) == ["  ⡠⠊", "⡠⠊  "]


def test_a_falling_line_is_its_mirror():
    assert drawn(range(7, -1, -1), 4, 2, 0, 7) == ["⠑⢄  ", "  ⠑⢄"]


def test_a_rising_line_in_ascii_uses_halves_of_a_cell():
    assert drawn(range(8), 4, 2, 0, 7, ascii=True) == ["  .'", ".'  "]


def test_a_constant_line_is_one_row_of_dots():
    assert drawn([3, 3, 3, 3], 2, 1, 0, 3) == ["⠉⠉"]
    assert drawn([0, 0, 0, 0], 2, 1, 0, 3) == ["⣀⣀"]


def test_a_jump_between_two_columns_is_a_stroke_shared_by_both():
    assert drawn([0, 0, 3, 3], 2, 1, 0, 3) == ["⣠⠋"]


def test_a_stroke_from_top_to_bottom_is_a_bar_in_ascii():
    assert drawn([0, 3, 0, 3], 1, 1, 0, 3, ascii=True) == ["|"]


def test_a_line_between_two_points_has_no_holes():
    rows = drawn([0, 1], 6, 3, 0, 1)
    bits = np.array([[ord(glyph) - 0x2800 if glyph != " " else 0 for glyph in row] for row in rows])
    per_column = np.zeros(12, dtype=bool)
    for half, mask in enumerate((0x47, 0xB8)):
        per_column[half::2] = np.any(bits & mask, axis=0)
    assert per_column.all()
    assert rows[0].endswith("⠊") or rows[0].endswith("⠉")


@pytest.mark.parametrize("gap", [np.nan, np.inf, -np.inf])
def test_a_gap_stays_a_gap_and_the_points_beside_it_stay_visible(gap):
    assert drawn([0, 0, 0, gap, gap, 0, 0, 0], 4, 1, 0, 3) == ["⣀⡀⢀⣀"]


def test_a_lone_point_between_gaps_is_a_dot():
    assert drawn([np.nan, np.nan, 3, np.nan, np.nan, np.nan], 3, 1, 0, 3) == [" ⠁ "]


def test_spikes_survive_the_decimation_of_a_hundred_thousand_points():
    values = np.sin(np.arange(100_000) / 5_000)
    values[[17, 54_321, 99_998]] = [9.0, -7.0, 5.0]
    steps = np.arange(100_000.0)
    envelope = braille.decimate(steps, values, 200, 0.0, 99_999.0)
    columns = braille.column_positions(steps[[17, 54_321, 99_998]], 200, 0.0, 99_999.0).astype(int)
    assert envelope.high[columns[0]] == 9.0
    assert envelope.low[columns[1]] == -7.0
    assert envelope.high[columns[2]] == 5.0
    assert np.nanmax(envelope.high) == 9.0
    assert np.nanmin(envelope.low) == -7.0
    dots = braille.dot_grid(envelope, 10, -7.0, 9.0)
    assert dots[0].tolist() == [column == columns[0] for column in range(200)]
    assert dots[-1].tolist() == [column == columns[1] for column in range(200)]


def test_each_column_holds_the_extremes_of_its_own_points():
    envelope = braille.decimate(np.arange(6.0), np.array([1.0, 5.0, 2.0, 8.0, 3.0, 4.0]), 6, 0.0, 5.0)
    # Edges are half way between neighbors: 3, 3.5, 5, 5.5, 3.5.
    assert envelope.low.tolist() == [1.0, 3.0, 2.0, 5.0, 3.0, 3.5]
    assert envelope.high.tolist() == [3.0, 5.0, 5.0, 8.0, 5.5, 4.0]


def test_columns_without_a_line_are_nan():
    envelope = braille.decimate(np.array([0.0, 1.0, 7.0]), np.array([1.0, np.nan, 2.0]), 8, 0.0, 7.0)
    assert np.isnan(envelope.low).tolist() == [False] + [True] * 6 + [False]


def test_a_line_that_comes_from_outside_of_the_view_enters_at_its_edge():
    envelope = braille.decimate(np.array([0.0, 100.0]), np.array([0.0, 100.0]), 5, 40.0, 44.0)
    assert envelope.low.tolist() == [39.5, 40.5, 41.5, 42.5, 43.5]
    assert envelope.high.tolist() == [40.5, 41.5, 42.5, 43.5, 44.5]


def test_repeated_steps_share_a_column():
    envelope = braille.decimate(np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, -3.0, 3.0, 0.0]), 3, 0.0, 2.0)
    assert (envelope.low[1], envelope.high[1]) == (-3.0, 3.0)


def test_no_points_are_no_line():
    envelope = braille.decimate(np.empty(0), np.empty(0), 4, 0.0, 1.0)
    assert np.isnan(envelope.low).all()


def test_a_view_without_extent_is_refused():
    with pytest.raises(ValueError, match=r"must go up, not from 3\.0 to 3\.0"):
        braille.column_positions(np.zeros(1), 4, 3.0, 3.0)


def test_positions_and_steps_are_inverse():
    positions = braille.column_positions(np.array([10.0, 15.0, 20.0]), 11, 10.0, 20.0)
    assert positions.tolist() == [0.5, 5.5, 10.5]
    assert [braille.step_at(position, 11, 10.0, 20.0) for position in positions] == [10.0, 15.0, 20.0]


def test_what_lies_outside_of_the_axis_is_not_drawn():
    assert drawn([9, 9, 9, 9], 2, 1, 0, 3) == ["  "]
    # The line crosses 0, the lowest row, between the second and the third column.
    assert drawn([-1e308, -1e308, 1e308, 1e308], 2, 1, 0, 3) == ["⢀⡇"]


def test_a_fill_is_every_second_dot():
    assert [decode(row) for row in braille.glyphs(braille.pack(braille.checkered(np.ones((4, 4), dtype=bool))))] == [
        "⢕⢕"
    ]


def test_every_dot_has_the_bit_of_its_unicode_code_point():
    names = {1: (0, 0), 2: (1, 0), 3: (2, 0), 4: (0, 1), 5: (1, 1), 6: (2, 1), 7: (3, 0), 8: (3, 1)}
    for number, (row, column) in names.items():
        dots = np.zeros((4, 2), dtype=bool)
        dots[row, column] = True
        assert braille.glyphs(braille.pack(dots)).tolist() == [[0x2800 + (1 << (number - 1))]]
