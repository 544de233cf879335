"""Training that is watched: what it records, what it does when it is asked, and that its numbers stay the same."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_training import Watcher, adapter, lines, run, settings
from toy_envs import ToyEnvs, toy_policy

from vlacoach.agents import training
from vlacoach.agents.prompts import Prompt
from vlacoach.agents.recording import LivePictures
from vlacoach.runs import constants as names
from vlacoach.runs.control import ask
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.live import keep_watching, read_live
from vlacoach.runs.overview import overview
from vlacoach.runs.system import SystemSampler
from vlacoach.runs.videos import read_frames
from vlacoach.runs.watching import RunWatcher


@pytest.fixture(autouse=True)
def worlds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ToyEnvs]]:
    made: list[ToyEnvs] = []
    monkeypatch.setattr(training, "make_envs", lambda config, policy: made.append(ToyEnvs(4)) or made[-1])
    yield made
    assert all(envs.closed for envs in made)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_policy().save(tmp_path_factory.mktemp("policy") / "toy")


def test_episodes_of_an_update_are_recorded_with_their_progress(base: Path, tmp_path: Path):
    config = settings(base, updates=2, reward={"name": "siglip-t"}, logging={"episodes": 2})
    result = run(tmp_path, config)
    folder = RunFolder(result.run)
    recorded = [episode for episode in folder.episodes() if "video" in episode]
    assert [episode["step"] for episode in recorded] == [1, 1, 2, 2]
    # The first episode of groups that are spread over the prompts.
    size = config.grpo.group_size
    assert [episode["slot"] % size for episode in recorded] == [0] * 4
    for episode in recorded:
        frames = read_frames(folder.path, episode["video"])
        assert frames[0].shape[2] == 3
        progress = episode.get("progress")
        if progress is not None:
            assert progress[0] == 0.0
            assert max(progress) <= 1.0
    assert any(episode.get("progress") for episode in recorded)
    # Distances are those of failures that were graded.
    graded = [episode for episode in folder.episodes() if "distance" in episode]
    assert graded
    assert not any(episode["success"] for episode in graded)


def test_recording_watching_and_pausing_change_no_number(base: Path, tmp_path: Path):
    plain = run(tmp_path / "plain", settings(base, updates=3, logging={"episodes": 0}))

    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            for folder in list_runs(tmp_path / "watched"):
                keep_watching(folder)
                ask(folder, "pause")
                time.sleep(0.05)
                ask(folder, "resume")
            time.sleep(0.2)

    watcher = threading.Thread(target=disturb)
    watcher.start()
    try:
        watched = run(tmp_path / "watched", settings(base, updates=3, logging={"episodes": 4}))
    finally:
        stop.set()
        watcher.join()
    assert lines(watched.run) == lines(plain.run)
    assert adapter(watched) == adapter(plain)
    assert any(event["event"] == "control" for event in RunFolder(watched.run).events())


def test_a_checkpoint_and_an_evaluation_are_made_when_asked_for(base: Path, tmp_path: Path):
    config = settings(base, updates=4)
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": 100})})

    def act(stages: list[str]) -> None:
        if stages.count("rollout") == 2 and stages[-1] == "rollout":
            (folder,) = list_runs(tmp_path)
            ask(folder, "checkpoint")
            ask(folder, "evaluate")

    watcher = Watcher(act)
    result = run(tmp_path, config, watcher)
    evaluated = [line["step"] for line in lines(result.run) if "eval/success" in line]
    assert evaluated == [0, 2, 4]
    assert 2 in [int(path.name) for path in RunFolder(result.run).checkpoints.entries()]
    assert "Asked for by a watcher: checkpoint" in watcher.messages


def test_a_run_that_is_asked_to_stop_ends_after_its_update_and_can_be_resumed(base: Path, tmp_path: Path):
    def act(stages: list[str]) -> None:
        if stages.count("rollout") == 2 and stages[-1] == "rollout":
            ask(list_runs(tmp_path)[0], "stop")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings(base, updates=6), Watcher(act))
    folder = RunFolder.open("latest", tmp_path)
    assert folder.status() == names.STATUS_INTERRUPTED
    assert int(folder.checkpoints.last().name) == 2


def test_the_folder_says_what_is_being_done_and_how_far_it_is(base: Path, tmp_path: Path):
    seen: dict[str, tuple[int, int]] = {}

    class Reader(Watcher):
        def advance(self, amount: int = 1, **fields: object) -> None:
            beat = RunFolder(list_runs(tmp_path)[0]).heartbeat()
            seen[beat["stage"]] = (beat["done"], beat["total"])

    result = run(tmp_path, settings(base, updates=1), Reader())
    # A heartbeat is at most half a second old, so that the end of a quick stage may be missing.
    assert {"rollout", "update", "evaluation (held-out states)", "evaluation (train states)"} <= seen.keys()
    assert all(total and 0 <= done <= total for done, total in seen.values())
    watcher = RunWatcher(result.run)
    watcher.poll()
    view = overview(watcher)
    assert view.update == view.updates == 1
    assert set(view.shares) == {"rollout", "reward", "filter", "advantage", "update"}
    assert watcher.info["tasks"].keys() == {"0", "1"}
    assert any("success on held-out states" in line for line in watcher.log)


def test_one_world_is_followed_to_the_end_of_its_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with RunFolder.create(tmp_path, "live") as folder:
        live = LivePictures(folder)

        def take(number: int, level: int) -> None:
            clock[0] += 0.5
            picture = np.full((4, 6, 3), level, np.uint8)
            picture[:, 0] = 255
            live.take(number, Prompt(8, 3), picture, {"update": 2})

        take(0, 10)
        assert read_live(folder.path) is None
        keep_watching(folder.path)
        take(5, 20)
        assert read_live(folder.path) is None  # Number 0 is the one that is followed.
        take(0, 30)
        shown = read_live(folder.path)
        assert shown.facts == {"task": 8, "init_state": 3, "episode": 0, "update": 2}
        assert shown.pixels[0, 0, 0] == 30
        assert shown.pixels[0, -1, 0] == 255  # As people see it.
        clock[0] += 2.0
        take(5, 40)
        assert read_live(folder.path).facts["episode"] == 5


def test_memory_and_processors_are_sampled(tmp_path: Path):
    with RunFolder.create(tmp_path, "sampled") as folder:
        # Work of a process of its own counts too; the sampler's thread would wait for this one's interpreter lock.
        worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            with SystemSampler(folder.path, lambda: 123, seconds=0.05):
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline and len(folder.reader(names.SYSTEM_FILE).read()) < 5:
                    time.sleep(0.1)
        finally:
            worker.kill()
            worker.wait()
        samples = folder.reader(names.SYSTEM_FILE).read()
        assert samples[0][names.SYSTEM_VRAM] == 123
        assert samples[0][names.SYSTEM_RSS] > 10e6
        assert samples[0][names.SYSTEM_PROCESSES] >= 2
        assert any(sample[names.SYSTEM_CPU] > 0 for sample in samples)


def test_a_sampler_that_cannot_write_says_so_and_the_training_goes_on(tmp_path: Path):
    with SystemSampler(tmp_path / "gone", seconds=0.01) as sampler:
        time.sleep(0.2)
    assert sampler.problem is not None
    assert "system.jsonl" in sampler.problem.message
