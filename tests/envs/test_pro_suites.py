"""Suites that LIBERO-PRO derives: found by looking, complete or an error, with goals and instructions of their own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import vlacoach  # noqa: F401 - registers the ids
from vlacoach.envs import suite_scan
from vlacoach.envs.libero import LiberoEnv
from vlacoach.envs.registration import ENV_IDS, env_id
from vlacoach.envs.suite_scan import derived_suites, package_folder, scan
from vlacoach.envs.suites import NUM_INITIAL_STATES, STANDARD_SUITES, SUITES, get_suite
from vlacoach.errors import SimulatorError, UnknownNameError

DIMENSIONS = ("lan", "object", "swap", "task")
PRO = [f"{base}_{dimension}" for base in STANDARD_SUITES if base != "libero_90" for dimension in DIMENSIONS]


@pytest.fixture
def package(tmp_path):
    """A small package: ``libero_goal_swap`` with two tasks, complete."""
    (tmp_path / "benchmark").mkdir()
    table = {"libero_goal": ["a"], "libero_goal_swap": ["a", "b"], "libero_goal_none": [], "other_suite": ["a"]}
    (tmp_path / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {table!r}\n")
    (tmp_path / "envs" / "objects").mkdir(parents=True)
    (tmp_path / "envs" / "objects" / "own.py").write_text(
        'path = root / "custom_objects" / "red_sticker" / "red_sticker.xml"\n'
    )
    for kind in ("bddl_files", "init_files"):
        (tmp_path / kind / "libero_goal_swap").mkdir(parents=True)
    for task in table["libero_goal_swap"]:
        bddl(tmp_path, task).write_text("(define (:objects\n bowl_1 bowl_2 - bowl\n plate_1 - plate\n))")
        np.savez_compressed(states(tmp_path, task), states=np.zeros((50, 3)))
    return tmp_path


def bddl(package: Path, task: str) -> Path:
    return package / "bddl_files" / "libero_goal_swap" / f"{task}.bddl"


def states(package: Path, task: str) -> Path:
    return package / "init_files" / "libero_goal_swap" / f"{task}.pruned_init.npz"


def missing(package: Path) -> tuple[str, ...]:
    found = scan(package, [package / "assets"])
    assert set(found) == {"libero_goal_swap"}
    assert found["libero_goal_swap"].base == "libero_goal"
    return found["libero_goal_swap"].missing


def test_a_derived_suite_with_all_its_files_is_complete(package):
    assert missing(package) == ()


def test_a_bddl_file_that_is_not_there_is_named(package):
    bddl(package, "b").unlink()
    assert missing(package) == (str(bddl(package, "b")),)


def test_initial_states_that_are_not_there_or_too_few_are_named(package):
    states(package, "a").unlink()
    np.savez_compressed(states(package, "b"), states=np.zeros((0, 3)))
    assert missing(package) == (str(states(package, "a")), f"{states(package, 'b')} (0 of 50 states)")


def test_a_folder_that_is_not_there_lacks_every_file(package):
    shutil.rmtree(package / "init_files")
    assert missing(package) == (str(states(package, "a")), str(states(package, "b")))


def test_an_object_without_its_xml_is_named_and_one_with_it_is_not(package):
    bddl(package, "a").write_text("(define (:fixtures\n table_1 - table\n) (:objects\n s_1 - red_sticker\n))")
    file = package / "assets" / "custom_objects" / "red_sticker" / "red_sticker.xml"
    assert missing(package) == (str(file),)
    file.parent.mkdir(parents=True)
    file.touch()
    assert missing(package) == ()


def test_without_a_table_of_tasks_there_are_no_derived_suites(tmp_path):
    assert scan(tmp_path, [tmp_path]) == {}


def test_the_installed_package_has_the_sixteen_of_libero_pro():
    assert set(PRO) <= set(SUITES)
    assert list(SUITES)[:5] == list(STANDARD_SUITES)
    for name in PRO:
        assert SUITES[name] == STANDARD_SUITES[name.rpartition("_")[0]]


def test_a_suite_that_the_package_does_not_have_in_full_says_what_is_missing():
    incomplete = {name: suite for name, suite in derived_suites().items() if suite.missing}
    assert "libero_goal_env" in incomplete
    assert not set(incomplete) & set(SUITES)
    for name, suite in incomplete.items():
        with pytest.raises(SimulatorError, match=re.escape(suite.missing[0])) as caught:
            get_suite(name)
        assert caught.value.exit_code == 3
    with pytest.raises(SimulatorError, match=r"custom_objects/red_sticker/red_sticker\.xml"):
        get_suite("libero_goal_with_red_stick")
    with pytest.raises(SimulatorError, match=r"\(10 of 50 states\)"):
        get_suite("libero_goal_with_milk")


def test_a_file_that_vanished_after_the_scan_is_an_error_too(monkeypatch):
    vanished = package_folder() / "bddl_files" / "libero_goal_swap" / "turn_on_the_stove.bddl"
    present = suite_scan.os.path.isfile
    monkeypatch.setattr("vlacoach.envs.suites.os.path.isfile", lambda file: "turn_on" not in file and present(file))
    get_suite.cache_clear()
    with pytest.raises(SimulatorError, match=f"libero_goal_swap is incomplete: there is no .*{vanished.name}"):
        get_suite("libero_goal_swap")
    get_suite.cache_clear()


def test_a_name_that_nobody_knows_gets_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'libero_goal_swap'"):
        get_suite("libero_goal_swop")


def test_the_instruction_is_that_of_the_bddl_file():
    assert get_suite("libero_goal_task").task(1).instruction == "put the plate on the stove"
    assert get_suite("libero_goal_task").task(1).name == "put_the_bowl_on_the_stove"
    assert get_suite("libero_object_lan").task(0).instruction == "grab alphabet soup and put it into basket"
    assert get_suite("libero_goal").task(0).instruction == "open the middle drawer of the cabinet"
    for name in PRO:
        for task in get_suite(name).tasks:
            text = re.search(r"\(:language\s+([^)]*)\)", Path(task.bddl_file).read_text())[1]
            assert task.instruction == " ".join(text.lower().split())


def test_every_complete_suite_has_an_id_of_its_own():
    assert env_id("libero_goal_swap") == "vlacoach/LiberoGoalSwap-v0"
    assert env_id("libero_10_lan") == "vlacoach/Libero10Lan-v0"
    assert set(ENV_IDS) == set(SUITES)
    assert len(set(ENV_IDS.values())) == len(SUITES)
    assert set(ENV_IDS.values()) <= set(gymnasium.registry)


QUICK = ("libero_goal_lan", "libero_goal_swap")
"""Each suite compiles scenes of its own, which takes some seconds: these are tried every time, the others by hand."""


@pytest.mark.sim
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in SUITES
        if name not in STANDARD_SUITES
    ],
)
def test_every_derived_suite_resets_and_steps(name, monkeypatch):
    monkeypatch.setenv("VLACOACH_CACHE", "off")  # Two hundred megabytes each.
    task = 1
    env = gymnasium.make(ENV_IDS[name], task=task, image_size=32, render_mode="rgb_array").unwrapped
    assert isinstance(env, LiberoEnv)
    observation, info = env.reset(seed=0, options={"init_state": NUM_INITIAL_STATES - 1})
    assert info["instruction"] == get_suite(name).task(task).instruction
    assert observation in env.observation_space
    assert observation["image"].std() > 8
    after, reward, terminated, _, info = env.step(np.array([1, 0, 0, 0, 0, 0, -1], dtype=np.float32))
    assert "invalid" not in info
    assert after["state"][0] > observation["state"][0] + 0.003
    assert (reward, terminated) == (0.0, False)
    env.close()
