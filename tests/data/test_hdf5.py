"""Demonstration files: LIBERO's layout, ours and theirs."""

import json
import logging

import h5py
import numpy as np
import pytest

from vlacoach.data.hdf5 import Demonstration, DemonstrationError, DemonstrationReader, DemonstrationWriter

TASK = "put_the_bowl_on_the_plate"


def episode(index, length=5, seed=0, **changes):
    rng = np.random.default_rng((seed, index))
    labels = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    fields = {
        "task": TASK,
        "instruction": "put the bowl on the plate",
        "index": index,
        "actions": np.clip(labels + 0.1, -1, 1),
        "labels": labels,
        "proprioception": rng.uniform(-1, 1, (length, 8)).astype(np.float32),
        "images": {
            camera: rng.integers(0, 256, (length, 6, 8, 3), dtype=np.uint8)
            for camera in ("agentview", "robot0_eye_in_hand")
        },
        "states": rng.normal(size=(length, 11)),
        "joints": rng.normal(size=(length, 7)),
        "init_state": 3 + index,
        "object_names": ("plate_1", "bowl_1"),
        "object_positions": rng.normal(size=(length, 2, 3)).astype(np.float32),
    }
    return Demonstration(**{**fields, **changes})


def writer(folder):
    return DemonstrationWriter(
        folder / f"{TASK}_demo.hdf5", "libero_goal", TASK, "put the bowl on the plate", camera_size=8
    )


def test_a_file_says_how_its_pictures_were_rendered_and_keeps_to_it(tmp_path):
    file = tmp_path / f"{TASK}_demo.hdf5"
    arguments = (file, "libero_goal", TASK, "put the bowl on the plate", 8)
    DemonstrationWriter(*arguments, "coarse").write(episode(0))
    assert DemonstrationReader(tmp_path).render_profiles == {TASK: "coarse"}
    with pytest.raises(DemonstrationError, match="rendered as 'coarse', not as 'fast'"):
        DemonstrationWriter(*arguments, "fast")
    assert DemonstrationReader(tmp_path).indices(TASK) == [0]
    with h5py.File(file, "a") as content:  # as LIBERO's published files
        del content["data"].attrs["render_profile"]
    assert DemonstrationReader(tmp_path).render_profiles == {TASK: "reference"}


def test_an_episode_comes_back_as_it_was_written(tmp_path):
    written = episode(0)
    writer(tmp_path).write(written)
    read = DemonstrationReader(tmp_path).read(TASK, 0)
    for name in ("actions", "labels", "proprioception", "states", "joints", "object_positions"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name), err_msg=name)
    assert read.images.keys() == written.images.keys()
    for camera, images in written.images.items():
        np.testing.assert_array_equal(read.images[camera], images)
        assert read.images[camera].dtype == np.uint8
    assert (read.instruction, read.init_state, read.object_names) == (
        "put the bowl on the plate",
        3,
        ("plate_1", "bowl_1"),
    )


def test_files_have_liberos_layout_and_its_upside_down_pictures(tmp_path):
    written = episode(0)
    writer(tmp_path).write(written, attributes={"model_file": "<mujoco/>"})
    with h5py.File(tmp_path / f"{TASK}_demo.hdf5") as content:
        data, group = content["data"], content["data/demo_0"]
        assert {"actions", "states", "rewards", "dones", "robot_states", "obs"} <= set(group)
        observations = group["obs"]
        expected = {"agentview_rgb": (5, 6, 8, 3), "ee_pos": (5, 3), "ee_ori": (5, 3), "ee_states": (5, 6)}
        expected |= {"gripper_states": (5, 2), "joint_states": (5, 7), "eye_in_hand_rgb": (5, 6, 8, 3)}
        assert {key: observations[key].shape for key in expected} == expected
        np.testing.assert_array_equal(observations["agentview_rgb"], written.images["agentview"][:, ::-1, ::-1])
        np.testing.assert_array_equal(group["rewards"], [0, 0, 0, 0, 1])
        np.testing.assert_array_equal(group["actions"], written.actions)
        assert group["robot_states"].shape == (5, 9)
        np.testing.assert_allclose(np.linalg.norm(group["robot_states"][:, 5:], axis=1), 1.0)
        np.testing.assert_array_equal(group.attrs["init_state"], written.states[0])
        assert group.attrs["num_samples"] == 5
        assert group.attrs["model_file"] == "<mujoco/>"
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "put the bowl on the plate"
        assert json.loads(data.attrs["env_args"])["bddl_file"] == data.attrs["bddl_file_name"]
        assert (data.attrs["num_demos"], data.attrs["total"]) == (1, 5)


def test_writing_resumes_where_it_stopped(tmp_path):
    first = writer(tmp_path)
    first.write(episode(0))
    first.write(episode(2))
    again = writer(tmp_path)
    assert again.indices == {0, 2}
    again.write(episode(1, length=3))
    reader = DemonstrationReader(tmp_path)
    assert reader.indices(TASK) == [0, 1, 2]
    assert [demonstration.length for demonstration in reader] == [5, 3, 5]
    assert len(reader) == 3
    with pytest.raises(DemonstrationError, match="already has demo_1"):
        again.write(episode(1))


def break_mark(group):
    group.attrs["complete"] = False


def break_length(group):
    del group["rewards"]
    group["rewards"] = np.zeros(2)


def break_attribute(group):
    del group.attrs["num_samples"]


@pytest.mark.parametrize("damage", [break_mark, break_length, break_attribute])
def test_an_episode_that_was_cut_off_is_dropped_with_a_message(tmp_path, caplog, damage):
    first = writer(tmp_path)
    first.write(episode(0))
    first.write(episode(1))
    with h5py.File(first.file, "a") as content:
        damage(content["data/demo_1"])
    with caplog.at_level(logging.WARNING):
        assert DemonstrationReader(tmp_path).indices(TASK) == [0]
        assert "Left out demo_1" in caplog.text
        again = writer(tmp_path)
    assert "Dropped demo_1" in caplog.text
    assert again.indices == {0}
    again.write(episode(1))
    np.testing.assert_array_equal(DemonstrationReader(tmp_path).read(TASK, 1).labels, episode(1).labels)


def test_a_truncated_file_is_an_error_that_says_what_to_do(tmp_path):
    first = writer(tmp_path)
    first.write(episode(0))
    content = first.file.read_bytes()
    first.file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DemonstrationError, match="cannot be read") as caught:
        DemonstrationReader(tmp_path)
    assert "cut off" in caught.value.hint
    with pytest.raises(DemonstrationError, match="cannot be read"):
        writer(tmp_path)
    assert first.file.read_bytes() == content[: len(content) // 2]


def test_liberos_published_layout_is_read(tmp_path):
    """Published files have neither our marks nor clean labels, and conversions drop some observations."""
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    actions = np.linspace(-1, 1, 14).reshape(2, 7)
    with h5py.File(tmp_path / "KITCHEN_SCENE1_open_it_demo.hdf5", "w") as content:
        data = content.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": ['"', "Open it", '"']})
        for index in (10, 2):
            group = data.create_group(f"demo_{index}")
            group.attrs["num_samples"] = 2
            group["actions"] = actions
            observations = group.create_group("obs")
            observations["agentview_rgb"] = images
            observations["ee_pos"], observations["ee_ori"] = np.ones((2, 3)), np.full((2, 3), 2.0)
            observations["gripper_states"] = np.full((2, 2), 3.0)
    reader = DemonstrationReader(tmp_path, cameras=["agentview"])
    assert reader.indices("KITCHEN_SCENE1_open_it") == [2, 10]
    read = reader.read("KITCHEN_SCENE1_open_it", 10)
    assert read.instruction == "open it"
    np.testing.assert_allclose(read.labels, actions, rtol=1e-6)
    np.testing.assert_array_equal(read.images["agentview"], images[:, ::-1, ::-1])
    np.testing.assert_array_equal(read.proprioception, [[1, 1, 1, 2, 2, 2, 3, 3]] * 2)
    assert (read.states, read.joints, read.init_state, read.object_positions) == (None, None, None, None)
    with pytest.raises(DemonstrationError, match="no pictures of camera 'robot0_eye_in_hand'"):
        DemonstrationReader(tmp_path, cameras=["robot0_eye_in_hand"]).read("KITCHEN_SCENE1_open_it", 2)


def test_a_rollout_that_failed_says_so(tmp_path):
    first = writer(tmp_path)
    first.write(episode(0, success=False))
    first.write(episode(1))
    reader = DemonstrationReader(tmp_path)
    assert [demonstration.success for demonstration in reader] == [False, True]
    with h5py.File(first.file) as content:
        np.testing.assert_array_equal(content["data/demo_0/rewards"], [0, 0, 0, 0, 0])
        np.testing.assert_array_equal(content["data/demo_0/dones"], [0, 0, 0, 0, 1])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", np.zeros((5, 14)), r"has actions \(5, 14\), not \(T, 7\)"),
        ("obs/gripper_states", np.zeros((5, 1)), "of 7 numbers, not 6 \\+ 2"),
        ("obs/gripper_states", None, "holds no finger positions"),
        ("obs/ee_states", None, "holds no hand poses"),
    ],
)
def test_arrays_that_are_not_liberos_are_named(tmp_path, key, value, message):
    first = writer(tmp_path)
    first.write(episode(0))
    with h5py.File(first.file, "a") as content:
        group = content["data/demo_0"]
        del group[key]
        if value is not None:
            group[key] = value
        elif key == "obs/ee_states":
            del group["obs/ee_pos"]
    with pytest.raises(DemonstrationError, match=message):
        DemonstrationReader(tmp_path).read(TASK, 0)


def test_an_episode_that_is_damaged_within_is_an_error(tmp_path):
    first = writer(tmp_path)
    first.write(episode(0, images={"agentview": np.zeros((5, 16, 16, 3), dtype=np.uint8)}))
    with h5py.File(first.file) as content:
        chunk = content["data/demo_0/obs/agentview_rgb"].id.get_chunk_info(2)
    data = bytearray(first.file.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    first.file.write_bytes(data)
    with pytest.raises(DemonstrationError, match="is damaged"):
        DemonstrationReader(tmp_path).read(TASK, 0)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(DemonstrationError, match="no demonstrations"):
        DemonstrationReader(tmp_path)
    with pytest.raises(DemonstrationError, match="There is no demonstration file"):
        DemonstrationReader(tmp_path / "absent_demo.hdf5")
    h5py.File(tmp_path / "other_demo.hdf5", "w").close()
    with pytest.raises(DemonstrationError, match="no group 'data'"):
        DemonstrationReader(tmp_path)
    (tmp_path / "other_demo.hdf5").unlink()
    writer(tmp_path).write(episode(0))
    with pytest.raises(DemonstrationError, match="no demo_7"):
        DemonstrationReader(tmp_path).read(TASK, 7)
