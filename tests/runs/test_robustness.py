"""Plain episodes beside those perturbed along one axis after the other."""

from __future__ import annotations

import json

import pytest

from vlacoach.errors import RunError
from vlacoach.runs.results import EvaluationResult, TaskResult, write_results
from vlacoach.runs.robustness import AxisComparison, AxisResult, AxisTable
from vlacoach.runs.statistics import mcnemar_exact, wilson_interval


def result(won: int, episodes: int = 10, states: tuple[int, ...] | None = None, policy: str = "one"):
    success = tuple(number < won for number in range(episodes))
    task = TaskResult(
        8, "put the bowl on the plate", states or tuple(range(30, 30 + episodes)), success, (40,) * episodes
    )
    return EvaluationResult("libero_goal", "held-out", policy, 0.0, (0,), (task,), 2.0)


def table(plain: int, camera: int, policy: str = "one") -> AxisTable:
    return AxisTable(result(plain, policy=policy), (AxisResult("camera", 4, result(camera, policy=policy)),))


def test_each_axis_has_its_interval_and_its_paired_difference_to_plain(tmp_path):
    write_results(table(9, 3), tmp_path / "results.json")
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["plain"]["summary"]["success"] == 0.9
    (axis,) = document["axes"]
    assert (axis["axis"], axis["severity"]) == ("camera", 4)
    interval = wilson_interval(3, 10)
    summary = axis["result"]["summary"]
    assert (summary["success"], summary["low"], summary["high"]) == (0.3, interval.low, interval.high)
    difference = axis["difference"]
    assert (difference["gained"], difference["lost"], difference["difference"]) == (0, 6, pytest.approx(-0.6))
    assert difference["p_value"] == mcnemar_exact(0, 6) == pytest.approx(2 / 64)
    assert difference["interval"]["low"] < -0.6 < difference["interval"]["high"] < 0
    assert axis["clustered"]["clusters"] == 10


def test_an_axis_of_other_episodes_cannot_be_paired():
    other = result(3, states=tuple(range(10)))
    with pytest.raises(RunError, match="not of the same tasks, initial states and seeds"):
        AxisTable(result(9), (AxisResult("camera", 4, other),))


def test_two_policies_are_paired_under_the_same_perturbation():
    found = AxisComparison(table(9, 3, "first"), table(9, 8, "second"))
    changes = found.changes()
    assert list(changes) == ["plain", "camera:4"]
    assert (changes["plain"].overall.gained, changes["plain"].overall.lost) == (0, 0)
    assert (changes["camera:4"].overall.gained, changes["camera:4"].overall.lost) == (5, 0)
    assert (changes["camera:4"].before.policy, changes["camera:4"].after.policy) == ("first", "second")
    document = json.loads(json.dumps(found.to_json()))
    assert set(document) == {"before", "after", "changes"}
    assert document["changes"]["camera:4"]["difference"]["difference"] == pytest.approx(0.5)
    assert document["before"]["axes"][0]["difference"]["lost"] == 6
