from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.style import Style
from textual.strip import Strip

from vlacoach.cli.dashboard.drawing import draw_chart
from vlacoach.cli.dashboard.plot import ChartStyles, ChartView
from vlacoach.cli.dashboard.series import ASCII_MARKERS, SERIES_COLORS, SERIES_MARKERS, ChartSeries, trace

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

STYLES = ChartStyles(base=Style(), title=Style(bold=True), axis=Style(dim=True), cursor=Style(italic=True))


def series(values, steps=None, name="loss", color=SERIES_COLORS[0], **options):
    return ChartSeries(name, color, np.arange(len(values)) if steps is None else steps, values, **options)


def draw(shown, width, height, smoothing=0.0, log_scale=False, **view):
    view = {"title": "loss", "start": 0.0, "stop": 7.0, **view}
    traces = [trace(each, smoothing, log_scale) for each in shown]
    return draw_chart(traces, ChartView(log_scale=log_scale, **view), STYLES, width, height).strips


def texts(strips: list[Strip]) -> list[str]:
    return [strip.text for strip in strips]


def test_a_rising_line_with_its_axes():
    assert texts(draw([series(range(8))], 13, 6)) == [
        "loss  7      ",
        "    │      ⡠⠊",
        "   5┤    ⡠⠊  ",
        "    │  ⡠⠊    ",
        "   0┤⡠⠊      ",
        "     0    5  ",
    ]


def test_a_narrow_chart_gives_up_labels_and_a_low_one_its_x_axis():
    assert texts(draw([series(range(8))], 4, 3)) == ["loss", "  ⡠⠊", "⡠⠊  "]


def test_the_axis_is_ascii_with_ascii():
    rows = texts(draw([series(range(8)), series([1, 2], name="b")], 30, 8, ascii=True, cursor=3))
    assert all(row.isascii() for row in rows)
    assert rows[0].startswith("loss  step 3  o 3  x -")
    assert rows[1].startswith("o loss  x b")


def test_an_empty_chart_says_so():
    assert texts(draw([], 20, 4))[1:] == ["                    ", "    no data yet     ", " " * 20]
    assert "no data yet" in "".join(texts(draw([series([])], 20, 4)))


def test_a_chart_of_gaps_alone_says_so():
    rows = texts(draw([series([np.nan, np.inf])], 30, 4))
    assert rows[0].startswith("loss  inf  2 gaps")
    assert "no finite values" in rows[2]
    assert "no values above 0" in "".join(texts(draw([series([0.0, -1.0])], 30, 4, log_scale=True)))


def test_gaps_are_counted_in_the_title():
    assert texts(draw([series([0, np.nan, 1])], 30, 6))[0].strip() == "loss  1  1 gap"
    assert texts(draw([series([0, np.nan, np.inf, 1])], 30, 6))[0].strip() == "loss  1  2 gaps"


def test_a_log_axis_has_powers_of_ten_and_counts_what_it_hides():
    rows = texts(draw([series([1e-3, 1e-2, 0.1, 1, 10, 100, -1, 0])], 30, 13, log_scale=True))
    assert rows[0].strip() == "loss  0  2 gaps"
    labels = [row[:6].strip(" ┤│") for row in rows[1:-1]]
    assert [label for label in labels if label] == ["10", "0.1", "0.001"]


def test_the_cursor_reads_out_the_nearest_point_of_each_series():
    first = series([0.5, 0.43, 0.1], steps=[100, 121, 140])
    second = series([3.0, 4.0], steps=[0, 50])
    rows = texts(draw([first], 40, 8, start=100, stop=140, cursor=120))
    assert rows[0].strip() == "loss  step 120  0.43"
    rows = texts(draw([first, second], 40, 8, start=0, stop=140, cursor=120))
    assert rows[0].strip() == "loss  step 120  ● 0.43  ■ -"


def test_the_read_out_shows_the_value_and_its_average():
    rows = texts(draw([series([0.0, 1.0])], 40, 6, smoothing=0.5, cursor=1))
    # Without bias: (0.5 * 0 * 0.5 + 0.5 * 1) / (0.25 + 0.5) = 2 / 3.
    assert rows[0].strip() == "loss  step 1  1 ~0.667"


def test_the_cursor_is_a_line_through_free_cells():
    rows = texts(draw([series([0, 0, 0, 0, 0, 0, 0, 7])], 13, 6, cursor=2))
    column = 5 + 2
    assert [row[column] for row in rows[1:4]] == ["│", "│", "│"]
    assert rows[4][column] != "│"
    assert "│" not in "".join(row[5:] for row in texts(draw([series(range(8))], 13, 6, cursor=99)))


def test_the_title_gives_way_to_the_figures():
    assert texts(draw([series([0.25])], 20, 3, title="a very long title indeed"))[0] == "a very long ti  0.25"
    assert texts(draw([series([0.25])], 9, 3, title="a very long title indeed"))[0] == "a very l "


def test_a_title_of_wide_characters_keeps_the_width():
    strips = draw([series([0.25])], 9, 3, title="成功率成功率成功率")
    assert [strip.cell_length for strip in strips] == [9, 9, 9]
    assert sum(segment.cell_length for segment in strips[0]) == 9


def test_line_breaks_in_names_do_not_break_the_rows():
    rows = texts(draw([series([1], name="a\nb"), series([1], name="c\x1b[31m")], 40, 8, title="x\ty"))
    assert rows[0].startswith("x?y")
    assert rows[1].startswith("● a?b  ■ c?[31m")


def test_an_average_is_drawn_over_the_dimmed_line():
    rng = np.random.default_rng(0)
    strips = draw([series(rng.normal(size=400))], 60, 12, smoothing=0.95, stop=399)
    dimmed = sum(len(s.text) for row in strips[1:-1] for s in row if s.style.color and s.style.dim)
    bright = sum(len(s.text) for row in strips[1:-1] for s in row if s.style.color and not s.style.dim)
    assert dimmed > bright > 50


def test_an_average_keeps_the_gaps():
    prepared = trace(series([1.0, np.nan, np.inf, 2.0]), 0.5, False)
    assert prepared.gaps == 2
    # Without bias: (0.25 * 1 + 0.5 * 2) / (0.25 + 0.5) = 5 / 3.
    assert prepared.smooth == pytest.approx([1.0, np.nan, np.nan, 5 / 3], nan_ok=True)


def test_an_average_that_no_double_holds_is_a_gap():
    prepared = trace(series([np.finfo(float).max] * 3), 0.9, False)
    assert np.isnan(prepared.smooth).any()
    assert not np.isinf(prepared.smooth).any()


def test_an_average_on_a_log_axis_keeps_the_gaps_of_values_at_or_below_zero():
    prepared = trace(series([100.0, 0.0, -1.0, 100.0]), 0.5, True)
    assert np.isnan(prepared.smooth).tolist() == [False, True, True, False]
    assert prepared.smooth[0] == pytest.approx(2.0)


def test_crossing_lines_share_the_dots_of_a_cell():
    rising, falling = series([0.0, 1.0], name="up"), series([1.0, 0.0], name="down")
    rows = texts(draw([rising, falling], 3, 6, stop=1.0))
    # Alone, each line fills half of the middle cell.
    assert rows[2:5] == ["⢣ ●", " ⣿ ", "⡜ ■"]


def test_sparse_points_are_marked_and_connected():
    rows = texts(draw([series([0.0, 1.0, 0.0], steps=[0, 4, 8], markers=True)], 14, 7, stop=8, y_range=(0.0, 1.0)))
    plot = [row[5:] for row in rows[1:-1]]
    assert plot[0].count("●") == 1
    assert plot[-1].startswith("●")
    assert plot[-1].endswith("●")
    assert sum(row.count("●") for row in plot) == 3
    assert all(any(row[column] != " " for row in plot) for column in range(9))


def test_several_lines_end_in_their_markers_and_have_a_legend():
    rows = texts(draw([series([0.0, 0.0], name="a"), series([1.0, 1.0], name="b")], 20, 8, stop=1))
    assert rows[1].startswith("● a  ■ b")
    assert rows[2].endswith("■")
    assert rows[-2].endswith("●")


def test_lines_are_marked_along_their_way_where_colors_are_few():
    shown = [series(np.zeros(100), name="a"), series(np.ones(100), name="b")]
    rows = texts(draw(shown, 66, 8, stop=99, marked_lines=True))
    assert rows[2].count("■") == 6
    assert rows[-2].count("●") == 6


def test_a_band_is_a_dim_fill_between_its_bounds():
    low, high = np.full(8, 0.25), np.full(8, 0.75)
    shown = series(np.full(8, 0.5), band=(low, high))
    strips = draw([shown], 13, 10, y_range=(0.0, 1.0))
    plot = [row.text[5:] for row in strips[1:-1]]
    assert plot[0].strip() == plot[1].strip() == plot[-1].strip() == ""
    assert set(plot[2] + plot[5]) <= set("⢕⠕⠑⢔⢐⢄⠁⠄⠅⢅⢁⢑")
    filled = [segment for segment in strips[3] if segment.style.color]
    assert filled
    assert all(segment.style.dim for segment in filled)


def test_a_band_does_not_change_the_axis_and_a_lower_bound_of_zero_fills_down_on_a_log_axis():
    shown = series([1.0, 10.0, 100.0], band=(np.zeros(3), np.full(3, 10.0)))
    rows = [row[5:] for row in texts(draw([shown], 25, 10, log_scale=True, stop=2, ascii=True))[1:-1]]
    assert "," in rows[-1]
    assert "," not in rows[0]


def test_a_fixed_axis_stays_and_cuts_what_is_beyond():
    rows = texts(draw([series([0.2, 0.4, 5.0])], 30, 12, stop=2, y_range=(0.0, 1.0)))
    labels = [row[:4].strip() for row in rows[1:-1]]
    assert labels[0] == "1"
    assert labels[-1] == "0"


def test_a_zoom_between_two_points_shows_the_line_that_crosses():
    rows = texts(draw([series([0.0, 100.0], steps=[0, 100])], 30, 8, start=40.0, stop=60.0))
    assert sum(cell != " " for row in rows[1:-1] for cell in row[5:]) >= 20


def test_points_are_put_in_order_of_steps():
    shown = series([3.0, 1.0, 2.0], steps=[30, 10, 20], band=([2, 0, 1], [4, 2, 3]))
    assert shown.steps.tolist() == [10, 20, 30]
    assert shown.values.tolist() == [1, 2, 3]
    assert shown.band[0].tolist() == [0, 1, 2]
    assert series([1.0, 2.0], steps=[np.nan, 5]).values.tolist() == [2.0]


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"series 'loss' needs arrays \(N,\), not \[\(2,\), \(3,\)\]"):
        series([1, 2, 3], steps=[1, 2])


def test_colors_are_entries_of_the_256_color_cube():
    assert len(set(SERIES_COLORS)) == len(SERIES_COLORS) == len(set(SERIES_MARKERS)) == len(set(ASCII_MARKERS)) == 8
    for color in SERIES_COLORS:
        assert {int(color[start : start + 2], 16) for start in (1, 3, 5)} <= {0, 95, 135, 175, 215, 255}


# Machado, Oliveira, and Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009).
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear, 0, 1) / (to_xyz @ np.ones(3))
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colors_can_be_told_apart_by_color_blind_readers(deficiency):
    seen = []
    for color in SERIES_COLORS:
        srgb = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        seen.append(lab(np.array(DEFICIENCIES[deficiency]) @ linear))
    distances = {
        (SERIES_COLORS[i], SERIES_COLORS[j]): float(np.linalg.norm(seen[i] - seen[j]))
        for i in range(len(seen))
        for j in range(i)
    }
    closest = min(distances, key=distances.get)
    assert distances[closest] > 28, (closest, distances[closest])


values_of_any_kind = st.lists(st.floats(width=64), max_size=40)


@settings(max_examples=150)
@given(
    values_of_any_kind,
    values_of_any_kind,
    st.integers(1, 200),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.9]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 0, 13, 500]),
    st.sampled_from([(0.0, 39.0), (3.5, 4.5), (-1e6, 1e9)]),
)
def test_any_series_at_any_size_fills_the_chart_exactly(
    first, second, width, height, smoothing, log_scale, ascii, cursor, view
):
    shown = [series(first, name="a"), series(second, name="b", markers=True, band=(second, second))]
    strips = draw(
        shown,
        width,
        height,
        smoothing,
        log_scale,
        ascii=ascii,
        cursor=cursor,
        start=view[0],
        stop=view[1],
        marked_lines=True,
    )
    assert len(strips) == height
    for strip in strips:
        assert strip.cell_length == width
        assert sum(segment.cell_length for segment in strip) == width


@given(
    st.lists(st.tuples(st.floats(-1e12, 1e12) | st.sampled_from([np.nan, np.inf, 0.0, 1.0]), st.floats()), max_size=20),
    st.floats(-1e12, 1e12),
    st.floats(1e-3, 1e12),
)
def test_any_steps_in_any_view_fill_the_chart_exactly(points, start, span):
    steps, values = (np.array([point[part] for point in points]) for part in (0, 1))
    strips = draw([series(values, steps=steps, band=(values, values))], 37, 11, 0.5, start=start, stop=start + span)
    assert [strip.cell_length for strip in strips] == [37] * 11
