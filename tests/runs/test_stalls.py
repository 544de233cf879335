"""A run that gives no sign of life is noticed, and one that was only put to sleep is not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from vlacoach.runs.folder import RunFolder
from vlacoach.runs.reporting import NullReporter
from vlacoach.runs.stalls import Idleness, StallWatch


def test_idleness_is_the_time_since_the_last_sign_of_life():
    idleness = Idleness(longest=2.0)
    looks = [(10.0, 10.5), (10.0, 11.5), (10.0, 12.5), (13.0, 13.5), (13.0, 14.5)]
    assert [idleness.look(beat, now) for beat, now in looks] == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_time_in_which_the_watch_slept_too_does_not_count():
    idleness = Idleness(longest=2.0)
    assert [idleness.look(5.0, now) for now in (5.0, 6.0, 3600.0, 3601.0)] == [0.0, 1.0, 3.0, 4.0]


@pytest.fixture
def folder(tmp_path: Path):
    with RunFolder.create(tmp_path, "watched") as made:
        yield made


def wait_for(what, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)


def hang(until: threading.Event) -> None:
    until.wait(30)


def test_a_stall_is_told_once_with_its_stage_and_its_place_until_life_goes_on(folder: RunFolder):
    said: list[str] = []

    class Listener(NullReporter):
        def message(self, text: str, level: str = "info") -> None:
            said.append(text)
            enough.set()

    enough = threading.Event()
    with StallWatch(folder, Listener(), 0.2):
        folder.progress("rollout", 3, 10)
        hang(enough)
        time.sleep(0.5)  # Still no sign of life: nothing more to say.
        (alert,) = folder.alerts()
        assert (alert["kind"], alert["level"], alert["stage"]) == ("stall", "warning", "rollout")
        assert "No sign of life" in alert["message"]
        assert "in stage rollout, in threading.py" in alert["message"]
        assert any(call.startswith("test_stalls.py") and call.endswith(" hang") for call in alert["stack"])
        assert said == [f"{alert['message']} {alert['advice']}"]
        folder.beat(force=True)
        wait_for(lambda: len(folder.alerts()) == 2)
    assert len(folder.alerts()) == 2


def test_signs_of_life_and_no_limit_keep_it_silent(folder: RunFolder):
    with StallWatch(folder, NullReporter(), 1.0):
        for _ in range(8):
            folder.beat(force=True)
            time.sleep(0.2)
    with StallWatch(folder, NullReporter(), None):
        time.sleep(0.1)
    assert folder.alerts() == []


def test_a_folder_that_is_gone_ends_the_watch_and_not_the_training(tmp_path: Path):
    folder = RunFolder(tmp_path / "gone")
    with StallWatch(folder, NullReporter(), 0.05):
        wait_for(lambda: not any(thread.name == "stall-watch" for thread in threading.enumerate()))
    assert not any(thread.name == "stall-watch" for thread in threading.enumerate())
