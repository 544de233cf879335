"""The run folder: making, finding, locking, writing, rewinding."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from vlacoach.errors import ConfigError, RunError
from vlacoach.runs import constants as names
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.files import replace_text
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(
        tmp_path / "runs", "first", TrainConfig(seed=7), {"seed": "--seed", "name": "default"}
    ) as run:
        yield run


def test_created_folder_has_what_readers_need(run):
    assert re.fullmatch(r"\d{8}_\d{6}_first_[0-9a-f]{4}", run.path.name)
    info = RunFolder.open(run.path).info()
    assert info["seed"] == 7
    assert info["pid"] == os.getpid()
    assert info["origins"] == {"seed": "--seed"}
    assert info["versions"]["numpy"]
    assert info["schema_version"] == names.SCHEMA_VERSION
    assert run.config() == TrainConfig(seed=7)
    assert (run.path.parent / "latest").resolve() == run.path.resolve()


def test_found_by_path_name_id_prefix_and_latest(run):
    root = run.path.parent
    for reference in (run.path, run.path.name, run.path.name[-4:], "first", run.path.name[:10], "latest"):
        assert RunFolder.open(reference, root).path.resolve() == run.path.resolve()


def test_unknown_run_lists_what_exists(run):
    with pytest.raises(RunError) as caught:
        RunFolder.open("nope", run.path.parent)
    assert run.path.name in str(caught.value)


def test_ambiguous_name_is_refused(run):
    other = RunFolder.create(run.path.parent, "first")
    other.close()
    with pytest.raises(RunError, match="could be any of"):
        RunFolder.open("first", run.path.parent)
    assert RunFolder.open("latest", run.path.parent).path.name == other.path.name


def test_latest_falls_back_to_the_newest_when_its_target_is_gone(run):
    other = RunFolder.create(run.path.parent, "second")
    other.close()
    shutil.rmtree(other.path)
    assert RunFolder.open("latest", run.path.parent).path.name == run.path.name


def test_no_runs_at_all(tmp_path):
    with pytest.raises(RunError, match="no runs"):
        RunFolder.open("latest", tmp_path)
    assert list_runs(tmp_path / "missing") == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 99}'])
def test_broken_or_later_run_json(run, text):
    (run.path / names.RUN_FILE).write_text(text)
    with pytest.raises(RunError, match=r"run\.json"):
        RunFolder.open(run.path)


def test_a_plain_folder_is_no_run(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a" * 65])
def test_bad_names(tmp_path, name):
    with pytest.raises(ConfigError):
        RunFolder.create(tmp_path, name)


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="Cannot write"):
        RunFolder.create(tmp_path / "runs", "x")


def test_two_trainers_on_one_folder(run):
    with pytest.raises(RunError, match="in use by process"):
        RunFolder.resume(run.path)
    code = f"from vlacoach.runs.folder import RunFolder; RunFolder.resume({str(run.path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "in use by process" in done.stderr
    run.close()
    resumed = RunFolder.resume(run.path)
    assert len(resumed.info()["resumed"]) == 1
    resumed.close()


def test_metrics_episodes_events_alerts(run):
    run.log_metrics(1, {names.ROLLOUT_SUCCESS: 0.5, names.TRAIN_KL: float("nan")})
    run.log_episode(1, task=3, success=True)
    run.log_event("stage", stage="rollout")
    run.alert("warning", "entropy collapsed", "lower the step size")
    reader = RunFolder.open(run.path)
    (line,) = reader.metrics()
    assert (line["step"], line[names.ROLLOUT_SUCCESS], line[names.TRAIN_KL]) == (1, 0.5, None)
    assert line["nonfinite"] == [names.TRAIN_KL]
    assert abs(line["time"] - time.time()) < 60
    assert reader.episodes()[0]["task"] == 3
    assert reader.events()[0]["event"] == "stage"
    assert reader.alerts()[0]["advice"] == "lower the step size"


def test_rewind_drops_what_a_resumed_run_will_repeat(run):
    for step in range(4):
        run.log_metrics(step, {"x": step})
        run.log_episode(step, task=0)
    run.rewind(1)
    run.log_metrics(2, {"x": 20})
    assert [(line["step"], line["x"]) for line in run.metrics()] == [(0, 0), (1, 1), (2, 20)]
    assert [line["step"] for line in run.episodes()] == [0, 1]


def test_lines_that_will_be_written_again_are_forgotten(run):
    run.log_metrics(1, {"eval/success": 0.5})
    run.log_metrics(2, {"x": 1})
    run.log_metrics(2, {"eval/success": 0.5})
    run.log_metrics(2, {"eval_train/success": 0.5})
    run.forget_metrics(2, ["eval/success", "eval_train/success"])
    run.log_metrics(2, {"eval/success": 0.75})
    kept = [{key: value for key, value in line.items() if key != "time"} for line in run.metrics()]
    assert kept == [{"step": 1, "eval/success": 0.5}, {"step": 2, "x": 1}, {"step": 2, "eval/success": 0.75}]


def test_latest_does_not_lead_out_of_the_folder_of_runs(run, tmp_path):
    elsewhere = RunFolder.create(tmp_path / "elsewhere", "other")
    elsewhere.close()
    link = run.path.parent / "latest"
    link.unlink()
    link.symlink_to(elsewhere.path.resolve())
    assert RunFolder.open("latest", run.path.parent).path.name == run.path.name


def test_status_and_heartbeat(run, monkeypatch):
    run.set_status(names.STATUS_RUNNING)
    run.progress("rollout", 3, 10)
    assert run.status() == "running"
    beat = run.heartbeat()
    assert (beat["stage"], beat["done"], beat["total"]) == ("rollout", 3, 10)
    replace_text(run.path / names.HEARTBEAT_FILE, json.dumps({"time": time.time() - 1000}))
    assert run.status() == "stalled"
    run.set_status(names.STATUS_FAILED, "boom")
    assert run.status() == "failed"
    assert run.info()["error"] == "boom"
    assert run.info()["finished"] > 0
    with pytest.raises(ValueError, match="exploded"):
        run.set_status("exploded")


def test_heartbeat_is_rate_limited_but_not_across_stages(run):
    run.progress("rollout", 1)
    run.progress("rollout", 2)
    assert run.heartbeat()["done"] == 1
    run.progress("update", 5)
    assert run.heartbeat()["done"] == 5


def test_deleted_folder_is_noticed(run):
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="Cannot write"):
        run.progress("rollout")


def test_log_lines_are_dated(run):
    run.log("hello")
    run.log("again")
    lines = (run.path / names.LOG_FILE).read_text().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d hello", lines[0])


def test_replace_text_leaves_the_old_contents_on_failure(tmp_path, monkeypatch):
    file = tmp_path / "x"
    replace_text(file, "old")

    def refuse(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(RunError, match="No space left") as caught:
        replace_text(file, "new")
    assert "full" in caught.value.hint
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_running_notes_how_the_work_ended(run):
    with run.running():
        assert run.status() == "running"
    assert run.status() == "finished"
    with pytest.raises(ZeroDivisionError), run.running():
        _ = 1 / 0
    assert (run.status(), run.info()["error"]) == ("failed", "ZeroDivisionError: division by zero")
    with pytest.raises(KeyboardInterrupt), run.running():
        raise KeyboardInterrupt
    assert (run.status(), run.info()["error"]) == ("interrupted", None)
    statuses = [event["status"] for event in run.events() if event["event"] == "status"]
    assert statuses == ["running", "finished", "running", "failed", "running", "interrupted"]


def test_a_vanished_folder_does_not_hide_why_the_work_ended(run):
    def lose_everything():
        with run.running():
            shutil.rmtree(run.path)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        lose_everything()
