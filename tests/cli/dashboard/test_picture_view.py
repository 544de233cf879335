from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style
from textual.app import App, ComposeResult

from vlacoach.cli.dashboard.picture import PictureView, ascii_art, fit, half_blocks

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(*rows):
    return np.array(rows, dtype=np.uint8)


def colors(strip):
    """Text, foreground, and background of the runs of a strip."""
    return [
        (
            segment.text,
            tuple(segment.style.color.triplet) if segment.style.color else None,
            tuple(segment.style.bgcolor.triplet) if segment.style.bgcolor else None,
        )
        for segment in strip
    ]


def test_a_picture_of_two_by_two_pixels_is_two_cells_of_exact_colors():
    [strip] = half_blocks(picture([RED, GREEN], [BLUE, WHITE]), 2, 1)
    assert colors(strip) == [("▀", RED, BLUE), ("▀", GREEN, WHITE)]


def test_equal_cells_are_one_run():
    strips = half_blocks(np.full((8, 8, 3), 7, dtype=np.uint8), 8, 4)
    assert [colors(strip) for strip in strips] == [[("▀" * 8, (7, 7, 7), (7, 7, 7))]] * 4


def test_a_last_row_without_a_partner_leaves_the_background():
    base = Style.parse("on #010203")
    strips = half_blocks(np.full((3, 4, 3), 9, dtype=np.uint8), 4, 2, base)
    assert colors(strips[1]) == [("▀▀▀▀", (9, 9, 9), (1, 2, 3))]


def test_a_picture_is_centered_and_keeps_its_shape():
    strips = half_blocks(picture([RED, RED], [RED, RED]), 9, 2)
    # Cells are twice as high as wide: two rows are four pixels, so the square is four cells wide.
    assert [strip.text for strip in strips] == ["  ▀▀▀▀   "] * 2
    strips = half_blocks(picture([RED, RED], [RED, RED]), 2, 4)
    assert [strip.text for strip in strips] == ["  ", "▀▀", "  ", "  "]


def test_pixels_are_averages_over_their_area():
    array = picture([(0, 0, 0), (100, 0, 0)], [(0, 200, 0), (100, 0, 40)])
    assert fit(array, 1, 1).tolist() == [[[50, 50, 10]]]
    array = picture([(0, 0, 0), (30, 30, 30), (90, 90, 90)])
    # Each new pixel covers one and a half old ones.
    assert fit(array, 2, 1)[0, :, 0].tolist() == [10, 70]


def test_averages_of_a_large_picture_keep_its_mean():
    array = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert fit(array, 37, 37).astype(float).mean() == pytest.approx(array.mean(), abs=0.2)


def test_ascii_art_is_denser_the_lighter():
    ramp = np.repeat(np.linspace(0, 255, 10).astype(np.uint8)[None, :, None], 3, axis=2)
    assert ascii_art(np.repeat(ramp, 2, axis=0), 10, 1) == [" .:-=+*#%@"]


def test_ascii_art_is_centered():
    wide = picture([WHITE] * 8, [WHITE] * 8)
    assert ascii_art(wide, 4, 3) == ["    ", "@@@@", "    "]
    assert ascii_art(wide.swapaxes(0, 1), 5, 2) == ["  @  ", "  @  "]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 40))
def test_any_picture_fills_any_box_exactly(down, across, width, height):
    array = np.full((down, across, 3), 200, dtype=np.uint8)
    strips = half_blocks(array, width, height)
    assert [sum(segment.cell_length for segment in strip) for strip in strips] == [width] * height
    assert [len(row) for row in ascii_art(array, width, height)] == [width] * height
    scaled = fit(array, width, 2 * height)
    assert scaled.shape[0] <= 2 * height
    assert scaled.shape[1] <= width
    assert np.all(scaled == 200)


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2, 3), np.uint8)],
)
def test_what_is_no_picture_is_refused(array):
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8, not "):
        half_blocks(array, 4, 4)
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8, not "):
        PictureView().show(array)


@pytest.mark.parametrize(
    ("system", "upper", "lower", "codes"),
    [
        ("truecolor", (254, 0, 0), (0, 0, 254), "38;2;254;0;0;48;2;0;0;254"),
        ("256", (0, 255, 0), (255, 0, 255), "38;5;46;48;5;201"),
        ("standard", (255, 255, 0), (0, 255, 255), "93;106"),
    ],
)
def test_colors_degrade_with_the_terminal(system, upper, lower, codes):
    # Each with colors of its own: a style keeps the codes of the terminal that it was first written to.
    [strip] = half_blocks(picture([upper], [lower]), 1, 1)
    console = Console(color_system=system, force_terminal=True, _environ={})
    assert strip.render(console) == f"\x1b[{codes}m▀\x1b[0m"


class PictureApp(App[None]):
    def __init__(self, view: PictureView) -> None:
        super().__init__()
        self._view = view

    def compose(self) -> ComposeResult:
        yield self._view


def rows(view: PictureView) -> list[str]:
    return [view.render_line(y).text for y in range(view.size.height)]


def pilot_test(scenario, view, size):
    async def run():
        async with PictureApp(view).run_test(size=size) as pilot:
            await scenario(pilot, view)

    asyncio.run(run())


def test_a_view_shows_its_picture_over_the_caption():
    async def scenario(pilot, view):
        assert [row.strip() for row in rows(view)] == ["", "no picture yet", "", ""]
        view.show(picture([RED, RED, RED], [BLUE, BLUE, BLUE]), "task 3, step 12")
        assert rows(view)[-1] == "  task 3, step 12   "
        # Three rows are six pixels: nine across.
        assert [row.count("▀") for row in rows(view)] == [9, 9, 9, 0]
        assert colors(view.render_line(0))[1] == ("▀" * 9, RED, RED)
        assert colors(view.render_line(1))[1] == ("▀" * 9, RED, BLUE)
        view.ascii = True
        assert all(row.isascii() for row in rows(view))
        view.show(None)
        assert rows(view)[1].strip() == "no picture yet"

    pilot_test(scenario, PictureView(), (20, 4))


def test_a_view_follows_a_resize_and_draws_nothing_twice():
    async def scenario(pilot, view):
        view.show(np.zeros((64, 64, 3), dtype=np.uint8), "caption")
        for size in ((20, 4), (80, 24), (1, 1), (3, 2), (200, 60)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert tuple(view.size) == size
            assert [view.render_line(y).cell_length for y in range(size[1])] == [size[0]] * size[1]
        assert view.render_line(5) is view.render_line(5)

    pilot_test(scenario, PictureView(), (20, 4))


def test_a_caption_of_wide_characters_keeps_the_width():
    async def scenario(pilot, view):
        view.show(np.zeros((4, 4, 3), dtype=np.uint8), "成功率成功率")
        assert sum(segment.cell_length for segment in view.render_line(3)) == 9

    pilot_test(scenario, PictureView(), (9, 4))
