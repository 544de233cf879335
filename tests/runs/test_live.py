"""The live picture and the videos of a run."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from PIL import Image

from vlacoach.errors import RunError
from vlacoach.runs.constants import LIVE_FILE, WATCHING_FILE
from vlacoach.runs.live import LiveView, keep_watching, read_live, stop_watching
from vlacoach.runs.videos import read_frames


def test_nothing_is_wanted_until_somebody_watches_and_not_after(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def wanted():
        clock[0] += 1.0
        return view.wanted()

    view = LiveView(tmp_path)
    assert not wanted()
    keep_watching(tmp_path)
    assert wanted()
    assert not view.wanted()  # A picture was wanted an instant ago.
    os.utime(tmp_path / WATCHING_FILE, (time.time() - 60, time.time() - 60))
    assert not wanted()
    os.utime(tmp_path / WATCHING_FILE, (time.time() + 3600, time.time() + 3600))
    assert not wanted()
    keep_watching(tmp_path)
    assert wanted()
    stop_watching(tmp_path)
    assert not wanted()
    stop_watching(tmp_path)


def test_a_picture_comes_back_as_it_was_with_its_facts(tmp_path):
    assert read_live(tmp_path) is None
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    LiveView(tmp_path).show(pixels[:, ::-1], {"task": 8, "update": 3})
    found = read_live(tmp_path)
    np.testing.assert_array_equal(found.pixels, pixels[:, ::-1])
    assert found.facts == {"task": 8, "update": 3}


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n", b"no picture at all"])
def test_a_broken_picture_is_an_error_that_names_it(tmp_path, data):
    (tmp_path / LIVE_FILE).write_bytes(data)
    with pytest.raises(RunError, match=r"live\.png"):
        read_live(tmp_path)


def test_a_picture_without_facts_has_none(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / LIVE_FILE)
    assert read_live(tmp_path).facts == {}


def test_a_folder_that_is_not_there_cannot_be_watched(tmp_path):
    with pytest.raises(RunError, match="Cannot write"):
        keep_watching(tmp_path / "gone")


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_videos_come_back_frame_by_frame(tmp_path, ending, monkeypatch):
    from vlacoach.agents import video

    if ending == "gif":
        monkeypatch.setattr(video, "find_spec", lambda name: None)
    frames = [np.full((32, 48, 3), level, np.uint8) for level in (0, 120, 240)]
    file = video.write_video(tmp_path / "one", frames)
    assert file.suffix == f".{ending}"
    found = read_frames(tmp_path, file.name)
    levels = [float(frame.mean()) for frame in found]
    assert found[0].shape == (32, 48, 3)
    # The last is held for a second; H.264 is not exact.
    np.testing.assert_allclose(levels[:3], [0, 120, 240], atol=6)
    assert len(found) >= 3


def test_names_that_lead_out_missing_and_broken_videos_are_errors(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"x")
    for name, words in (("../secret.mp4", "not in the run folder"), ("/etc/hostname", "not in"), ("a.mp4", "is gone")):
        with pytest.raises(RunError, match=words):
            read_frames(run, name)
    for name in ("b.mp4", "b.gif"):
        (run / name).write_bytes(b"garbage")
        with pytest.raises(RunError, match="broken"):
            read_frames(run, name)
