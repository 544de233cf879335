"""``vlacoach demos convert``: from LIBERO's HDF5 files to LeRobot's folders, and back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vlacoach.data.hdf5 import Demonstration, DemonstrationReader, DemonstrationWriter, demonstration_file
from vlacoach.data.lerobot import LeRobotReader
from vlacoach.errors import ExitCode

pytest.importorskip("pyarrow")
pytest.importorskip("av")

TASKS = {"put_the_bowl_on_the_plate": "put the bowl on the plate", "push_the_plate_to_the_front_of_the_stove": ""}
BOWL, PUSH = TASKS


@pytest.fixture
def demos(tmp_path):
    """Two tasks of libero_goal, with two episodes each."""
    rng = np.random.default_rng(0)
    for task in TASKS:
        text = task.replace("_", " ")
        writer = DemonstrationWriter(demonstration_file(tmp_path / "demos", task), "libero_goal", task, text, 16)
        for index, length in ((0, 5), (3, 4)):
            actions = rng.uniform(-0.9, 0.9, (length, 7)).astype(np.float32)
            actions[0, 6] = -1
            images = {"agentview": rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)}
            state = rng.normal(size=(length, 8)).astype(np.float32)
            success = index == 0
            writer.write(Demonstration(task, text, index, actions, actions, state, images, success=success))
    return tmp_path / "demos"


def test_there_and_back_gives_the_same_episodes(invoke, demos, tmp_path):
    result = invoke("demos", "convert", "demos", "--out", "lerobot", "--pictures", "image", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    counts = {task.replace("_", " "): 2 for task in TASKS}
    assert document == {"path": "lerobot", "layout": "lerobot", "episodes": counts}
    back = invoke("demos", "convert", "lerobot", "--out", "back", "--render-profile", "coarse")
    assert back.exit_code == 0, back.stderr
    assert back.stdout.splitlines()[-1] == "hdf5: back"
    before, after = DemonstrationReader(demos), DemonstrationReader(tmp_path / "back")
    assert after.tasks == before.tasks
    assert set(after.render_profiles.values()) == {"coarse"}
    for task in TASKS:
        assert after.indices(task) == [0, 1]
        for old, new in zip((0, 3), (0, 1), strict=True):
            one, other = before.read(task, old), after.read(task, new)
            for name in ("actions", "labels", "proprioception"):
                np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
            np.testing.assert_array_equal(other.images["agentview"], one.images["agentview"])
            assert (other.instruction, other.success) == (one.instruction, one.success) == (one.instruction, old == 0)


def test_some_tasks_only(invoke, demos, tmp_path):
    assert invoke("demos", "convert", "demos", "--out", "lerobot", "--tasks", "8").exit_code == 0
    assert LeRobotReader(tmp_path / "lerobot").tasks == [BOWL]
    invoke("demos", "convert", "demos", "--out", "both")
    assert invoke("demos", "convert", "both", "--out", "back", "--tasks", "5").exit_code == 0
    assert [path.name for path in (tmp_path / "back").iterdir()] == [f"{PUSH}_demo.hdf5"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["demos", "--out", "new", "--tasks", "0"], ExitCode.USAGE, "no demonstrations of task 'open_the_middle"),
        (["missing", "--out", "new"], ExitCode.FAILURE, "There is no demonstration file missing"),
        (["lerobot", "--out", "new", "--suite", "libero_object"], ExitCode.FAILURE, "No one task of libero_object"),
        (["demos", "--out", "demos"], ExitCode.USAGE, "not empty"),
        (["demos", "--out", "demos", "--force"], ExitCode.USAGE, "other things"),
    ],
)
def test_what_cannot_be_done_is_said_and_writes_nothing(invoke, demos, tmp_path, args, code, said):
    assert invoke("demos", "convert", "demos", "--out", "lerobot").exit_code == 0
    before = sorted(tmp_path.rglob("*"))
    result = invoke("demos", "convert", *args)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_version_2_says_how_to_convert_it(invoke, tmp_path):
    (tmp_path / "old" / "meta").mkdir(parents=True)
    (tmp_path / "old" / "meta" / "info.json").write_text('{"codebase_version": "v2.1"}')
    result = invoke("demos", "convert", "old", "--out", "new")
    assert result.exit_code == ExitCode.FAILURE
    assert "convert_dataset_v21_to_v30" in result.stderr
