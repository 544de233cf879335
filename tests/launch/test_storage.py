"""Run folders in a storage: what arrives, in which order, and what comes back out of it."""

from __future__ import annotations

import json

import pytest

from vlacoach.errors import ConfigError
from vlacoach.launch.mirror import RunMirror
from vlacoach.launch.storage import Storage
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "node", "grpo-a1b2c3", TrainConfig()) as folder:
        save(folder, 0)
        folder.log_metrics(1, {"rollout/success": 0.5})
        (folder.path / "videos").mkdir()
        (folder.path / "videos" / "before.mp4").write_bytes(b"video")
        yield folder


def save(folder, step, score=0.1):
    def write(path):
        (path / "adapter").mkdir()
        (path / "adapter" / "weights").write_text(f"w{step}")

    folder.checkpoints.save(step, write, score)


@pytest.fixture(params=["disk", "fsspec"])
def storage(request, tmp_path):
    return Storage(str(tmp_path / "storage") if request.param == "disk" else f"memory://{tmp_path}/storage")


def stored(storage, folder):
    return {entry.path.removeprefix(f"{folder}/") for entry in storage.listdir(folder, recursive=True) if entry.type}


def test_a_run_goes_there_and_back_whole(run, storage, tmp_path):
    assert storage.push(run.path) > 0
    assert b"".join(storage.read_file(f"{run.path.name}/checkpoints/000000/adapter/weights")) == b"w0"
    mirror = RunMirror(storage, tmp_path / "runs", "grpo-a1b2c3")
    mirror.sync(last=True)
    copy = RunFolder.open("latest", tmp_path / "runs")
    assert copy.metrics() == run.metrics()
    assert copy.config() == run.config()
    assert copy.checkpoints.last().name == "000000"
    assert copy.checkpoints.best() is None
    copy.checkpoints.relink()
    assert copy.checkpoints.best().name == "000000"
    assert (copy.checkpoints.folder / "last").resolve().name == "000000"


def test_only_what_changed_is_stored_again(run, storage):
    first = storage.push(run.path)
    assert first > 5
    assert storage.push(run.path) == 0
    run.log_metrics(2, {"rollout/success": 0.7})
    assert storage.push(run.path) == 1
    line = b"".join(storage.read_file(f"{run.path.name}/metrics.jsonl")).splitlines()[-1]
    assert json.loads(line)["rollout/success"] == 0.7


def test_locks_links_and_what_is_being_written_stay_behind(run, storage):
    (run.path / "control.json").write_text("{}")
    (run.path / ".heartbeat.x").write_text("half")
    (run.path / "checkpoints" / ".000001.77").mkdir()
    (run.path / "checkpoints" / ".000001.77" / "weights").write_text("half")
    storage.push(run.path)
    assert stored(storage, run.path.name) == {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "videos/before.mp4",
        "checkpoints/000000/adapter/weights",
        "checkpoints/000000/manifest.json",
    }


def test_a_checkpoint_arrives_after_its_lines_and_with_its_manifest_last(run, tmp_path):
    order = []

    class Slow(Storage):
        def _store(self, file, path):
            order.append(path.partition("/")[2])
            if path.endswith("metrics.jsonl"):
                save(run, 2)  # While lines are stored: comes with the next look.
            return super()._store(file, path)

    Slow(str(tmp_path / "storage")).push(run.path)
    assert order.index("metrics.jsonl") < order.index("checkpoints/000000/adapter/weights")
    assert order[-2:] == ["checkpoints/000000/manifest.json", "run.json"]
    assert not any("000002" in path for path in order)


def test_checkpoints_that_are_gone_are_gone_there_too(run, storage):
    storage.push(run.path)
    assert storage.newest_checkpoint(run.path.name) == 0
    for step, score in ((1, 0.2), (2, 0.3), (3, 0.4)):
        save(run, step, score)
    storage.push(run.path)
    assert {path.split("/")[1] for path in stored(storage, run.path.name) if "weights" in path} == {"000002", "000003"}
    assert storage.newest_checkpoint(run.path.name) == 3


def test_videos_may_be_left_out_of_what_is_listed(run, tmp_path):
    uri = str(tmp_path / "storage")
    Storage(uri).push(run.path)
    assert "videos/before.mp4" in stored(Storage(uri), run.path.name)
    assert not any("videos" in path for path in stored(Storage(uri, without=("videos",)), run.path.name))


def test_a_run_that_is_not_there(storage):
    assert list(storage.listdir("/")) == []
    assert storage.newest_checkpoint("none") == -1
    storage.remove("none")
    with pytest.raises(FileNotFoundError):
        list(storage.read_file("none/run.json"))


def test_kinds_of_storage_that_do_not_exist():
    with pytest.raises(ConfigError, match="--storage nonsense://bucket cannot be used"):
        Storage("nonsense://bucket")
