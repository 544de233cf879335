from dataclasses import replace

import h5py
import numpy as np
import pytest

from vlacoach.data.rollouts import RecordedEpisode, RolloutsError, read_rollouts, write_rollouts


def episode(number: int) -> RecordedEpisode:
    frames = np.random.default_rng(number).integers(0, 256, (3 + number, 8, 8, 3), dtype=np.uint8)
    return RecordedEpisode(
        "libero_goal", 4, number, "open the drawer", "near-miss", bool(number % 2), 8 * number, frames
    )


def test_what_was_written_is_read_in_its_order(tmp_path):
    episodes = [episode(number) for number in range(12)]
    found = read_rollouts(write_rollouts(tmp_path / "new" / "rollouts.hdf5", episodes))
    assert len(found) == 12
    for one, other in zip(found, episodes, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        assert replace(one, frames=None) == replace(other, frames=None)
        assert type(one.success) is bool


def test_several_cameras_are_kept_and_the_first_is_shown(tmp_path):
    one = episode(2)
    both = replace(one, frames=np.stack([one.frames, 255 - one.frames], axis=1))
    (found,) = read_rollouts(write_rollouts(tmp_path / "rollouts.hdf5", [both]))
    np.testing.assert_array_equal(found.frames, both.frames)
    np.testing.assert_array_equal(found.pictures, one.frames)
    np.testing.assert_array_equal(one.pictures, one.frames)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = write_rollouts(tmp_path / "rollouts.hdf5", [episode(0)])
    before = file.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(RolloutsError, match="No space left"):
        write_rollouts(file, [episode(1)])
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_files_that_are_no_rollouts_are_named(tmp_path):
    with pytest.raises(RolloutsError, match=r"no rollouts file .*missing\.hdf5"):
        read_rollouts(tmp_path / "missing.hdf5")
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(write_rollouts(tmp_path / "whole.hdf5", [episode(3)]).read_bytes()[:2000])
    with pytest.raises(RolloutsError, match="cannot be read"):
        read_rollouts(cut)
    other = tmp_path / "other.hdf5"
    with h5py.File(other, "w") as store:
        store["data"] = np.zeros(3)
    with pytest.raises(RolloutsError, match="holds no rollouts"):
        read_rollouts(other)
    lacking = write_rollouts(tmp_path / "lacking.hdf5", [episode(1)])
    with h5py.File(lacking, "r+") as store:
        del store["rollouts/0"].attrs["success"]
    with pytest.raises(RolloutsError, match="lacks success"):
        read_rollouts(lacking)
