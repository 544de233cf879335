from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np
import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.strip import Strip

from vlacoach.cli.dashboard.chart import MetricChart
from vlacoach.cli.dashboard.series import SERIES_COLORS, ChartSeries


class ChartApp(App[None]):
    CSS = "MetricChart { height: 1fr; }"

    def __init__(self, *charts: MetricChart) -> None:
        super().__init__()
        self._charts = charts

    def compose(self) -> ComposeResult:
        yield from self._charts


def line(n=200, name="loss", index=0, **options):
    steps = np.arange(float(n))
    return ChartSeries(name, SERIES_COLORS[index], steps, steps / 100, **options)


def rows(chart: MetricChart) -> list[str]:
    return [chart.render_line(y).text for y in range(chart.size.height)]


def pilot_test(scenario, *charts, size=(60, 12)):
    """Run a coroutine ``scenario(pilot, *charts)`` in an app of these charts."""

    async def run():
        async with ChartApp(*charts).run_test(size=size) as pilot:
            await scenario(pilot, *charts)

    asyncio.run(run())


def test_the_cursor_reads_values_out_in_the_title_row():
    async def scenario(pilot, chart):
        chart.set_series([line()])
        assert rows(chart)[0].strip() == "train/loss  1.99"
        chart.cursor = 43
        assert rows(chart)[0].strip() == "train/loss  step 43  0.43"
        chart.smoothing = 0.9
        assert rows(chart)[0].strip().startswith("train/loss  step 43  0.43 ~0.3")
        chart.cursor = None
        assert "step" not in rows(chart)[0]

    pilot_test(scenario, MetricChart("train/loss"))


def test_zoom_pan_and_reset_change_the_labels_of_the_x_axis():
    async def scenario(pilot, chart):
        chart.set_series([line()])
        assert rows(chart)[-1].split() == ["0", "50", "100", "150"]
        chart.zoom(4)
        assert chart.view == pytest.approx((74.625, 124.375))
        assert rows(chart)[-1].split() == ["80", "100", "120"]
        chart.pan(0.5)
        assert chart.view == pytest.approx((99.5, 149.25))
        chart.pan(9)
        assert chart.view == pytest.approx((149.25, 199))
        chart.pan(-99)
        assert chart.view == pytest.approx((0, 49.75))
        chart.reset_view()
        assert rows(chart)[-1].split() == ["0", "50", "100", "150"]

    pilot_test(scenario, MetricChart("loss"))


def test_zoom_keeps_the_cursor_in_its_place_and_ends_at_single_steps_and_at_all_data():
    async def scenario(pilot, chart):
        chart.set_series([line(101)])
        chart.cursor = 20
        chart.zoom(2)
        assert chart.view == pytest.approx((10, 60))
        for _ in range(40):
            chart.zoom(2)
        assert chart.view[1] - chart.view[0] == pytest.approx(1)
        for _ in range(40):
            chart.zoom(0.5)
        assert chart.view == (0, 100)
        with pytest.raises(ValueError, match="above 0, not 0"):
            chart.zoom(0)

    pilot_test(scenario, MetricChart("loss"))


def test_a_zoomed_view_at_the_end_goes_along_with_the_run_and_another_stays():
    async def scenario(pilot, chart):
        chart.set_series([line(101)])
        chart.zoom(2)
        chart.set_series([line(111)])
        assert chart.view == pytest.approx((25, 75))
        chart.pan(9)
        assert chart.view == pytest.approx((60, 110))
        chart.set_series([line(131)])
        assert chart.view == pytest.approx((80, 130))
        chart.set_series([line(11)])
        assert chart.view == (0, 10)

    pilot_test(scenario, MetricChart("loss"))


def test_a_resize_fills_the_new_size():
    async def scenario(pilot, chart):
        chart.set_series([line()])
        for size in ((60, 12), (100, 30), (8, 3), (3, 1), (20, 5), (60, 12)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert tuple(chart.size) == (max(size[0], 8), max(size[1], 3))
            assert [chart.render_line(y).cell_length for y in range(chart.size.height)] == [chart.size.width] * (
                chart.size.height
            )
        assert rows(chart)[-1].split() == ["0", "50", "100", "150"]

    pilot_test(scenario, MetricChart("loss"))


def test_nothing_is_drawn_anew_without_a_change():
    async def scenario(pilot, chart):
        chart.set_series([line()])
        before = chart.render_line(3)
        assert chart.render_line(3) is before
        chart.refresh()
        await pilot.pause()
        assert chart.render_line(3) is before
        chart.cursor = 10
        after = chart.render_line(3)
        assert after is not before
        chart.set_series([line()])
        assert chart.render_line(3) is not after

    pilot_test(scenario, MetricChart("loss"))


def test_the_mouse_moves_the_cursor_to_the_nearest_step_of_the_data():
    async def scenario(pilot, chart, other):
        steps = np.array([0.0, 100.0, 200.0])
        chart.set_series([ChartSeries("success", SERIES_COLORS[0], steps, steps / 400, markers=True)])
        await pilot.pause()
        left = 5
        await pilot.hover(chart, offset=(left, 3))
        assert chart.cursor == 0
        await pilot.hover(chart, offset=(left + (60 - left) // 2 + 3, 3))
        assert chart.cursor == 100
        assert rows(chart)[0].strip() == "success  step 100  0.25"
        await pilot.hover(chart, offset=(59, 3))
        assert chart.cursor == 200
        await pilot.hover(other, offset=(30, 2))
        assert chart.cursor is None
        assert other.cursor is None

    pilot_test(scenario, MetricChart("success"), MetricChart("empty"), size=(60, 24))


def test_the_wheel_zooms_and_a_click_focuses():
    async def scenario(pilot, _other, chart):
        chart.set_series([line(101)])
        await pilot.pause()
        wheel = dict(x=30, y=4, delta_x=0, delta_y=0, button=0, shift=False, meta=False, ctrl=False)
        chart.post_message(events.MouseScrollUp(chart, **wheel))
        await pilot.pause()
        assert chart.view == pytest.approx((10, 90))
        chart.post_message(events.MouseScrollDown(chart, **wheel))
        await pilot.pause()
        assert chart.view == (0, 100)
        assert not title_style(chart).reverse
        await pilot.click(chart)
        await pilot.pause()
        assert pilot.app.focused is chart
        assert title_style(chart).reverse

    pilot_test(scenario, MetricChart("has the focus first"), MetricChart("loss"), size=(60, 24))


def title_style(chart: MetricChart):
    strip: Strip = chart.render_line(0)
    return next(iter(strip)).style


def test_a_fixed_range_must_go_up():
    with pytest.raises(ValueError, match=r"must go up between finite ends, not \(1, 0\)"):
        MetricChart("success", y_range=(1, 0))
    with pytest.raises(ValueError, match="finite ends"):
        MetricChart("success", y_range=(0, float("inf")))


def test_smoothing_stays_below_one():
    async def scenario(pilot, chart):
        chart.smoothing = 7
        assert chart.smoothing == 0.999
        chart.smoothing = -1
        assert chart.smoothing == 0

    pilot_test(scenario, MetricChart("loss"))


def test_log_scale_and_fixed_range_and_ascii_take_effect_at_once():
    async def scenario(pilot, chart):
        chart.set_series([ChartSeries("loss", SERIES_COLORS[0], np.arange(5.0), np.array([0, 1, 10, 100, 1000.0]))])
        assert "1k" in rows(chart)[1]
        chart.log_scale = True
        assert rows(chart)[0].strip() == "loss  1k  1 gap"
        labels = [row[:4].strip() for row in rows(chart)[1:-1]]
        assert [label for label in labels if label] == ["1k", "100", "10", "1"]
        chart.log_scale = False
        chart.y_range = (0, 2000)
        assert rows(chart)[1].startswith("  2k┤")
        chart.ascii = True
        assert all(row.isascii() for row in rows(chart))
        chart.title = "other"
        assert rows(chart)[0].startswith("other")

    pilot_test(scenario, MetricChart("loss"))


def test_a_theme_changes_the_background_of_cached_rows():
    async def scenario(pilot, chart):
        chart.set_series([line()])
        before = title_style(chart).bgcolor
        pilot.app.theme = "textual-light"
        await pilot.pause()
        assert title_style(chart).bgcolor != before

    pilot_test(scenario, MetricChart("loss"))


@pytest.mark.parametrize(("theme", "farther"), [("textual-dark", -1), ("textual-light", 1)])
def test_axes_stand_back_behind_the_title(theme, farther):
    async def scenario(pilot, chart):
        pilot.app.theme = theme
        chart.set_series([line()])
        await pilot.pause()
        axis = next(iter(chart.render_line(2))).style
        assert axis.bgcolor == title_style(chart).bgcolor
        assert np.sign(axis.color.triplet.red - title_style(chart).color.triplet.red) == farther

    pilot_test(scenario, MetricChart("loss"))


def test_the_widgets_load_nothing_heavy():
    code = """
import sys
import vlacoach.cli.dashboard.bars, vlacoach.cli.dashboard.chart, vlacoach.cli.dashboard.picture
print(sorted({"torch", "mujoco", "scipy", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_colors_lines_carry_their_markers(monkeypatch):
    async def scenario(pilot, chart):
        chart.set_series([line(name="a"), line(name="b", index=1)])
        text = "".join(rows(chart)[2:])
        assert text.count("■") > 3

    monkeypatch.setenv("NO_COLOR", "1")
    pilot_test(scenario, MetricChart("loss"))


def test_with_colors_only_the_ends_of_lines_are_marked(monkeypatch):
    async def scenario(pilot, chart):
        chart.set_series([line(name="a"), line(name="b", index=1)])
        assert "".join(rows(chart)[2:]).count("■") == 1

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    pilot_test(scenario, MetricChart("loss"))


def test_a_single_evaluation_is_a_point():
    async def scenario(pilot, chart):
        chart.set_series([ChartSeries("s", SERIES_COLORS[0], np.array([40.0]), np.array([0.5]), markers=True)])
        assert chart.view == (39, 41)
        assert sum(row.count("●") for row in rows(chart)) == 1
        chart.zoom(5)
        chart.pan(3)
        assert sum(row.count("●") for row in rows(chart)) == 1

    pilot_test(scenario, MetricChart("success"))
