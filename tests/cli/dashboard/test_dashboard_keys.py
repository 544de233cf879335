"""Every key does what the help says."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from fake_runs import make_run
from pilots import screen_text, settle, until

from vlacoach.cli.dashboard import keys
from vlacoach.cli.dashboard.main_screen import MainScreen
from vlacoach.cli.dashboard.panes.charts import ChartsPane
from vlacoach.cli.dashboard.panes.episodes import EpisodesPane
from vlacoach.cli.dashboard.screens import ConfirmScreen, EpisodeScreen, HelpScreen, RunsScreen
from vlacoach.cli.dashboard.settings import DashboardSettings, load_settings
from vlacoach.errors import ConfigError, UnknownNameError
from vlacoach.runs import constants as names
from vlacoach.runs.control import Control, read_control


@pytest.fixture
def working(tmp_path):
    return make_run(tmp_path / "runs", name="working", status="running")


def test_keys_have_one_meaning_each_and_every_action_exists():
    assert keys.check_keymap({}, "the defaults") == {}
    assert len({key.id for key in (*keys.KEYS, *keys.EPISODE_KEYS)}) == len(keys.KEYS) + len(keys.EPISODE_KEYS)
    for table, screen in ((keys.KEYS, MainScreen), (keys.EPISODE_KEYS, EpisodeScreen)):
        for key in table:
            assert hasattr(screen, f"action_{key.action.partition('(')[0]}"), key
            assert key.description.endswith(".")


def test_numbers_tab_and_the_mouse_choose_panes(drive):
    async def act(pilot):
        screen = pilot.app.screen
        seen = []
        for key in ("4", "tab", "shift+tab", "shift+tab", "9", "tab"):
            await pilot.press(key)
            await settle(pilot)
            seen.append(screen.pane.id)
        assert seen == ["episodes", "robot", "episodes", "tasks", "system", "overview"]
        await pilot.click("Tabs", offset=(14, 0))
        await settle(pilot)
        assert screen.pane.id == "charts"

    drive(act=act)


def test_help_lists_every_key_and_closes(drive):
    async def act(pilot):
        await pilot.press("question_mark")
        assert isinstance(pilot.app.screen, HelpScreen)
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, MainScreen)

    drive(act=act)
    text = drive("question_mark", size=(100, 90))
    for key in (*keys.KEYS, *keys.EPISODE_KEYS):
        assert key.description in text


def test_the_footer_has_the_keys_of_the_pane(drive):
    assert "Filter" not in drive("1").splitlines()[-1]
    assert "Sort" in drive("4").splitlines()[-1]
    assert "Follow" in drive("7").splitlines()[-1]


def test_q_leaves_and_touches_nothing(drive, working):
    async def act(pilot):
        await pilot.press("q")
        await pilot.pause()
        assert not pilot.app.is_running or pilot.app._exit

    before = (working / names.RUN_FILE).read_bytes()
    drive(run=working, act=act)
    assert (working / names.RUN_FILE).read_bytes() == before
    assert not (working / names.CONTROL_FILE).exists()


def test_the_run_is_asked_for_what_keys_say(drive, working):
    async def act(pilot):
        await pilot.press("c", "c", "v", "p")
        assert read_control(working) == Control(paused=True, checkpoint=2, evaluate=1)
        await pilot.press("x")
        await pilot.pause()
        assert isinstance(pilot.app.screen, ConfirmScreen)
        await pilot.press("n")
        await pilot.pause()
        assert not read_control(working).stop
        await pilot.press("x")
        await pilot.pause()
        await pilot.press("y")
        await pilot.pause()
        assert read_control(working).stop
        toasts = [str(toast.message) for toast in pilot.app._notifications]
        assert "The run will end after this update." in toasts
        assert "After this update the run will checkpoint." in toasts

    drive(run=working, act=act)


def test_p_lets_a_paused_run_go_on(drive, tmp_path):
    run = make_run(tmp_path, status="paused")
    drive("p", run=run)
    assert read_control(run) == Control(paused=False)
    assert (run / names.CONTROL_FILE).exists()


def test_a_run_that_is_over_and_a_readonly_one_are_asked_nothing(drive, working, finished):
    drive("p", "c", "v", "x")
    drive("p", "c", "v", "x", run=working, readonly=True)
    for run in (finished, working):
        assert not (run / names.CONTROL_FILE).exists()


def test_a_wish_that_cannot_be_written_is_told(drive, tmp_path):
    run = make_run(tmp_path, status="running")

    async def act(pilot):
        (run / names.RUN_FILE).rename(tmp_path / "away.json")
        run.rename(tmp_path / "moved")
        await pilot.press("c")
        assert "Cannot write" in str([toast.message for toast in pilot.app._notifications])

    drive(run=run, act=act)


def test_charts_zoom_pan_reset_read_and_maximize(drive):
    async def act(pilot):
        pane = pilot.app.screen.query_one(ChartsPane)
        chart = pane.focused_chart()
        assert chart.name == "rollout/success"
        assert chart.has_focus
        whole = chart.view
        await pilot.press("plus")
        start, stop = chart.view
        assert stop - start == pytest.approx((whole[1] - whole[0]) / 2)
        await pilot.press("left_square_bracket")
        assert chart.view[0] < start
        await pilot.press("0")
        assert chart.view == whole
        await pilot.press("left")
        assert chart.cursor == 12
        await pilot.press("left", "left")
        assert chart.cursor == 10
        assert all(one.cursor == 10 for one in pane.charts() if one.display)
        assert "10  0.708" in screen_text(pilot.app)
        await pilot.press("right")
        assert chart.cursor == 11
        await pilot.press("y")
        assert chart.log_scale
        await pilot.press("w")
        assert chart.smoothing == 0.9
        await pilot.press("m")
        await settle(pilot)
        assert pane.visible_metrics() == ["rollout/success"]
        await pilot.press("m")
        await settle(pilot)
        assert len(pane.visible_metrics()) > 10

    drive("2", size=(120, 40), act=act)


def test_the_filter_of_charts_is_fuzzy_and_can_be_put_away(drive):
    async def act(pilot):
        pane = pilot.app.screen.query_one(ChartsPane)
        everything = pane.visible_metrics()
        await pilot.press("slash", *"grnorm")
        await settle(pilot)
        assert pane.visible_metrics() == ["train/gradient_norm"]
        await pilot.press("enter")
        await settle(pilot)
        assert pane.focused_chart().name == "train/gradient_norm"
        await pilot.press("slash", *["backspace"] * 6, *"success/8")
        await settle(pilot)
        assert "rollout/success/8" in pane.visible_metrics()
        await pilot.press(*["backspace"] * 20)
        await pilot.press("enter")
        await settle(pilot)
        assert pane.visible_metrics() == everything

    drive("2", size=(120, 40), act=act)


def test_the_grid_reflows(drive):
    async def act(pilot):
        for width, columns in ((60, 1), (100, 2), (140, 3)):
            await pilot.resize_terminal(width, 40)
            await settle(pilot)
            tops = [chart.region.y for chart in pilot.app.screen.query_one(ChartsPane).charts() if chart.display]
            assert tops.count(tops[0]) == columns

    drive("2", act=act)


def test_episodes_can_be_filtered_sorted_and_opened(drive, finished):
    async def act(pilot):
        pane = pilot.app.screen.query_one(EpisodesPane)
        await pilot.press("slash", *"video", "enter")
        await settle(pilot)
        assert "1 of 1 shown" in screen_text(pilot.app)
        await pilot.press("enter")
        screen = pilot.app.screen
        assert isinstance(screen, EpisodeScreen)
        await until(pilot, lambda: "look 1 of 5" in screen_text(pilot.app))
        text = screen_text(pilot.app)
        assert "task 1  put the bowl on the stove" in text
        assert "progress 0.00" in text
        assert "slot_000.mp4" in text.replace("\n", "")
        await pilot.press("right", "right")
        assert "look 3 of 5  progress 0.50" in screen_text(pilot.app)
        await pilot.press("end")
        assert screen.look == 4
        await pilot.press("home", "left")
        assert screen.look == 0
        await pilot.press("space")
        await until(pilot, lambda: screen.look == 4)
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, MainScreen)
        await pilot.press("r")
        assert "sorted by task" in screen_text(pilot.app)
        assert pane.has_class("-filtering")

    drive("4", act=act)


def test_an_episode_that_was_not_recorded_or_whose_video_is_gone_says_so(drive, tmp_path):
    run = make_run(tmp_path)

    async def open_one(pilot):
        await pilot.press("slash", *"task:8", "enter", "enter")
        await until(pilot, lambda: "not recorded" in screen_text(pilot.app))
        await pilot.press("escape", "slash", *["backspace"] * 6, *"video", "enter")
        for video in run.glob("videos/*/*"):
            video.unlink()
        await pilot.press("enter")
        await until(pilot, lambda: "is gone" in screen_text(pilot.app))

    drive("4", run=run, act=open_one)


def test_runs_can_be_changed_and_laid_over_each_other(drive, tmp_path):
    first = make_run(tmp_path, name="first")
    second = make_run(tmp_path, name="second", updates=6)

    async def act(pilot):
        view = pilot.app.view
        colors = view.colors()
        await pilot.press("o")
        await pilot.pause()
        assert isinstance(pilot.app.screen, RunsScreen)
        await pilot.press(*"secon", "ctrl+o", "escape")
        await settle(pilot)
        assert [watcher.path for watcher in view.others] == [second]
        assert view.colors()[first] == colors[first]
        assert len(set(view.colors().values())) == 2
        await pilot.press("2")
        await settle(pilot)
        chart = pilot.app.screen.query_one(ChartsPane).focused_chart()
        assert [len(series.steps) for series in chart.series] == [12, 6]
        assert "second" in screen_text(pilot.app)
        await pilot.press("o")
        await pilot.pause()
        await pilot.press(*"second", "enter")
        await settle(pilot)
        assert view.watcher.path == second
        assert view.others == []
        assert "update 6/40" in screen_text(pilot.app)

    drive(run=first, act=act, size=(120, 40))


def test_configurations_can_be_compared(drive, tmp_path):
    first = make_run(tmp_path, name="first")
    make_run(tmp_path, name="second", clip_high=0.5)

    async def act(pilot):
        await pilot.press("d")
        await pilot.pause()
        await pilot.press("enter")
        await settle(pilot)
        text = screen_text(pilot.app)
        assert re.search(r"grpo\.clip_high +0\.28 +0\.5", text)
        assert "2 settings differ" in text
        await pilot.press("d")
        await settle(pilot)
        assert "env.suite" in screen_text(pilot.app)

    drive("8", run=first, act=act)


def test_screenshots_and_csv_are_saved_where_we_are(drive, tmp_path, monkeypatch, finished):
    monkeypatch.chdir(tmp_path)
    drive("2", "s", "e")
    (picture,) = tmp_path.glob("vlacoach_charts_*.svg")
    assert "<svg" in picture.read_text()
    (table,) = tmp_path.glob("vlacoach_charts_*.csv")
    rows = list(csv.DictReader(table.open()))
    assert [float(row["value"]) for row in rows if row["metric"] == "train/entropy"] == pytest.approx(
        [0.4 - 0.01 * step for step in range(1, 13)]
    )
    assert {row["step"] for row in rows if row["metric"] == "eval/success"} == {"0", "12"}


def test_the_palette_finds_every_command(drive):
    async def act(pilot):
        await pilot.press("ctrl+p")
        await pilot.press(*"Checkpoint")
        await until(pilot, lambda: "Write a checkpoint after this update" in screen_text(pilot.app))

    drive(act=act)


def test_the_theme_is_kept_between_starts(drive, tmp_path):
    file = tmp_path / "settings" / "dashboard.yaml"

    async def act(pilot):
        before = pilot.app.theme
        await pilot.press("t")
        assert pilot.app.theme != before

    drive(act=act, settings_file=file)
    kept = load_settings(file)
    assert kept.theme != DashboardSettings().theme

    async def again(pilot):
        assert pilot.app.theme == kept.theme

    drive(act=again, settings=kept, settings_file=file)


def test_keys_can_be_changed_in_the_settings(drive, tmp_path):
    file = tmp_path / "dashboard.yaml"
    file.write_text("keys: {help: f9, pane-tasks: g}\n")
    settings = load_settings(file)

    async def act(pilot):
        await pilot.press("g")
        await settle(pilot)
        assert pilot.app.screen.pane.id == "tasks"
        await pilot.press("f9")
        await pilot.pause()
        assert isinstance(pilot.app.screen, HelpScreen)
        assert "f9" in screen_text(pilot.app)

    drive(act=act, settings=settings)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("theme: 3", ConfigError, "theme"),
        ("colour: red", ConfigError, "colour"),
        ("keys: {paws: space}", UnknownNameError, "pause"),
        ("keys: {pause: q}", ConfigError, "'q' is the key of both"),
        ("[", ConfigError, "dashboard.yaml"),
    ],
)
def test_settings_that_are_not_valid_are_refused(tmp_path, text, error, words):
    file = tmp_path / "dashboard.yaml"
    file.write_text(text)
    with pytest.raises(error) as found:
        load_settings(file)
    assert words in f"{found.value.message} {found.value.hint}"


def test_alerts_that_come_while_we_watch_are_toasts(drive, tmp_path):
    run = make_run(tmp_path, status="running")

    async def act(pilot):
        with (run / names.ALERTS_FILE).open("a") as file:
            file.write(json.dumps({"level": "error", "message": "[b]the loss is NaN[/b]"}) + "\n")
        pilot.app.screen.poll()
        await until(pilot, lambda: bool(pilot.app._notifications))
        (toast,) = pilot.app._notifications
        assert (toast.message, toast.severity) == ("[b]the loss is NaN[/b]", "error")
        assert "[b]the loss is NaN[/b]" in screen_text(pilot.app)

    drive(run=run, act=act)


def test_moving_the_mouse_over_a_chart_reads_it(drive):
    async def act(pilot):
        chart = pilot.app.screen.query_one(ChartsPane).focused_chart()
        assert chart.cursor is None
        await pilot.hover("#charts MetricChart", offset=(chart.size.width // 2, 4))
        await settle(pilot)
        assert chart.cursor in range(5, 9)  # The middle of 12 updates.
        await pilot.hover("Tabs", offset=(1, 0))
        await settle(pilot)
        assert chart.cursor is None

    drive("2", act=act)


def test_the_documentation_has_the_table_of_keys():
    page = (Path(__file__).parents[3] / "docs" / "dashboard.md").read_text(encoding="utf-8")
    assert keys.markdown() in page
