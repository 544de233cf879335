"""``train --engine ray``: what is refused, and the command that workers are given."""

from __future__ import annotations

import importlib.util
import os
import pickle

import pytest
from typer.testing import CliRunner

from vlacoach.cli import ray_engine
from vlacoach.cli.main import app, run_command
from vlacoach.launch import ray
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder


@pytest.fixture
def asked(monkeypatch):
    """What a cluster would have been asked for: settings, task."""
    calls = []

    def start(settings, task, say):
        calls.append((settings, task))
        return 130

    monkeypatch.setattr(ray, "start", start)
    for name in [name for name in os.environ if name.startswith("VLACOACH_")]:
        monkeypatch.delenv(name)
    return calls


def options(task):
    """The words of the command without those that the run's name is in."""
    return [word for word in task.job.arguments if task.job.name not in word]


def test_workers_get_the_command_that_was_typed(invoke, asked, tmp_path):
    result = invoke(
        "-q", "train", "--engine", "ray", "--workers", "8", "--gpus-per-worker", "1", "--reward", "success",
        "--tasks", "1,8", "--no-temporal", "--set", "grpo.prompts=3", "--set", "seed=4", "--name", "mine", "--json",
        "--max-failures", "0", "--ray-address", "auto", "--storage", "store", "--placement", "spread",
    )  # fmt: skip
    assert result.exit_code == 130
    ((settings, task),) = asked
    assert settings == ray.RaySettings(8, 1, 1, "auto", "SPREAD", 0)
    typed = ["--reward=success", "--no-temporal", "--tasks=1,8", "--set=grpo.prompts=3", "--set=seed=4"]
    assert options(task) == ["-q", "train", *typed]
    assert task.job.name.startswith("mine-")
    assert f"--name={task.job.name}" in task.job.arguments
    assert task.job.again == ["-q", "train", "--resume"]
    assert task.storage == str(tmp_path / "store")
    assert (task.runs, task.here, task.folder) == (str(tmp_path / "runs"), str(tmp_path), "")
    assert pickle.loads(pickle.dumps(task)).entry is run_command


def test_defaults(invoke, asked):
    assert invoke("train", "--engine", "ray").exit_code == 130
    ((settings, task),) = asked
    assert settings == ray.RaySettings(1, None, 1, None, "PACK", 3)
    assert options(task) == ["train"]
    assert task.storage is None


def test_cores_of_a_worker_are_cores_of_its_simulators(invoke, asked):
    invoke("train", "--engine", "ray", "--cpus-per-worker", "6")
    invoke("train", "--engine", "ray", "--cpus-per-worker", "6", "--set", "env.workers=2")
    assert [options(task) for _, task in asked] == [["train", "--set=env.workers=6"], ["train", "--set=env.workers=2"]]
    assert asked[0][0].cpus == 6


def test_a_configuration_travels_as_text(invoke, asked, tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 5\n")
    invoke("train", "--engine", "ray", "--config", "mine.yaml")
    ((_, task),) = asked
    ((path, text),) = task.job.files.items()
    assert text == "seed: 5\n"
    assert path.endswith("mine.yaml")
    assert f"--config={path}" in task.job.arguments


def test_settings_of_the_environment_travel(invoke, asked, monkeypatch, tmp_path):
    monkeypatch.setenv("VLACOACH_SEED", "9")
    monkeypatch.setenv("VLACOACH_CACHE", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    invoke("train", "--engine", "ray")
    ((settings, task),) = asked
    assert task.job.environment == {"VLACOACH_SEED": "9"}
    assert settings.address == "auto"


def test_a_run_is_gone_on_with(invoke, asked, tmp_path):
    with RunFolder.create(tmp_path / "runs", "first", TrainConfig()) as folder:
        folder.checkpoints.save(3, lambda path: (path / "x").write_text("data"), score=0.1)
    result = invoke("train", "--engine", "ray", "--resume", "latest", "--updates", "9", "--storage", "store")
    assert result.exit_code == 130, result.stderr
    ((_, task),) = asked
    assert task.job.arguments == ["train", "--updates=9", f"--resume={folder.path.name}"]
    assert task.job.again == []
    assert task.folder == folder.path.name
    # The storage had nothing newer.
    assert (tmp_path / "store" / folder.path.name / "checkpoints" / "000003" / "x").read_text() == "data"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--engine", "ray", "--watch"], "--watch starts a local training, and --engine is ray"),
        (["--engine", "ray", "--gpu", "A10G"], "--gpu is for a GPU that is rented"),
        (["--workers", "2"], "--workers is for a Ray cluster"),
        (["--storage", "x", "--engine", "modal"], "--storage is for a Ray cluster"),
        (["--engine", "ray", "--suite", "libero_gaol"], "Did you mean 'libero_goal'?"),
        (["--engine", "ray", "--name", "n" * 60], "is too long"),
        (["--engine", "ray", "--storage", "nonsense://x"], "nonsense://x cannot be used"),
        (["--engine", "ray", "--workers", "0"], "--workers"),
    ],
)
def test_what_is_refused_exits_2_and_leaves_nothing(invoke, tmp_path, args, message):
    result = invoke("train", *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_cannot_be_another(invoke, tmp_path, asked):
    with RunFolder.create(tmp_path / "runs", "first", TrainConfig()):
        pass
    result = invoke("train", "--engine", "ray", "--resume", "latest", "--seed", "5")
    assert result.exit_code == 2
    assert "cannot change seed from 0 to 5 (--seed)" in result.stderr
    assert asked == []


def test_without_ray_the_extra_is_named(invoke, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        ray_engine.importlib.util, "find_spec", lambda name: None if name in ("ray", "pandas") else found(name)
    )
    result = invoke("train", "--engine", "ray")
    assert result.exit_code == 2
    assert "ray and pandas not installed" in result.stderr
    assert "pip install 'vlacoach[ray]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_command_in_this_process_gives_its_status(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(["runs", "ls", "--json"]) == 0
    assert run_command(["nonsense"]) == 2
    assert run_command(["runs", "show", "nope"]) == 5
    assert CliRunner().invoke(app, ["runs", "show", "nope"]).exit_code == 5
    capsys.readouterr()
