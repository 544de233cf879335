from __future__ import annotations

import json
import shutil

import pytest

from vlacoach.runs import constants as names
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.results import EvaluationResult, TaskResult, TrainResult, compare, write_results


def evaluation(success):
    task = TaskResult(3, "open the [top] drawer", tuple(range(30, 34)), tuple(success), (80,) * 4)
    return EvaluationResult("libero_goal", "held-out", "tiny", 1.0, (0,), (task,), 1.5)


@pytest.fixture
def run(tmp_path):
    folder = RunFolder.create(tmp_path / "runs", "first", TrainConfig())
    folder.log_metrics(1, {names.ROLLOUT_SUCCESS: 0.25, names.TRAIN_KL: float("inf")})
    folder.log_metrics(2, {names.ROLLOUT_SUCCESS: 0.5})
    comparison = compare(evaluation([False] * 4), evaluation([True, True, True, False]))
    result = TrainResult(folder.path, 2, 60.0, {"held-out": comparison}, {"adapter": folder.path / "a"})
    write_results(result, folder.path / names.RESULTS_FILE)
    folder.set_status(names.STATUS_FINISHED)
    folder.close()
    return folder


def test_ls(invoke, run):
    (summary,) = json.loads(invoke("runs", "ls", "--json").stdout)
    assert summary["name"] == "first"
    assert (summary["status"], summary["updates"], summary["rollout_success"]) == ("finished", 2, 0.5)
    assert "50.0 %" in invoke("runs", "ls").stdout


def test_ls_without_runs(invoke):
    result = invoke("runs", "ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(invoke("runs", "ls", "--json").stdout) == []


def test_ls_shows_the_others_when_one_is_damaged(invoke, run):
    broken = run.path.parent / "20000101_000000_broken_0000"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    result = invoke("runs", "ls", "--json")
    assert len(json.loads(result.stdout)) == 1
    assert "broken" in result.stderr


def test_show(invoke, run):
    details = json.loads(invoke("runs", "show", "--json").stdout)
    assert details["last_metrics"][names.ROLLOUT_SUCCESS] == 0.5
    assert details["comparisons"]["held-out"]["difference"]["difference"] == 0.75
    text = invoke("runs", "show", "first").stdout
    assert "open the [top] drawer" in text
    assert "75.0 [30, 95]" in text
    assert "+75.0" in text


def test_show_with_damaged_results(invoke, run):
    (run.path / names.RESULTS_FILE).write_text('{"comparisons": {"held-out": {"before": {}}}}')
    assert invoke("runs", "show").exit_code == 5


def test_unknown_run_exits_5_and_lists_runs(invoke, run):
    result = invoke("runs", "show", "nope")
    assert (result.exit_code, result.stdout) == (5, "")
    assert run.path.name in result.stderr


def test_report(invoke, run, tmp_path):
    document = json.loads(invoke("runs", "report", "--json", "--png", tmp_path / "figures" / "all").stdout)
    assert document["report"] == str(run.path.resolve() / names.REPORT_FILE)
    assert (run.path / names.REPORT_FILE).read_text().startswith("<!DOCTYPE html>")
    assert list(document) == ["report", "success", "health"]
    assert (tmp_path / "figures" / "all" / "health.png").read_bytes().startswith(b"\x89PNG")
    assert invoke("runs", "report", "--out", "page.html").stdout == "report: page.html\n"
    assert invoke("runs", "report", "--out", tmp_path / "none" / "x.html").exit_code == 5


def test_report_of_the_learning_curve_alone(invoke, run, tmp_path):
    assert invoke("runs", "report", "--out", "x.png").stdout == "learning curve: x.png\n"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert invoke("runs", "report", "--out", tmp_path / "none" / "x.png").exit_code == 5


def test_report_of_another_kind(invoke, run, tmp_path):
    result = invoke("runs", "report", "--out", "x.pdf")
    assert result.exit_code == 2
    assert ".html" in result.stderr


def test_report_without_metrics(invoke, run):
    (run.path / names.METRICS_FILE).unlink()
    assert invoke("runs", "report", "--out", "x.png").exit_code == 5
    assert invoke("runs", "report", "--out", "x.html").exit_code == 0


def test_runs_dir_from_the_environment(invoke, run, tmp_path, monkeypatch):
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    monkeypatch.setenv("VLACOACH_RUNS_DIR", str(tmp_path / "elsewhere"))
    assert len(json.loads(invoke("runs", "ls", "--json").stdout)) == 1
