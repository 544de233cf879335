"""Videos of episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlacoach.agents import video
from vlacoach.agents.prompts import Prompt
from vlacoach.agents.video import FRAMES_PER_SECOND, VideoRecorder, side_by_side, write_video
from vlacoach.errors import RunError


def gray(level: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def test_the_first_episode_of_each_task_is_recorded_as_people_see_it(tmp_path: Path):
    recorder = VideoRecorder(tmp_path, "before_")
    show = recorder.watch([Prompt(4, 1), Prompt(4, 2), Prompt(7, 1)], {4: "open", 7: "close"})
    left_bright = gray(0)
    left_bright[:, :24] = 200
    for number in (0, 1, 2, 0):
        show(number, left_bright)
    frames = recorder.frames()
    assert {name: len(shown) for name, shown in frames.items()} == {"open": 2, "close": 1}
    np.testing.assert_array_equal(frames["open"][0], left_bright[:, ::-1])
    assert [file.stem for file in recorder.write()] == ["before_open", "before_close"]


def test_a_recorder_keeps_pictures_and_not_views_of_them(tmp_path: Path):
    recorder = VideoRecorder(tmp_path)
    show = recorder.watch([Prompt(0, 0)], {0: "task"})
    picture = gray(10)
    show(0, picture)
    picture[:] = 99
    assert recorder.frames()["task"][0].max() == 10


def test_tasks_without_pictures_write_nothing(tmp_path: Path):
    recorder = VideoRecorder(tmp_path / "videos")
    recorder.watch([Prompt(0, 0)], {0: "task"})
    assert recorder.write() == []
    assert not (tmp_path / "videos").exists()


def test_mp4_holds_every_frame_and_the_last_for_a_second(tmp_path: Path):
    av = pytest.importorskip("av")
    levels = [0, 80, 160, 240]
    file = write_video(tmp_path / "new" / "episode.v1", [gray(level) for level in levels])
    assert file == tmp_path / "new" / "episode.v1.mp4"
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == FRAMES_PER_SECOND
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * (len(levels) + FRAMES_PER_SECOND)
    means = [frame.mean() for frame in frames]
    assert means[: len(levels)] == pytest.approx(levels, abs=6)
    assert means[len(levels) :] == pytest.approx([levels[-1]] * FRAMES_PER_SECOND, abs=6)


def test_gif_where_there_is_no_av(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    file = write_video(tmp_path / "episode", [gray(level) for level in (0, 120, 240)])
    assert file == tmp_path / "episode.gif"
    with Image.open(file) as picture:
        assert picture.size == (48, 32)
        seconds = 0.0
        levels = []
        for index in range(picture.n_frames):
            picture.seek(index)
            seconds += picture.info["duration"] / 1000
            levels.append(float(np.asarray(picture.convert("L")).mean()))
    assert seconds == pytest.approx((3 + FRAMES_PER_SECOND) / FRAMES_PER_SECOND)
    assert levels[:3] == pytest.approx([0, 120, 240], abs=2)


def test_a_video_that_cannot_be_written_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        write_video(tmp_path / "file" / "episode", [gray(0)])


def test_side_by_side_holds_the_shorter_at_its_end():
    before = {"a": [gray(1), gray(2), gray(3)], "b": [gray(4)], "c": [gray(0)], "d": []}
    after = {"a": [gray(11)], "b": [gray(14), gray(15)], "d": [gray(1)]}
    frames = side_by_side(before, after)
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 3
    corners = [[int(frame[y, x, 0]) for y in (0, 63) for x in (0, 95)] for frame in frames]
    assert corners == [[1, 11, 4, 14], [2, 11, 4, 15], [3, 11, 4, 15]]
    assert side_by_side({}, after) == []
