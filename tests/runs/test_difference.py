"""What two runs differ in."""

from __future__ import annotations

import pytest

from vlacoach.errors import RunError
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.constants import CONFIG_FILE
from vlacoach.runs.difference import (
    Measurement,
    Setting,
    different_settings,
    different_versions,
    last_values,
    measurements,
    settings,
)
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.statistics import wilson_interval


@pytest.fixture
def pair(tmp_path):
    first = RunFolder.create(tmp_path / "runs", "one", TrainConfig(seed=3), {"seed": "--seed"})
    second = RunFolder.create(tmp_path / "runs", "two", TrainConfig.model_validate({"grpo": {"updates": 7}}))
    with first, second:
        yield first, second


def test_settings_that_differ_come_with_their_origins(pair):
    assert different_settings(*pair) == {
        "seed": (Setting(3, "--seed"), Setting(0, "default")),
        "grpo.updates": (Setting(40, "default"), Setting(7, "default")),
    }


def test_the_same_values_from_other_places_are_no_difference(pair):
    pair[1].update_info(origins={"grpo.epochs": "--set grpo.epochs=1"})
    assert "grpo.epochs" not in different_settings(*pair)


def test_what_was_changed_on_resuming_says_so(pair):
    pair[0].log_event("config", changed={"grpo.updates": 40})
    assert settings(pair[0])["grpo.updates"] == Setting(40, "changed on resuming")


def test_runs_of_another_version_with_other_keys_are_compared(pair):
    file = pair[0].path / CONFIG_FILE
    file.write_text(file.read_text().replace("  epochs:", "  old_key: 5\n  # epochs:"))
    found = different_settings(*pair)
    assert found["grpo.old_key"] == (Setting(5, "default"), None)
    assert found["grpo.epochs"] == (None, Setting(1, "default"))


def test_a_run_without_a_configuration_is_an_error(tmp_path):
    with RunFolder.create(tmp_path, "bare") as folder, pytest.raises(RunError, match=r"no config\.yaml"):
        settings(folder)


def test_versions_that_differ(pair):
    info = pair[0].info()
    pair[0].update_info(python="3.9.1", versions={**info["versions"], "torch": "2.6.0", "peft": None, "extra": "1"})
    versions = info["versions"]
    assert different_versions(*pair) == {
        "python": ("3.9.1", info["python"]),
        "torch": ("2.6.0", versions["torch"]),
        "peft": (None, versions["peft"]),
        "extra": ("1", None),
    }


def test_last_values_keep_what_was_not_finite_and_leave_out_the_rest():
    records = [
        {"step": 1, "time": 5.0, "a/x": 1.0, "a/y": 2, "a/flag": True, "nonfinite": []},
        {"step": 2, "a/x": None, "a/text": "x", "nonfinite": ["a/x"]},
    ]
    assert last_values(records) == {"a/x": None, "a/y": 2}


def test_measurements_pass_over_what_is_no_evaluation():
    records = [
        {"step": 0, "eval/successes": 3, "eval/episodes": 8, "eval_train/successes": 1, "eval_train/episodes": 2},
        {"step": 1, "eval/successes": 9, "eval/episodes": 8},
        {"step": 2, "eval/successes": 0, "eval/episodes": 0},
        {"step": 3, "eval/successes": None, "eval/episodes": 8},
        {"step": 4, "eval/successes": 8.0, "eval/episodes": 8.0},
    ]
    assert measurements(records) == [Measurement(0, 3, 8), Measurement(4, 8, 8)]
    assert measurements(records, "eval_train") == [Measurement(0, 1, 2)]
    assert measurements(records)[0].rate == 0.375
    assert measurements(records)[0].interval == wilson_interval(3, 8)
