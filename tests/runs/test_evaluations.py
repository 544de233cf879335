"""The folder of an evaluation."""

from __future__ import annotations

import json
import os

import pytest

from vlacoach.errors import ConfigError, RunError
from vlacoach.runs.evaluations import EvaluationFolder, Played, fingerprint, settings_hash

SETTINGS = {"env.max_steps": 120, "states": {"1": (30, 31)}, "seeds": [0]}


def test_episodes_are_kept_and_known_again(tmp_path):
    with EvaluationFolder(tmp_path / "new" / "out", SETTINGS) as folder:
        assert folder.played(0, 3, 1, 30) is None
        folder.record(0, 3, task=1, init_state=30, success=True, length=41, elapsed=2.5)
    with EvaluationFolder(tmp_path / "new" / "out", SETTINGS) as folder:
        assert (folder.count, folder.seconds()) == (1, 2.5)
        assert folder.played(0, 3, 1, 30) == Played(True, 41)
        assert folder.played(1, 3, 1, 30) is None


def test_episodes_of_one_number_are_told_apart_by_what_perturbs_them(tmp_path):
    with EvaluationFolder(tmp_path, SETTINGS) as folder:
        folder.record(0, 3, task=1, init_state=30, success=True, length=41, elapsed=2.5)
        folder.record(0, 3, "light:2", task=1, init_state=30, success=False, length=90, elapsed=4.0)
    with EvaluationFolder(tmp_path, SETTINGS) as folder:
        assert folder.count == 2
        assert folder.played(0, 3, 1, 30) == Played(True, 41)
        assert folder.played(0, 3, 1, 30, "light:2") == Played(False, 90)
        assert folder.played(0, 3, 1, 30, "light:3") is None
        assert (folder.seconds(), folder.seconds("light:2"), folder.seconds("light:3")) == (2.5, 4.0, 0.0)


def test_a_half_line_of_a_killed_process_is_cut_off(tmp_path):
    with EvaluationFolder(tmp_path / "out", SETTINGS) as folder:
        folder.record(0, 0, task=1, init_state=30, success=False, length=9, elapsed=1.0)
    with (tmp_path / "out" / "episodes.jsonl").open("a") as file:
        file.write('{"seed": 0, "number": 1, "ta')
    with EvaluationFolder(tmp_path / "out", SETTINGS) as folder:
        assert folder.count == 1
        folder.record(0, 1, task=1, init_state=31, success=False, length=9, elapsed=1.5)
    with EvaluationFolder(tmp_path / "out", SETTINGS) as folder:
        assert folder.count == 2


def test_two_evaluations_do_not_share_a_folder(tmp_path):
    with EvaluationFolder(tmp_path, SETTINGS), pytest.raises(RunError, match="Another evaluation writes"):
        EvaluationFolder(tmp_path, SETTINGS)
    EvaluationFolder(tmp_path, SETTINGS).close()


def test_other_settings_are_refused_with_what_changed_and_give_the_lock_back(tmp_path):
    EvaluationFolder(tmp_path, SETTINGS).close()
    with pytest.raises(ConfigError, match=r"env\.max_steps was 120, is 300; added was None, is 1"):
        EvaluationFolder(tmp_path, {**SETTINGS, "env.max_steps": 300, "added": 1})
    EvaluationFolder(tmp_path, SETTINGS).close()


@pytest.mark.parametrize(
    "line", ['{"seed": 0, "number": "x", "elapsed": 1}', '{"seed": 0}', '{"number": 1, "seed": null}']
)
def test_a_line_that_is_no_episode_is_an_error(tmp_path, line):
    EvaluationFolder(tmp_path, SETTINGS).close()
    (tmp_path / "episodes.jsonl").write_text(line + "\n")
    with pytest.raises(RunError, match="no episode"):
        EvaluationFolder(tmp_path, SETTINGS)


@pytest.mark.parametrize("text", ["", "[]", '{"settings": 3}', "{"])
def test_damaged_settings_are_an_error_until_fresh(tmp_path, text):
    EvaluationFolder(tmp_path, SETTINGS).close()
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(RunError, match=r"evaluation\.json cannot be read"):
        EvaluationFolder(tmp_path, SETTINGS)
    EvaluationFolder(tmp_path, SETTINGS, fresh=True).close()
    assert json.loads((tmp_path / "evaluation.json").read_text())["settings"]["env.max_steps"] == 120


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a file"):
        EvaluationFolder(tmp_path / "results.json", SETTINGS)


def test_fingerprints_change_with_names_sizes_and_times(tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "weights"
    file.write_text("1")
    os.utime(file, ns=(0, 0))
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    os.utime(file, ns=(0, 1))
    second = fingerprint(tmp_path)
    file.write_text("12")
    os.utime(file, ns=(0, 1))
    third = fingerprint(tmp_path)
    file.rename(tmp_path / "sub" / "other")
    assert len({first, second, third, fingerprint(tmp_path)}) == 4


def test_the_hash_of_settings_does_not_depend_on_their_order():
    assert settings_hash({"a": 1, "b": (2, 3)}) == settings_hash({"b": [2, 3], "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})
