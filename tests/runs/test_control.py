"""Wishes to a run: written by whoever watches, done by the trainer."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.control import Control, ControlReader, RemoteControl, ask, read_control
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.reporting import NullReporter
from vlacoach.runs.stopping import GracefulStop


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path, "wishes") as folder:
        folder.set_status(names.STATUS_RUNNING)
        yield folder


class Heard(NullReporter):
    def __init__(self):
        self.lines = []

    def message(self, text, level="info"):
        self.lines.append((text, level))


def test_wishes_add_up_in_the_file(tmp_path):
    assert read_control(tmp_path) == Control()
    ask(tmp_path, "checkpoint")
    ask(tmp_path, "pause")
    assert ask(tmp_path, "checkpoint") == Control(paused=True, checkpoint=2)
    assert read_control(tmp_path) == Control(paused=True, checkpoint=2)
    ask(tmp_path, "resume")
    assert ask(tmp_path, "evaluate") == Control(checkpoint=2, evaluate=1)


def test_a_wish_to_stop_ends_a_pause(tmp_path):
    ask(tmp_path, "pause")
    assert ask(tmp_path, "stop") == Control(stop=True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"paused": 1}', '{"checkpoint": true}', '{"checkpoint": -1}', '{"evaluate": 1.5}']
)
def test_a_file_that_cannot_be_understood_is_an_error_that_names_it_and_asking_replaces_it(tmp_path, text):
    (tmp_path / names.CONTROL_FILE).write_text(text)
    with pytest.raises(RunError, match=r"control\.json"):
        read_control(tmp_path)
    assert ask(tmp_path, "stop") == Control(stop=True)
    assert read_control(tmp_path) == Control(stop=True)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_contents_are_either_wishes_or_an_error(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / names.CONTROL_FILE).write_text(json.dumps({"paused": value, "checkpoint": value}))
    try:
        found = read_control(folder)
    except RunError as error:
        found = error
    assert isinstance(found, Control) or "control.json" in found.message


def test_each_wish_is_done_once(tmp_path):
    reader = ControlReader(tmp_path)
    assert reader.poll() == Control()
    assert not reader.take("checkpoint")
    ask(tmp_path, "checkpoint")
    assert reader.poll().checkpoint == 1
    assert reader.take("checkpoint")
    assert not reader.take("checkpoint")
    ask(tmp_path, "evaluate")
    reader.poll()
    assert not reader.take("checkpoint")
    assert reader.take("evaluate")


def test_wishes_of_an_earlier_session_are_void(tmp_path):
    ask(tmp_path, "stop")
    assert ControlReader(tmp_path).poll() == Control()
    assert not (tmp_path / names.CONTROL_FILE).exists()


def test_a_file_that_is_removed_ends_a_pause(tmp_path):
    reader = ControlReader(tmp_path)
    ask(tmp_path, "pause")
    assert reader.poll().paused
    (tmp_path / names.CONTROL_FILE).unlink()
    assert not reader.poll().paused


def test_a_paused_run_waits_and_its_clock_stands_still(run):
    heard = Heard()
    control = RemoteControl(run, heard, GracefulStop())
    ask(run.path, "pause")
    seen = []

    def resume():
        while run.status() != names.STATUS_PAUSED:
            time.sleep(0.01)
        seen.append(run.status())
        time.sleep(0.5)
        ask(run.path, "resume")

    watcher = threading.Thread(target=resume)
    watcher.start()
    clock, wall = control.clock(), time.perf_counter()
    control.obey()
    passed, waited = control.clock() - clock, time.perf_counter() - wall
    watcher.join()
    assert seen == [names.STATUS_PAUSED]
    assert waited > 0.5
    assert passed < waited - 0.4
    assert run.status() == names.STATUS_RUNNING
    assert [event["status"] for event in run.events() if event["event"] == "status"][-2:] == ["paused", "running"]
    assert [text for text, _ in heard.lines] == ["Asked for by a watcher: pause", "Going on."]


def test_a_wish_to_stop_reaches_the_loop_once(run):
    heard, stop = Heard(), GracefulStop()
    control = RemoteControl(run, heard, stop)
    control.obey()
    assert not stop.requested
    ask(run.path, "stop")
    control.obey()
    control.obey()
    assert stop.requested
    assert [text for text, _ in heard.lines] == ["Asked for by a watcher: stop after this update"]


def test_a_signal_ends_a_pause(run):
    stop = GracefulStop()
    control = RemoteControl(run, NullReporter(), stop)
    ask(run.path, "pause")
    threading.Timer(0.4, lambda: setattr(stop, "requested", True)).start()
    control.obey()
    assert stop.requested
    assert run.status() == names.STATUS_RUNNING


def test_a_broken_file_is_told_once_and_the_run_goes_on(run):
    heard = Heard()
    control = RemoteControl(run, heard, GracefulStop())
    (run.path / names.CONTROL_FILE).write_text("{")
    control.obey()
    control.obey()
    assert [level for _, level in heard.lines] == ["warning"]
    (alert,) = run.alerts()
    assert "control.json" in alert["message"]


def test_asking_a_run_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(RunError, match="Cannot write"):
        ask(Path(tmp_path / "gone"), "pause")
