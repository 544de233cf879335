"""LeRobot reads what we write, and we read what LeRobot writes.

LeRobot's and our requirements exclude each other (``huggingface_hub``), so it may live in an environment of its own,
whose interpreter ``LEROBOT_PYTHON`` names.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vlacoach.data.hdf5 import Demonstration
from vlacoach.data.lerobot import LeRobotReader
from vlacoach.data.lerobot_writer import write_lerobot

pytest.importorskip("pyarrow")
pytest.importorskip("av")

PEER = Path(__file__).parent / "lerobot_peer.py"
TEXTS, LENGTHS = ("open the drawer", "put the bowl on the plate", "open the drawer"), (7, 5, 6)
FRONT, WRIST = "observation.images.image", "observation.images.image2"


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    python = os.environ.get("LEROBOT_PYTHON", sys.executable)
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    if subprocess.run([python, "-c", "import lerobot"], capture_output=True, env=environment).returncode:
        pytest.skip("lerobot is not installed (LEROBOT_PYTHON may name an interpreter that has it)")

    def run(*arguments):
        command = [python, str(PEER), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    return run


def demonstrations():
    rng = np.random.default_rng(0)
    for index, (text, length) in enumerate(zip(TEXTS, LENGTHS, strict=True)):
        action = rng.uniform(-0.9, 0.9, (length, 7)).astype(np.float32)
        action[:2, 6] = -1
        images = np.empty((length, 64, 64, 3), dtype=np.uint8)
        images[:] = (10 + 13 * (np.arange(length) + sum(LENGTHS[:index])))[:, None, None, None]
        images[:, :32, :, 0] = 0
        cameras = {"agentview": images, "robot0_eye_in_hand": 255 - images}
        state = rng.normal(size=(length, 8)).astype(np.float32)
        yield Demonstration(text.replace(" ", "_"), text, index, action, action, state, cameras, success=index != 1)


@pytest.mark.parametrize(("pictures", "allowed"), [("video", 4.0), ("image", 0.0)])
def test_lerobot_reads_what_we_write(peer, tmp_path, pictures, allowed):
    episodes = list(demonstrations())
    # A file of its own for each episode, so that finding the next file is tested too.
    written = write_lerobot(
        tmp_path / "ours", episodes, pictures=pictures, data_megabytes=0.0001, video_megabytes=0.0001
    )
    assert len(list((tmp_path / "ours" / "data").rglob("*.parquet"))) == 3
    peer("read", written.path, tmp_path / "read.npz")
    read = np.load(tmp_path / "read.npz")
    facts = json.loads(str(read["facts"]))
    assert facts["task"] == [text for text, length in zip(TEXTS, LENGTHS, strict=True) for _ in range(length)]
    assert (facts["tasks"], facts["episodes"], facts["fps"]) == (list(TEXTS[:2]), 3, 20)
    assert facts["spans"] == [[0, 7], [7, 12], [12, 18]]
    assert facts["videos"] == ([FRONT, WRIST] if pictures == "video" else [])
    row = 0
    for number, episode in enumerate(episodes):
        for step in range(episode.length):
            window = np.minimum(np.arange(step, step + 4), episode.length - 1)
            np.testing.assert_array_equal(read["action"][row], episode.actions[window])
            np.testing.assert_array_equal(read["action_is_pad"][row], np.arange(step, step + 4) >= episode.length)
            np.testing.assert_array_equal(read["observation.state"][row], episode.proprioception[step])
            last = step == episode.length - 1
            assert (read["next.done"][row], read["next.success"][row]) == (last, last and number != 1)
            assert read["next.reward"][row] == float(last and number != 1)
            assert read["timestamp"][row] == np.float32(step / 20)
            numbers = [int(read[key][row]) for key in ("index", "episode_index", "frame_index", "task_index")]
            assert numbers == [row, number, step, number % 2]
            seen = [read[FRONT][row, 1], read[FRONT][row, 0], read[WRIST][row]]
            front, wrist = episode.images.values()
            for picture, expected in zip(seen, (front[step], front[max(step - 1, 0)], wrist[step]), strict=True):
                error = np.abs(picture.transpose(1, 2, 0) * 255 - expected).mean()
                assert error <= allowed, f"frame {row} is off by {error}; neighbors differ by 13"
            row += 1
    every = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_allclose(read["stats/action/mean"], every.mean(axis=0), atol=1e-6)
    assert read[f"stats/{FRONT}/q99"].shape == (3, 1, 1)


def test_we_read_what_lerobot_writes(peer, tmp_path):
    folder = tmp_path / "theirs"
    peer("make", folder)
    made = np.load(tmp_path / "theirs.npz")
    reader = LeRobotReader(folder)
    assert reader.tasks == ["open_the_drawer", "put_the_bowl_on_the_plate"]
    assert (reader.indices("open_the_drawer"), len(reader)) == ([0, 2], 3)
    for episode in reader:
        rows = made["episode"] == episode.index
        np.testing.assert_array_equal(episode.actions, made["action"][rows])
        np.testing.assert_array_equal(episode.proprioception, made["state"][rows])
        np.testing.assert_array_equal(episode.images["robot0_eye_in_hand"], made["wrist"][rows])
        error = np.abs(episode.images["agentview"].astype(int) - made["front"][rows]).mean(axis=(1, 2, 3))
        assert error.max() < 5, "neighboring frames differ by 13"
        assert episode.success == (episode.index != 1)
