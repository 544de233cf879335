"""Trackers: what they are sent, what they may not do to a run, and TensorBoard's own files read back."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlacoach.errors import ConfigError, RunError
from vlacoach.runs import trackers
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.trackers import TensorBoardWriter, finite, open_trackers, require_installed


class Recorder:
    """Keeps what it is sent; fails from a call on if told to."""

    def __init__(self, name="recorder", fails_at=None, fails_to_close=False):
        self.name, self.fails_at, self.fails_to_close = name, fails_at, fails_to_close
        self.lines, self.closed = [], 0

    def log(self, step, metrics):
        if len(self.lines) == self.fails_at:
            raise ConnectionError("no route")
        self.lines.append((step, dict(metrics)))

    def close(self):
        self.closed += 1
        if self.fails_to_close:
            raise TimeoutError("still sending")


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "runs", "first", TrainConfig()) as folder:
        yield folder


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in sorted(events.Tags()["scalars"])
    }


def test_only_finite_numbers_that_are_metrics_count():
    record = {"step": 1, "time": 5.0, "a/x": 1, "a/y": None, "a/z": float("inf"), "a/w": np.float32(0.5), "a/t": "text",
              "a/flag": True}  # fmt: skip
    assert finite(record) == {"a/x": 1.0, "a/w": 0.5}


def test_a_run_sends_its_metrics_to_every_tracker_and_ends_them_with_itself(run):
    first, second = Recorder(), Recorder()
    run.attach(first)
    run.log_metrics(1, {"a/x": 0.5, "a/y": float("nan")})
    run.attach(second)
    run.log_metrics(2, {"a/x": 1.5})
    run.log_metrics(3, {"a/x": float("nan")})
    run.close()
    run.close()
    assert first.lines == [(1, {"a/x": 0.5}), (2, {"a/x": 1.5})]
    assert second.lines == [(2, {"a/x": 1.5})]
    assert (first.closed, second.closed) == (1, 1)
    assert [line["a/x"] for line in run.metrics()] == [0.5, 1.5, None]


def test_a_tracker_that_fails_is_let_go_with_one_alert(run):
    broken, whole = Recorder("wandb", fails_at=1), Recorder()
    run.attach(broken)
    run.attach(whole)
    for step in (1, 2, 3):
        run.log_metrics(step, {"a/x": 1.0})
    run.close()
    assert [step for step, _ in whole.lines] == [1, 2, 3]
    assert broken.lines == [(1, {"a/x": 1.0})]
    assert broken.closed == 0
    (alert,) = run.alerts()
    assert alert["level"] == "warning"
    assert alert["message"] == "wandb failed and gets no more metrics: ConnectionError: no route"
    assert len(run.metrics()) == 3


def test_a_tracker_that_cannot_end_does_not_keep_the_others_from_it(run):
    stuck, whole = Recorder(fails_to_close=True), Recorder()
    run.attach(stuck)
    run.attach(whole)
    run.close()
    assert whole.closed == 1
    assert "still sending" in run.alerts()[0]["message"]


def test_the_lock_is_given_back_even_where_the_alert_cannot_be_written(run):
    run.attach(Recorder(fails_to_close=True))
    (run.path / "alerts.jsonl").mkdir()
    with pytest.raises(RunError, match=r"alerts\.jsonl"):
        run.close()
    RunFolder.resume(run.path).close()


def test_ctrl_c_while_logging_is_not_the_trackers(run):
    class Interrupted(Recorder):
        def log(self, step, metrics):
            raise KeyboardInterrupt

    run.attach(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        run.log_metrics(1, {"a/x": 1.0})


def test_tensorboard_has_what_the_run_logged(run):
    for writer in open_trackers(("tensorboard",), run.path, {}):
        run.attach(writer)
    run.log_metrics(0, {"eval/success": 0.25})
    run.log_metrics(1, {"rollout/success": 0.5, "train/kl": float("inf")})
    run.close()
    assert scalars(run.path / "tensorboard") == {"eval/success": [(0, 0.25)], "rollout/success": [(1, 0.5)]}


def test_what_a_resumed_run_repeats_is_there_once(tmp_path):
    for values in ({1: 0.1, 2: 0.2, 3: 0.3}, {2: 0.5, 3: 0.75}):
        writer = TensorBoardWriter(tmp_path)
        for step, value in values.items():
            writer.log(step, {"a/x": value})
        writer.close()
    found = scalars(tmp_path)["a/x"]
    assert [step for step, _ in found] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx([0.1, 0.5, 0.75])


def test_a_tracker_without_metrics_leaves_nothing(tmp_path):
    TensorBoardWriter(tmp_path / "tb").close()
    assert not (tmp_path / "tb").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_what_is_not_installed_is_refused_with_its_extra(monkeypatch, tmp_path, name):
    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    for refused in (lambda: require_installed((name,)), lambda: open_trackers((name,), tmp_path, {})):
        with pytest.raises(ConfigError, match=f"{name} is not installed") as caught:
            refused()
        assert caught.value.hint == f'Install it with: pip install "vlacoach[{name}]"'


def test_one_that_does_not_start_ends_those_before_it(monkeypatch, tmp_path):
    first = Recorder()

    def start(name, run, config):
        if name == "wandb":
            raise PermissionError("no API key")
        return first

    monkeypatch.setattr(trackers, "require_installed", lambda names: None)
    monkeypatch.setattr(trackers, "_open", start)
    with pytest.raises(ConfigError, match="wandb does not start: PermissionError: no API key"):
        open_trackers(("tensorboard", "wandb"), tmp_path, {})
    assert first.closed == 1


def test_each_tracker_is_an_extra_of_the_package():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for name in get_args(trackers.TrackerName):
        assert f'\n{name} = ["{name}>=' in text


CODE = """
import sys
from pathlib import Path
from vlacoach.runs.trackers import open_trackers
for step in (1, 2):
    (writer,) = open_trackers((sys.argv[1],), Path(sys.argv[2]), {"grpo.updates": 2, "env.tasks": [1]})
    writer.log(step, {"a/x": step / 4})
    writer.log(step, {"b/y": 1.0})
    writer.close()
"""


def track(name, run, **environment):
    """Two sittings of one run, in a process of its own: these packages keep threads and state of theirs."""
    return subprocess.run(
        [sys.executable, "-c", CODE, name, str(run)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def test_trackio_has_what_the_run_logged_and_leaves_standard_output_alone(tmp_path):
    pytest.importorskip("trackio")
    done = track("trackio", tmp_path / "run", TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.stdout == ""
    with sqlite3.connect(tmp_path / "trackio" / "vlacoach.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert [(name, step, json.loads(metrics)) for name, step, metrics in rows] == [
        ("run", 1, {"a/x": 0.25}), ("run", 1, {"b/y": 1.0}), ("run", 2, {"a/x": 0.5}), ("run", 2, {"b/y": 1.0})
    ]  # fmt: skip


def test_wandb_keeps_a_run_that_is_offline(tmp_path):
    pytest.importorskip("wandb")
    (tmp_path / "run").mkdir()
    done = track("wandb", tmp_path / "run", WANDB_MODE="offline")
    assert done.stdout == ""
    sittings = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-run.wandb"))
    assert len(sittings) == 2
    assert all(b"a/x" in sitting.read_bytes() for sitting in sittings)
