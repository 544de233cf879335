"""What is broken, gone, or too small does not end the dashboard, and is said."""

from __future__ import annotations

import json
import shutil

import pytest
from fake_runs import EPOCH, make_run
from pilots import screen_text, settle, until
from textual.color import Color

from vlacoach.cli.dashboard.keys import PANE_NAMES
from vlacoach.runs import constants as names
from vlacoach.runs.files import replace_text

EVERY_PANE = [str(number) for number in range(1, len(PANE_NAMES) + 1)]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, status="running")


@pytest.mark.parametrize("size", [(20, 5), (8, 3), (1, 1), (200, 60)], ids=str)
def test_every_pane_and_screen_survives_any_size(drive, size):
    drive(*EVERY_PANE, "4", "enter", "escape", "question_mark", "escape", "o", "escape", size=size)


def test_a_tiny_terminal_still_says_the_state(drive):
    assert "finished" in drive(size=(20, 5))


def test_resizing_at_any_time_draws_anew(drive):
    async def act(pilot):
        for key in EVERY_PANE:
            await pilot.press(key)
            for size in ((60, 15), (150, 45), (20, 5), (80, 24)):
                await pilot.resize_terminal(*size)
                await settle(pilot)
            assert max(map(len, screen_text(pilot.app).splitlines())) <= 80

    drive(act=act)


def test_broken_lines_are_skipped_counted_and_shown(drive, run):
    with (run / names.METRICS_FILE).open("a") as file:
        file.write('{"step": 13, "rollout/success": oops}\nnot json\n')
    text = drive(run=run, size=(80, 40))
    assert "2 broken lines in metrics.jsonl were skipped" in text
    assert "update 12/40" in text


def test_nan_and_infinity_are_gaps_and_counted(drive, run):
    with (run / names.METRICS_FILE).open("a") as file:
        for step in (13, 14):
            file.write(json.dumps({"step": step, "train/loss": None, "nonfinite": ["train/loss"]}) + "\n")
        file.write('{"step": 15, "train/loss": 1e400}\n')
    assert "not finite: train/loss 3x" in drive(run=run, size=(80, 40))
    assert "3 gaps" in drive("2", "slash", *"trainloss", "enter", run=run)


def test_a_clock_that_steps_back_changes_no_order(drive, run):
    with (run / names.METRICS_FILE).open("a") as file:
        file.write(json.dumps({"step": 13, "time": EPOCH - 5000, "rollout/success": 0.625, "time/total": 1.0}) + "\n")
        file.write(json.dumps({"step": 13, "time": EPOCH - 5000, "time/elapsed": 160.0}) + "\n")
    text = drive(run=run)
    assert "update 13/40" in text
    assert "62.5" in text


def test_a_run_that_is_deleted_while_watched_keeps_its_last_screen_and_says_so(drive, run):
    async def act(pilot):
        shutil.rmtree(run)
        pilot.app.screen.poll()
        await until(pilot, lambda: "The run folder is gone" in screen_text(pilot.app))
        assert "update 12/40" in screen_text(pilot.app)
        for key in EVERY_PANE:
            await pilot.press(key)
            await settle(pilot)
        await pilot.press("c", "p")
        await settle(pilot)
        assert "Cannot write" in str([toast.message for toast in pilot.app._notifications])

    drive(run=run, act=act, size=(80, 40))


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (names.RUN_FILE, "{", "run.json"),
        (names.RUN_FILE, '{"schema_version": 99}', "schema 99"),
        (names.CONFIG_FILE, "a: [", "config.yaml"),
    ],
)
def test_files_that_break_while_watched_are_named(drive, run, file, text, words):
    async def act(pilot):
        replace_text(run / file, text)
        pilot.app.screen.poll()
        await until(pilot, lambda: words in screen_text(pilot.app).replace("\n", ""))

    drive(run=run, act=act, size=(160, 40))


def test_a_run_that_is_resumed_takes_lines_back(drive, run):
    async def act(pilot):
        lines = (run / names.METRICS_FILE).read_text().splitlines(keepends=True)
        replace_text(run / names.METRICS_FILE, "".join(line for line in lines if json.loads(line)["step"] <= 6))
        pilot.app.screen.poll()
        await until(pilot, lambda: "update 6/40" in screen_text(pilot.app))

    drive("2", run=run, act=act)


def test_without_colors_everything_is_there(drive, monkeypatch, tmp_path):
    colored = drive("2", size=(120, 40))
    monkeypatch.setenv("NO_COLOR", "1")
    found = set()

    async def act(pilot):
        for line in pilot.app.screen._compositor.render_strips(pilot.app.size):
            for segment in line:
                for color in (segment.style.color, segment.style.bgcolor) if segment.style else ():
                    if color is not None and color.triplet is not None:
                        found.add(Color(*color.triplet))

    bare = drive("2", size=(120, 40), act=act)
    assert "success of rollouts" in bare
    assert bare.splitlines()[:3] == colored.splitlines()[:3]
    assert all(color.r == color.g == color.b for color in found)


def test_a_live_picture_that_is_broken_is_said(drive, run):
    (run / names.LIVE_FILE).write_bytes(b"nonsense")

    async def act(pilot):
        await until(pilot, lambda: "is not a picture" in screen_text(pilot.app).replace("\n", ""))

    drive("5", run=run, act=act, size=(160, 30))
    assert not (run / names.WATCHING_FILE).exists()


def test_the_robot_is_shown_while_its_pane_is_on_screen_and_the_sign_goes_with_it(drive, run):
    import numpy as np

    from vlacoach.runs.live import LiveView

    async def act(pilot):
        await until(pilot, lambda: (run / names.WATCHING_FILE).exists())
        LiveView(run).show(
            np.full((16, 16, 3), 200, np.uint8), {"task": 8, "update": 13, "episode": 4, "init_state": 7}
        )
        await until(pilot, lambda: "update 13, episode 4, state 7: 8 put the bowl" in screen_text(pilot.app))
        assert "▀" in screen_text(pilot.app)
        await pilot.press("1")
        await until(pilot, lambda: not (run / names.WATCHING_FILE).exists())

    drive("5", run=run, act=act)


def test_a_readonly_dashboard_writes_nothing(drive, run):
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    drive(*EVERY_PANE, run=run, readonly=True)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
