"""The manifest of initial states: what is held out stays held out."""

from __future__ import annotations

import hashlib
import json

import pytest

from vlacoach.errors import ConfigError, RunError
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.splits import Splits, read_splits, require_same_splits, write_splits

SPLITS = Splits("libero_goal", {1: (0, 1, 2), 4: (5,)}, {1: (3,), 4: (0, 6)})


@pytest.fixture
def folder(tmp_path):
    with RunFolder.create(tmp_path, "first", TrainConfig()) as folder:
        yield folder


def test_the_manifest_is_written_with_its_hash_and_read_back(folder):
    file = write_splits(folder, SPLITS)
    data = json.loads(file.read_text())
    assert data["tasks"] == {"1": {"train": [0, 1, 2], "evaluation": [3]}, "4": {"train": [5], "evaluation": [0, 6]}}
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert folder.info()["splits_hash"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert read_splits(folder) == SPLITS


def test_splits_by_name():
    assert SPLITS.states("train") == {1: (0, 1, 2), 4: (5,)}
    assert SPLITS.states("held-out") == {1: (3,), 4: (0, 6)}
    assert SPLITS.states("all") == {1: (0, 1, 2, 3), 4: (0, 5, 6)}


def test_states_that_were_trained_on_are_counted():
    assert SPLITS.trained_on("libero_goal", {1: (1, 2, 3), 4: (0, 5), 7: (0, 1)}) == 3
    assert SPLITS.trained_on("libero_goal", SPLITS.evaluation) == 0
    assert SPLITS.trained_on("libero_object", SPLITS.train) == 0


def test_a_state_in_both_splits_of_a_task_is_refused():
    with pytest.raises(ConfigError, match="Task 4 would be trained on the initial states 1-3 of its evaluation"):
        Splits("s", {1: (0,), 4: (0, 1, 2, 3)}, {1: (1,), 4: (1, 2, 3, 4)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("3", "7", 1), "was changed after the run began"),
        (lambda text: text[:-9], "cannot be read"),
        (lambda text: "[]", "was changed after the run began"),
        (None, "is gone"),
    ],
)
def test_a_manifest_that_is_not_the_one_of_the_training_is_refused(folder, damage, message):
    file = write_splits(folder, SPLITS)
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage(file.read_text()))
    with pytest.raises(RunError, match=message):
        read_splits(folder)


def test_a_run_without_a_manifest_is_refused(folder):
    with pytest.raises(RunError, match="does not say which initial states"):
        read_splits(folder)


def test_white_space_in_the_manifest_changes_nothing(folder):
    file = write_splits(folder, SPLITS)
    file.write_text(json.dumps(json.loads(file.read_text())))
    assert read_splits(folder) == SPLITS


def test_a_run_does_not_go_on_with_other_states(folder):
    write_splits(folder, SPLITS)
    require_same_splits(folder, SPLITS)
    with pytest.raises(ConfigError, match=r"other tasks or initial states than .*splits.json"):
        require_same_splits(folder, Splits("libero_goal", {1: (0, 1), 4: (5,)}, {1: (3,), 4: (0, 6)}))
