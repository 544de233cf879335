"""Writing LeRobot data sets of version 3.0; what LeRobot itself makes of them is in ``test_lerobot_peer.py``."""

import json
import resource

import numpy as np
import pytest

from vlacoach.data.hdf5 import Demonstration, DemonstrationError
from vlacoach.data.lerobot import LeRobotReader
from vlacoach.data.lerobot_stats import picture_histogram, picture_stats, vector_stats
from vlacoach.data.lerobot_writer import write_lerobot
from vlacoach.errors import ConfigError, RunError

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")

TEXTS = ("open the drawer", "push the plate", "open the drawer")


def make(index, length=4, size=32, **changes):
    rng = np.random.default_rng(index)
    actions = rng.uniform(-0.9, 0.9, (length, 7)).astype(np.float32)
    actions[0, 6] = -1
    images = np.full((length, size, size, 3), 40, dtype=np.uint8)
    images[:, : size // 2] += 20 * (np.arange(length, dtype=np.uint8) + length * index)[:, None, None, None]
    fields = {
        "task": TEXTS[index].replace(" ", "_"),
        "instruction": TEXTS[index],
        "index": 10 + index,
        "actions": actions,
        "labels": actions,
        "proprioception": rng.normal(size=(length, 8)).astype(np.float32),
        "images": {"agentview": images, "frontview": 255 - images},
        "success": index != 1,
    }
    return Demonstration(**{**fields, **changes})


@pytest.mark.parametrize("pictures", ["video", "image"])
@pytest.mark.parametrize("megabytes", [100, 0.00001])
def test_what_was_written_is_read(tmp_path, pictures, megabytes):
    episodes = [make(index, length) for index, length in enumerate((4, 3, 5))]
    written = write_lerobot(
        tmp_path / "new" / "set", iter(episodes), pictures=pictures, data_megabytes=megabytes, video_megabytes=megabytes
    )
    assert (written.episodes, written.frames, written.tasks) == (3, 12, {"open the drawer": 2, "push the plate": 1})
    files = len(list(written.path.rglob("data/*/*.parquet")))
    videos = len(list(written.path.rglob("videos/*/*/*.mp4")))
    expected = 3 if megabytes < 1 else 1
    assert (files, videos) == (expected, 2 * expected if pictures == "video" else 0)
    reader = LeRobotReader(written.path)
    assert (reader.indices("open_the_drawer"), reader.indices("push_the_plate")) == ([0, 2], [1])
    for number, episode in enumerate(episodes):
        read = reader.read(episode.task, number)
        np.testing.assert_array_equal(read.actions, episode.labels)
        np.testing.assert_array_equal(read.proprioception, episode.proprioception)
        assert (read.instruction, read.success) == (episode.instruction, episode.success)
        for camera, images in episode.images.items():
            error = np.abs(read.images[camera].astype(int) - images).mean(axis=(1, 2, 3))
            assert error.max() <= (2 if pictures == "video" else 0)


def test_actions_are_the_clean_labels(tmp_path):
    episode = make(0)
    episode.actions = np.clip(episode.labels + 0.1, -1, 1)
    read = LeRobotReader(write_lerobot(tmp_path / "set", [episode]).path).read("open_the_drawer", 0)
    np.testing.assert_array_equal(read.actions, episode.labels)


def test_meta_is_that_of_lerobots_own_sets(tmp_path):
    path = write_lerobot(tmp_path / "set", [make(0), make(1)], fps=10).path
    info = json.loads((path / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 10, {"train": "0:2"})
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 8, 2)
    features = info["features"]
    assert features["observation.images.image"]["dtype"] == "video"
    assert features["observation.images.image"]["info"]["video.fps"] == 10
    assert features["observation.images.frontview"]["shape"] == [32, 32, 3]
    assert features["action"]["shape"] == [7]
    table = pq.read_table(path / "meta" / "tasks.parquet")
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert table.to_pylist() == [
        {"task_index": 0, "task": "open the drawer"},
        {"task_index": 1, "task": "push the plate"},
    ]
    rows = pq.read_table(path / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 4), (4, 8)]
    assert rows[1]["videos/observation.images.image/from_timestamp"] == 0.4
    assert rows[1]["stats/frame_index/max"] == [3.0]
    data = pq.read_table(path / "data" / "chunk-000" / "file-000.parquet").to_pydict()
    assert data["next.success"] == [False] * 3 + [True] + [False] * 4
    assert data["next.done"] == ([False] * 3 + [True]) * 2
    np.testing.assert_allclose(data["timestamp"], [0, 0.1, 0.2, 0.3] * 2, atol=1e-7)


def test_statistics_in_closed_form():
    stats = vector_stats(np.array([[0, 10], [1, 10], [2, 10], [3, 10]], dtype=np.float32))
    assert (stats["min"], stats["max"], stats["mean"]) == ([0, 10], [3, 10], [1.5, 10])
    assert stats["std"] == pytest.approx([1.25**0.5, 0])
    assert (stats["q50"], stats["count"]) == ([1.5, 10], [4])
    images = np.zeros((2, 2, 5, 3), dtype=np.uint8)
    images[0, 0, 0], images[..., 2] = (51, 102, 0), 255
    stats = picture_stats(picture_histogram(images), 2)
    assert stats["count"] == [2]
    assert np.squeeze(stats["max"]) == pytest.approx([0.2, 0.4, 1])
    assert np.squeeze(stats["mean"]) == pytest.approx([0.01, 0.02, 1])
    assert np.squeeze(stats["std"]) == pytest.approx([0.2 * (0.05 * 0.95) ** 0.5, 0.4 * (0.05 * 0.95) ** 0.5, 0])
    assert np.squeeze(stats["q90"]) == pytest.approx([0, 0, 1])
    assert np.squeeze(stats["q99"]) == pytest.approx([0.2, 0.4, 1])
    assert np.shape(stats["q01"]) == (3, 1, 1)


def broken():
    yield make(0)
    raise DemonstrationError("The source is damaged.")


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "no episode to write"),
        ([make(0), make(1, size=16)], "shapes"),
        ([make(0), make(1, images={"agentview": make(1).images["agentview"]})], "shapes"),
        ([make(0, size=31)], "31 x 31 pixels; H.264 needs even sides"),
        ([make(0, labels=np.full((4, 7), np.nan, np.float32))], "'action' that are not finite"),
        ([make(0, proprioception=np.zeros((3, 8), np.float32))], "has 4 actions"),
        (broken(), "The source is damaged"),
    ],
)
def test_episodes_that_do_not_fit_are_named_and_nothing_is_left(tmp_path, episodes, message):
    with pytest.raises(DemonstrationError, match=message):
        write_lerobot(tmp_path / "set", episodes)
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_is_replaced_only_when_asked_and_other_folders_never(tmp_path):
    target = write_lerobot(tmp_path / "set", [make(0)]).path
    with pytest.raises(ConfigError, match="not empty"):
        write_lerobot(target, [make(0), make(1)])
    with pytest.raises(DemonstrationError):
        write_lerobot(target, broken(), force=True)
    assert len(LeRobotReader(target)) == 1
    write_lerobot(target, [make(0), make(1)], force=True)
    assert len(LeRobotReader(target)) == 2
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious").write_text("x")
    with pytest.raises(ConfigError, match="other things"):
        write_lerobot(tmp_path / "home", [make(0)], force=True)


def test_a_full_disk_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunError, match="Cannot write"):
            write_lerobot(tmp_path / "set", [make(0)], pictures="image")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
