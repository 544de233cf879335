"""Following a run from its folder: what is new, what is broken, what is gone."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlacoach.runs import constants as names
from vlacoach.runs import watching
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.files import replace_text
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.jsonl import JsonlReader
from vlacoach.runs.overview import overview, stage_shares, tasks
from vlacoach.runs.series import SeriesTable
from vlacoach.runs.statistics import wilson_interval
from vlacoach.runs.watching import RunWatcher


@pytest.fixture
def run(tmp_path):
    config = TrainConfig(seed=3, grpo={"updates": 40})
    with RunFolder.create(tmp_path, "watched", config, {"grpo.updates": "--updates"}) as folder:
        folder.set_status(names.STATUS_RUNNING)
        yield folder


def log_update(run, step, success=0.5, seconds=10.0, **metrics):
    times = {"time/rollout": 0.8 * seconds, "time/update": 0.2 * seconds, "time/total": seconds}
    counts = {"rollout/episodes": 64.0, "rollout/env_steps": 6400.0}
    run.log_metrics(step, {"rollout/success": success, "rollout/success/8": success, **counts, **times, **metrics})
    run.log_metrics(step, {"time/elapsed": step * (seconds + 2.0)})


def test_everything_a_run_writes_is_seen_and_nothing_twice(run):
    watcher = RunWatcher(run.path)
    assert {names.RUN_FILE, names.CONFIG_FILE, names.EVENTS_FILE} <= watcher.poll()
    assert watcher.status == "running"
    assert watcher.config["grpo.updates"] == 40
    assert watcher.poll() == frozenset()
    log_update(run, 1, train_kl=0.25)
    run.log_episode(1, task=8, success=True)
    run.alert("warning", "look here")
    run.log("hello")
    run.progress("rollout", 3, 16)
    changed = watcher.poll()
    assert {names.METRICS_FILE, names.EPISODES_FILE, names.ALERTS_FILE, names.LOG_FILE, names.HEARTBEAT_FILE} == changed
    assert watcher.metrics.last("rollout/success") == 0.5
    assert [episode["task"] for episode in watcher.episodes] == [8]
    assert watcher.alerts[0]["message"] == "look here"
    assert watcher.log[-1].endswith("hello")
    assert watcher.heartbeat["done"] == 3
    assert watcher.poll() == frozenset()
    run.set_status(names.STATUS_FINISHED)
    assert "status" in watcher.poll()
    assert watcher.status == "finished"
    assert len(watcher.metrics["rollout/success"]) == 1


def test_half_lines_wait_and_broken_ones_are_counted(run):
    watcher = RunWatcher(run.path)
    log_update(run, 1)
    watcher.poll()
    with (run.path / names.METRICS_FILE).open("ab") as file:
        file.write(b'{"step": 2, "rollout/suc')
    watcher.poll()
    assert len(watcher.metrics["rollout/success"]) == 1
    with (run.path / names.METRICS_FILE).open("ab") as file:
        file.write(b'cess": 0.75}\n{"step": 3, oops}\n[1]\n')
    watcher.poll()
    assert watcher.metrics["rollout/success"].values.tolist() == [0.5, 0.75]
    assert watcher.broken == {names.METRICS_FILE: 2}
    assert overview(watcher).broken_lines == {names.METRICS_FILE: 2}


def test_lines_that_a_resumed_run_takes_back_disappear(run):
    watcher = RunWatcher(run.path)
    for step in (1, 2, 3):
        log_update(run, step, success=step / 10)
        run.log_episode(step, task=0, success=False)
    watcher.poll()
    run.rewind(1)
    log_update(run, 2, success=0.9)
    watcher.poll()
    assert watcher.metrics["rollout/success"].values.tolist() == [0.1, 0.9]
    assert [episode["step"] for episode in watcher.episodes] == [1]
    assert watcher.alerts == []


def test_of_a_long_file_of_episodes_only_the_end_is_read(run, monkeypatch):
    monkeypatch.setattr(watching, "EPISODE_BYTES", 500)
    for step in range(100):
        run.log_episode(step, task=0, success=False)
    watcher = RunWatcher(run.path)
    watcher.poll()
    steps = [episode["step"] for episode in watcher.episodes]
    assert steps == list(range(100 - len(steps), 100))
    assert 5 < len(steps) < 20
    assert watcher.episodes_skipped
    assert watcher.broken == {}
    run.log_episode(100, task=0, success=False)
    watcher.poll()
    assert watcher.episodes[-1]["step"] == 100


def test_a_tail_that_begins_at_a_line_takes_it_whole(tmp_path):
    file = tmp_path / "lines.jsonl"
    lines = [json.dumps({"n": n}) + "\n" for n in range(5)]
    file.write_text("".join(lines))
    for tail in range(1, len("".join(lines)) + 3):
        found = [record["n"] for record in JsonlReader(file, tail).read()]
        assert found == list(range(5 - len(found), 5))
        assert len(found) == min(5, tail // len(lines[0]))


def test_a_run_that_is_deleted_while_watched_is_said_to_be_gone_and_what_was_read_stays(run):
    watcher = RunWatcher(run.path)
    log_update(run, 1)
    watcher.poll()
    shutil.rmtree(run.path)
    assert "problem" in watcher.poll()
    assert "folder is gone" in watcher.problem
    assert watcher.metrics.last("rollout/success") == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "cannot be read"), ('{"schema_version": 99}', "Update|schema 99"), ("[]", "no schema_version")],
)
def test_a_run_that_cannot_be_read_is_a_problem_and_no_exception(run, text, words):
    replace_text(run.path / names.RUN_FILE, text)
    watcher = RunWatcher(run.path)
    watcher.poll()
    assert re.search(words, watcher.problem)
    assert overview(watcher).problem == watcher.problem


def test_an_empty_folder_is_a_problem(tmp_path):
    watcher = RunWatcher(tmp_path)
    watcher.poll()
    assert "not a run folder" in watcher.problem
    assert overview(watcher).update == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_run_without_rights_is_a_problem(run):
    (run.path / names.METRICS_FILE).touch(mode=0)
    watcher = RunWatcher(run.path)
    watcher.poll()
    assert "metrics.jsonl" in watcher.problem


def test_a_broken_configuration_is_told_and_the_rest_is_read(run):
    (run.path / names.CONFIG_FILE).write_text("a: [")
    log_update(run, 1)
    watcher = RunWatcher(run.path)
    watcher.poll()
    assert "config.yaml" in watcher.problem


def test_what_is_not_finite_is_a_gap_and_is_counted(run):
    log_update(run, 1, **{"train/loss": math.nan})
    log_update(run, 2, **{"train/loss": math.inf})
    log_update(run, 3, **{"train/loss": 0.5})
    watcher = RunWatcher(run.path)
    watcher.poll()
    np.testing.assert_array_equal(watcher.metrics["train/loss"].values, [math.nan, math.nan, 0.5])
    assert overview(watcher).nonfinite == {"train/loss": 2}
    assert watcher.metrics.first("train/loss") == 0.5


def test_the_overview_adds_up(run):
    watcher = RunWatcher(run.path)
    watcher.poll()
    empty = overview(watcher)
    assert (empty.update, empty.updates, empty.success, empty.remaining) == (0, 40, None, None)
    for step, rate in ((1, 0.25), (2, 0.75), (3, 0.5)):
        log_update(run, step, rate, **{"train/kl": 0.01 * step})
    run.log_metrics(3, {"eval/success": 0.5, "eval/episodes": 40, "eval/successes": 20, "eval/success/8": 0.5})
    run.progress("update", 10, 128)
    watcher.poll()
    view = overview(watcher)
    interval = wilson_interval(32, 64)
    assert (view.success.now.rate, view.success.now.low, view.success.now.high) == (0.5, interval.low, interval.high)
    assert (view.success.start.step, view.success.best.step) == (1, 2)
    assert view.held_out.now.episodes == 40
    assert view.training_states is None
    assert view.shares == {"rollout": pytest.approx(0.8), "update": pytest.approx(0.2)}
    assert (view.stage, view.done, view.total) == ("update", 10, 128)
    assert view.health["train/kl"] == 0.03
    assert view.env_steps_per_second == pytest.approx(6400 / 8)
    assert view.episodes_per_second == pytest.approx(8)
    # 12 s an update and 37 to go.
    assert view.remaining == pytest.approx(37 * 12, abs=2)
    json.dumps(view.to_json(), allow_nan=False)
    run.set_status(names.STATUS_FINISHED)
    watcher.poll()
    assert overview(watcher).remaining is None
    assert overview(watcher).stage is None


def test_a_time_budget_may_end_a_run_sooner(tmp_path):
    config = TrainConfig(grpo={"updates": 1000, "minutes": 2})
    with RunFolder.create(tmp_path, "short", config) as run:
        run.set_status(names.STATUS_RUNNING)
        log_update(run, 1)
        log_update(run, 2)
        watcher = RunWatcher(run.path)
        watcher.poll()
        assert overview(watcher).remaining == pytest.approx(120 - 24, abs=2)


def test_a_run_without_a_heartbeat_is_stalled(run):
    replace_text(run.path / names.HEARTBEAT_FILE, json.dumps({"time": time.time() - 1000}))
    watcher = RunWatcher(run.path)
    watcher.poll()
    assert watcher.status == "stalled"
    assert overview(watcher).remaining is None


def test_tasks_are_sorted_by_success_of_the_newest_updates(run):
    for step in range(1, 21):
        run.log_metrics(step, {"rollout/success/8": step / 20, "rollout/success/1": 0.9, "rollout/success/odd": 1.0})
        for slot in range(4):
            run.log_episode(step, task=8, success=slot < 1, valid=True)
            run.log_episode(step, task=1, success=True, valid=slot < 3)
    watcher = RunWatcher(run.path)
    watcher.poll()
    worst, best = tasks(watcher)
    assert (worst.task, worst.successes, worst.episodes) == (8, 10, 40)
    assert (best.task, best.successes, best.episodes) == (1, 30, 30)
    assert worst.rate == 0.25
    assert worst.trend == pytest.approx(0.5)
    assert best.trend == pytest.approx(0.0)
    interval = wilson_interval(10, 40)
    assert worst.interval == interval


def test_columns_keep_what_is_a_number(run):
    table = SeriesTable()
    table.extend(
        [
            {"step": 1, "time": 5.0, "a": 1, "b": "text", "c": True, "d": None, "nonfinite": ["d"]},
            {"a": 2.5},
            {"step": "x", "a": 3},
        ]
    )
    assert list(table) == ["a", "d"]
    assert table["a"].values.tolist() == [1.0, 2.5, 3.0]
    np.testing.assert_array_equal(table["a"].steps, [1.0, math.nan, math.nan])
    assert table["a"].recent(2) == [2.5, 3.0]
    assert table.gaps == {"d": 1}
    assert table.last("d") is None
    assert table.last("none") is None
    assert stage_shares(table) == {}


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
_KEYS = st.sampled_from(
    ["step", "time", "rollout/success", "rollout/episodes", "time/elapsed", "time/total", "rollout/success/8", "task",
     "eval/success", "eval/episodes", "success", "reward", "stage", "done", "total", "event"]
)  # fmt: skip


@given(st.lists(st.dictionaries(_KEYS, _VALUES, max_size=6), max_size=6))
def test_whatever_is_in_the_files_the_overview_can_be_had(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("fuzz")
    with RunFolder.create(folder, "fuzz", TrainConfig()) as run:
        run.set_status(names.STATUS_RUNNING)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        for file in (names.METRICS_FILE, names.EPISODES_FILE, names.EVENTS_FILE, names.SYSTEM_FILE, names.ALERTS_FILE):
            (run.path / file).write_text(lines)
        (run.path / names.HEARTBEAT_FILE).write_text(json.dumps(records[0]) if records else "")
        watcher = RunWatcher(run.path)
        watcher.poll()
        view = overview(watcher)
        assert view.updates == 40
        tasks(watcher)


def test_watching_loads_nothing_heavy():
    code = (
        "import vlacoach.runs.overview, vlacoach.runs.live, vlacoach.runs.control, vlacoach.runs.videos, sys\n"
        "print([name for name in ('torch', 'mujoco', 'scipy', 'textual', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
