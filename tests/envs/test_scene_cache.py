"""Compiled scenes on disk: they come back as they were, and nothing that happens to them harms anyone."""

import logging
import os
import time
from dataclasses import fields

import numpy as np
import pytest

from vlacoach.envs import scene_cache
from vlacoach.envs.goals import _step, compile_goal
from vlacoach.envs.scene import build_scene, scene_key
from vlacoach.envs.simulator import Simulator
from vlacoach.envs.suites import get_suite

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def tasks():
    return get_suite("libero_goal").tasks


@pytest.fixture(scope="module")
def built(tasks):
    return build_scene(tasks)


@pytest.fixture
def builds(built, monkeypatch):
    """Counts how often a scene is compiled."""
    calls = []

    def build(tasks, seed):
        calls.append(seed)
        return built

    monkeypatch.setattr(scene_cache, "build_scene", build)
    return calls


def entries(folder):
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


def test_what_a_killed_process_left_goes_and_what_another_is_writing_stays(tasks, builds, tmp_path):
    for name, age in ((".new-old", 7200), (".new-now", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    scene_cache.get_scene(tasks, 0, tmp_path)
    assert sorted(path.name for path in entries(tmp_path) if path.name.startswith(".")) == [".new-now"]


def test_a_scene_comes_back_as_it_was(tasks, built, builds, tmp_path):
    scene_cache.get_scene(tasks, 0, tmp_path)
    read = scene_cache.get_scene(tasks, 0, tmp_path)
    assert len(builds) == 1
    for kind in ("arm", "home"):
        for field in fields(getattr(built, kind)):
            ours, theirs = getattr(getattr(built, kind), field.name), getattr(getattr(read, kind), field.name)
            np.testing.assert_array_equal(ours, theirs)
            assert np.asarray(ours).dtype == np.asarray(theirs).dtype
    assert read.goals == built.goals
    assert [burner.site for burner in read.burners] == [burner.site for burner in built.burners]
    # The same numbers, to the last bit, from the model that was read.
    states = []
    for scene in (built, read):
        simulator = Simulator("libero_goal")
        simulator._scenes[scene_key(tasks[8])] = scene
        simulator.reset(0, task=8, init_state=4)
        for action in np.random.default_rng(0).uniform(-1, 1, (20, 7)):
            simulator.step(0, action)
        states.append(simulator.state(0))
    np.testing.assert_array_equal(states[0], states[1])


def test_a_damaged_entry_is_made_anew(tasks, builds, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    scene_cache.get_scene(tasks, 0, tmp_path)
    (entry,) = entries(tmp_path)
    model = entry / "model.mjb"
    damages = [
        lambda: model.write_bytes(model.read_bytes()[: model.stat().st_size // 2]),
        lambda: model.write_bytes(model.read_bytes()[:5000] + b"\x00\xff" * 8 + model.read_bytes()[5016:]),
        lambda: (entry / "scene.json").write_text("{"),
        model.unlink,
    ]
    for number, damage in enumerate(damages, start=2):
        damage()
        scene_cache.get_scene(tasks, 0, tmp_path)
        assert len(builds) == number
        assert "is damaged" in caplog.text
        caplog.clear()
        scene_cache.get_scene(tasks, 0, tmp_path)
        assert len(builds) == number
    assert entries(tmp_path) == [entry]


def test_a_cache_that_cannot_be_written_costs_only_time(tasks, built, builds, tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("")
    assert scene_cache.get_scene(tasks, 0, tmp_path / "file") is built
    assert "could not be kept" in caplog.text
    # A full disk: MuJoCo writes what fits and says nothing.
    monkeypatch.setattr(scene_cache.mujoco, "mj_saveModel", lambda model, path, buffer: open(path, "wb").close())
    caplog.clear()
    assert scene_cache.get_scene(tasks, 0, tmp_path / "full") is built
    assert "the disk may be full" in caplog.text
    assert not entries(tmp_path / "full")


def test_the_seed_and_the_goals_are_part_of_the_key_and_the_cache_can_be_off(tasks, builds, tmp_path, monkeypatch):
    scene_cache.get_scene(tasks, 0, tmp_path)
    scene_cache.get_scene(tasks, 1, tmp_path)
    scene_cache.get_scene(tasks[:5], 0, tmp_path)
    assert len(entries(tmp_path)) == len(builds) == 3
    monkeypatch.setenv(scene_cache.CACHE_VARIABLE, "off")
    assert scene_cache.cache_folder() is None
    scene_cache.get_scene(tasks, 0)
    assert len(builds) == 4
    monkeypatch.setenv(scene_cache.CACHE_VARIABLE, str(tmp_path / "elsewhere"))
    assert scene_cache.cache_folder() == tmp_path / "elsewhere" / "scenes"


def test_tasks_share_a_scene_exactly_if_libero_would_place_the_same_things():
    counts = {
        suite: len({scene_key(task) for task in get_suite(suite).tasks})
        for suite in ("libero_goal", "libero_spatial", "libero_object", "libero_10", "libero_90")
    }
    assert counts == {
        "libero_goal": 1,
        "libero_spatial": 10,
        "libero_object": 10,
        "libero_10": 9,
        "libero_90": 20,
    }


@pytest.mark.parametrize(
    ("test", "position", "holds"),
    [
        (lambda q: q < -1.3, -1.3, False),
        (lambda q: q > 0.005, 0.005, False),
        (lambda q: q >= 0.5, 0.5, True),
        (lambda q: q <= 0.0, 0.0, True),
    ],
)
def test_the_step_of_a_joints_test_is_found_to_the_last_bit(test, position, holds):
    step, below = _step(test)

    class Data:
        qpos = np.zeros(1)

    predicate = compile_goal([{"kind": "joint", "addresses": [0], "step": step, "below": below, "one_is_enough": True}])
    for value in (-2.0, np.nextafter(position, -9), position, np.nextafter(position, 9), 2.0):
        Data.qpos[0] = value
        assert predicate(Data) == test(value), value
    assert test(position) == holds
