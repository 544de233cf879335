"""The checks of a suite find what is wrong with it."""

from __future__ import annotations

import numpy as np
import pytest

from vlacoach.envs.checking import check_spaces, check_suite, check_task
from vlacoach.envs.libero import LiberoEnv
from vlacoach.envs.simulator import Simulator, UnstableSimulationError
from vlacoach.envs.suites import get_suite
from vlacoach.errors import ConfigError, UnknownNameError

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env():
    return LiberoEnv("libero_goal", image_size=32, render_mode="rgb_array")


@pytest.fixture
def task():
    return get_suite("libero_goal").task(1)


def test_real_tasks_pass_and_so_does_the_environment():
    checks = list(check_suite("libero_goal", (8, 1), image_size=32))
    assert [(check.task, check.name, check.problems) for check in checks] == [
        (None, "Gymnasium's check_env", ()),
        (8, "put the bowl on the plate", ()),
        (1, "put the bowl on the stove", ()),
    ]
    assert all(check.ok and check.seconds > 0 for check in checks)


def test_a_black_picture_is_found(env, task, monkeypatch):
    monkeypatch.setattr(env, "render", lambda: np.zeros((32, 32, 3), np.uint8))
    assert check_task(env, task).problems == ("its picture shows nothing",)


def test_a_goal_that_holds_at_once_is_found(env, task, monkeypatch):
    monkeypatch.setattr(Simulator, "step", lambda *_: True)
    assert check_task(env, task).problems == ("its goal holds before anything was done", "the arm does not move")


def test_an_unstable_simulation_is_found(env, task, monkeypatch):
    step = Simulator.step

    def unstable(self, world, action):
        if np.any(action[:6]):
            raise UnstableSimulationError("it fell over")
        return step(self, world, action)

    monkeypatch.setattr(Simulator, "step", unstable)
    assert check_task(env, task).problems == ("its simulation became unstable",)


def test_an_observation_outside_its_space_is_found(env, task, monkeypatch):
    monkeypatch.setattr(Simulator, "proprioception", lambda *_: np.full(8, 99.0, np.float32))
    assert check_task(env, task).problems == (
        "its first observation is not in the observation space",
        "an observation after a step is not in the observation space",
        "the arm does not move",
    )


def test_an_error_is_a_finding_and_not_the_end(env, task, monkeypatch):
    def broken(*_, **__):
        raise OSError("no libGL")

    monkeypatch.setattr(env, "reset", broken)
    check = check_task(env, task)
    assert not check.ok
    assert check.problems == ("OSError: no libGL",)


def test_what_gymnasium_warns_of_is_a_problem(monkeypatch):
    monkeypatch.setattr(LiberoEnv, "render", lambda self: None)
    problem = "RGB-array rendering should return a numpy array, got <class 'NoneType'>"
    assert problem in check_spaces("libero_goal", 0, 32)


def test_what_gymnasium_refuses_is_a_problem(monkeypatch):
    reset = LiberoEnv.reset
    monkeypatch.setattr(LiberoEnv, "reset", lambda self, **options: reset(self, **options)[:1])
    check = next(check_suite("libero_goal", (0,), 32))
    assert "AssertionError" in check.problems[0]


def test_unknown_suites_and_tasks():
    with pytest.raises(UnknownNameError):
        next(check_suite("libero_gaol"))
    with pytest.raises(ConfigError, match="no task 12"):
        next(check_suite("libero_goal", (12,)))
