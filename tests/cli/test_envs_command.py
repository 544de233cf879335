from __future__ import annotations

import json

import pytest

from vlacoach.envs.registration import ENV_IDS
from vlacoach.envs.simulator import Simulator
from vlacoach.errors import SimulatorError


def test_ls_lists_every_suite(invoke):
    suites = json.loads(invoke("envs", "ls", "--json").stdout)
    assert {suite["suite"]: suite["id"] for suite in suites} == ENV_IDS
    assert suites[2] == {
        "suite": "libero_goal", "tasks": 10, "step_limit": 300, "initial_states": 50, "id": "vlacoach/LiberoGoal-v0"
    }  # fmt: skip
    assert "vlacoach/Libero90-v0" in invoke("envs", "ls").stdout


def test_ls_lists_the_tasks_of_a_suite(invoke):
    tasks = json.loads(invoke("envs", "ls", "libero_goal", "--json").stdout)
    assert [task["task"] for task in tasks] == list(range(10))
    assert tasks[8]["instruction"] == "put the bowl on the plate"
    assert {task["initial_states"] for task in tasks} == {50}
    assert "put the bowl on the plate" in invoke("envs", "ls", "libero_goal").stdout


@pytest.mark.parametrize("command", ["ls", "check"])
def test_an_unknown_suite_exits_2_with_the_nearest(invoke, command):
    result = invoke("envs", command, "libero_gaol")
    assert result.exit_code == 2
    assert "Did you mean 'libero_goal'?" in result.stderr


def test_check_of_an_unknown_task_exits_2_and_lists_those_there_are(invoke):
    result = invoke("envs", "check", "--tasks", "1,10")
    assert result.exit_code == 2
    assert "8  put the bowl on the plate" in result.stderr


@pytest.mark.sim
def test_check_steps_tasks_in_the_simulator(invoke):
    document = json.loads(invoke("envs", "check", "libero_goal", "--tasks", "1", "--json").stdout)
    assert document["ok"] is True
    assert [(check["task"], check["ok"]) for check in document["checks"]] == [(None, True), (1, True)]


@pytest.mark.sim
def test_a_check_that_fails_exits_3_and_says_why(invoke, monkeypatch):
    def broken(*_):
        raise SimulatorError("no back end draws")

    monkeypatch.setattr(Simulator, "render", broken)
    result = invoke("envs", "check", "--tasks", "1")
    assert result.exit_code == 3
    assert "SimulatorError: no back end draws" in result.stdout
    assert "put the bowl on the stove: SimulatorError: no back end draws" in result.stderr
