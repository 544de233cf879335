from __future__ import annotations

import json

import pytest

from vlacoach.runs import constants as names
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.statistics import wilson_interval


@pytest.fixture
def pair(tmp_path):
    root = tmp_path / "runs"
    with RunFolder.create(root, "one", TrainConfig(seed=3), {"seed": "--seed"}) as first:
        first.log_metrics(0, {"eval/success": 0.25, "eval/successes": 2, "eval/episodes": 8})
        first.log_metrics(1, {names.ROLLOUT_SUCCESS: 0.5, names.TRAIN_KL: float("nan")})
        first.log_metrics(1, {"eval/success": 0.75, "eval/successes": 6, "eval/episodes": 8})
        first.log_metrics(2, {"eval/success": 0.5, "eval/successes": 4, "eval/episodes": 8})
    with RunFolder.create(root, "two", TrainConfig()) as second:
        second.log_metrics(1, {names.ROLLOUT_SUCCESS: 0.25})
        second.update_info(versions={**second.info()["versions"], "torch": "1.0"})
    return first, second


def test_diff_as_one_document(invoke, pair):
    result = invoke("runs", "diff", "one", "two", "--json")
    document = json.loads(result.stdout)
    assert (document["a"]["name"], document["b"]["name"]) == ("one", "two")
    assert document["settings"] == {
        "seed": {"a": {"value": 3, "origin": "--seed"}, "b": {"value": 0, "origin": "default"}}
    }
    assert document["versions"]["torch"]["b"] == "1.0"
    interval = wilson_interval(2, 8)
    assert document["evaluations"]["held-out"]["a"][0] == {
        "step": 0, "successes": 2, "episodes": 8, "success": 0.25, "low": interval.low, "high": interval.high
    }  # fmt: skip
    assert document["evaluations"]["held-out"]["b"] == []
    assert document["metrics"][names.ROLLOUT_SUCCESS] == {"a": 0.5, "b": 0.25}
    assert document["metrics"][names.TRAIN_KL] == {"a": None}


def test_diff_in_tables(invoke, pair):
    text = invoke("runs", "diff", "one", "two").stdout
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[0] == "│"]
    assert ["seed", "3", "--seed", "0", "default"] in rows
    assert ["held-out", "first", "25.0 [7, 59] after 0", "-"] in rows
    assert ["held-out", "best", "75.0 [41, 93] after 1", "-"] in rows
    assert ["held-out", "last", "50.0 [22, 78] after 2", "-"] in rows
    assert [names.TRAIN_KL, "not finite", "-"] in rows
    assert [names.ROLLOUT_SUCCESS, "0.5", "0.25"] in rows


def test_a_run_differs_in_nothing_from_itself(invoke, pair):
    result = invoke("runs", "diff", "one", pair[0].path)
    assert "The settings are equal.\nThe versions are equal.\n" in result.stdout
    document = json.loads(invoke("runs", "diff", "one", "one", "--json").stdout)
    assert (document["settings"], document["versions"]) == ({}, {})


def test_diff_with_an_unknown_run_exits_5(invoke, pair):
    result = invoke("runs", "diff", "one", "three")
    assert (result.exit_code, result.stdout) == (5, "")
    assert pair[1].path.name in result.stderr


def test_diff_needs_two_runs(invoke, pair):
    assert invoke("runs", "diff", "one").exit_code == 2
