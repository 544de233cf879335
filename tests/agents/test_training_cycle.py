"""The whole cycle on real LIBERO, through the command line: train, evaluate, kill, interrupt, resume.

A policy with fresh weights reaches no goal in 24 steps, so a small scorer grades failures by how far the hand moved,
and is found the way any installed package's scorer is. Every run below that trains with it has the same configuration,
and so must end with the same numbers, however often it was stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from vlacoach.cli.main import app
from vlacoach.policies import new_tiny_policy
from vlacoach.runs.folder import RunFolder

pytestmark = pytest.mark.sim

SCORER = '''
import numpy as np

from vlacoach.rewards.scorers import SuccessScorer


class ReachScorer(SuccessScorer):
    """Grades failures by how far the hand moved."""

    name = "reach"

    def rewards(self, trajectories):
        moved = np.array([float((t.proprio[-1, :3] - t.proprio[0, :3]).norm()) for t in trajectories])
        return np.maximum(super().rewards(trajectories), 0.5 * moved / (moved + 0.05))


def make_reach(policy=None):
    return ReachScorer()
'''
SETTINGS = {
    "grpo.prompts": 2,
    "grpo.group_size": 2,
    "grpo.keep_graded": "true",
    "grpo.filter_high": 1.0,
    "grpo.learning_rate": 1e-3,
    "grpo.warmup_updates": 0,
    "grpo.epochs": 1,
    "grpo.minibatches": 2,
    "env.max_steps": 24,
    "env.num_envs": 4,
    "evaluation.trials": 2,
    "checkpoint.every": 1,
    "checkpoint.keep": 5,
}
PATIENCE = 400.0
"""Seconds that a stage may take on a busy machine."""


class House:
    """A folder with a policy, a scorer on the path, and runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = new_tiny_policy(0).save(folder / "fresh")
        self.plugins = folder / "plugins"
        package = self.plugins / "reach_scorer-1.0.dist-info"
        package.mkdir(parents=True)
        (self.plugins / "reach_scorer.py").write_text(SCORER)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: reach-scorer\nVersion: 1.0\n")
        (package / "entry_points.txt").write_text("[vlacoach.scorers]\nreach = reach_scorer:make_reach\n")

    def arguments(self, runs: str, *more: object, reward: str = "reach", updates: int = 3) -> list[str]:
        chosen = ["--reward", reward, "--suite", "libero_goal", "--tasks", "4,8", "--policy", str(self.policy)]
        chosen += ["--updates", str(updates), "--runs-dir", str(self.folder / runs)]
        for key, value in SETTINGS.items():
            chosen += ["--set", f"{key}={value}"]
        return ["train", *chosen, *(str(one) for one in more)]

    def invoke(self, *arguments: object) -> Any:
        return CliRunner().invoke(app, [str(one) for one in arguments])

    def start(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(self.plugins), "OMP_NUM_THREADS": "1"}
        with (self.folder / "output.txt").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "vlacoach", *arguments], env=environment, stdout=output, stderr=output
            )

    def resume(self, runs: str) -> dict[str, Any]:
        done = self.invoke("train", "--resume", "latest", "--runs-dir", self.folder / runs, "--json")
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(house.plugins)
        yield house


@pytest.fixture(scope="module")
def whole(house: House) -> dict[str, Any]:
    """What a run of three updates, never stopped, says about itself."""
    done = house.invoke(*house.arguments("whole", "--json"))
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def wait_for(process: subprocess.Popen[bytes], ready: Callable[[], bool], house: House) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, (house.folder / "output.txt").read_text()
        assert time.monotonic() < deadline, (house.folder / "output.txt").read_text()
        time.sleep(0.02)


def numbers(run: str) -> list[dict[str, Any]]:
    lines = [
        {key: value for key, value in line.items() if not key.startswith("time")}
        for line in RunFolder(Path(run)).metrics()
    ]
    return [line for line in lines if line.keys() - {"step"}]


def adapter(run: str, step: int) -> dict[str, np.ndarray]:
    folder = RunFolder(Path(run)).checkpoints.folder / f"{step:06d}" / "adapter"
    return dict(load_file(folder / "adapter_model.safetensors"))


def assert_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert numbers(one["run"]) == numbers(other["run"])
    first, second = adapter(one["run"], 3), adapter(other["run"], 3)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    for split, comparison in one["comparisons"].items():
        assert comparison["difference"] == other["comparisons"][split]["difference"]
        for when in ("before", "after"):
            assert comparison[when]["tasks"] == other["comparisons"][split][when]["tasks"]


def test_a_run_leaves_everything_behind(whole: dict[str, Any], house: House):
    run = Path(whole["run"])
    assert run.parent == house.folder / "whole"
    folder = RunFolder.open("latest", run.parent)
    assert folder.path.resolve() == run.resolve()
    assert folder.info()["status"] == "finished"
    expected = {"config.yaml", "run.json", "metrics.jsonl", "episodes.jsonl", "events.jsonl", "heartbeat"}
    assert expected | {"results.json", "learning_curve.png", "checkpoints", "videos"} <= {f.name for f in run.iterdir()}
    assert json.loads((run / "results.json").read_text()) == whole
    assert set(whole["comparisons"]) == {"held-out", "train"}
    held_out, train = whole["comparisons"]["held-out"]["after"], whole["comparisons"]["train"]["after"]
    assert [(task["task"], task["states"]) for task in held_out["tasks"]] == [(4, [30, 31]), (8, [30, 31])]
    assert [(task["task"], task["states"]) for task in train["tasks"]] == [(4, [0, 1]), (8, [0, 1])]
    assert all(length == 24 for task in held_out["tasks"] for length in task["lengths"])
    with Image.open(whole["artifacts"]["plot"]) as plot:
        assert plot.format == "PNG"
        assert min(plot.size) > 200
        assert len(np.unique(np.asarray(plot.convert("L")))) > 10
    assert [path.name for path in folder.checkpoints.entries()] == ["000000", "000001", "000002", "000003"]
    assert Path(whole["artifacts"]["adapter"]).resolve() == (folder.checkpoints.last() / "adapter").resolve()
    episodes = folder.episodes()
    assert len(episodes) == 12
    assert {line["init_state"] for line in episodes} <= set(range(30))
    assert all(line["length"] == 24 for line in episodes)


def test_a_run_trains_on_what_acted(whole: dict[str, Any]):
    updates = [line for line in numbers(whole["run"]) if "rollout/success" in line]
    assert [line["step"] for line in updates] == [1, 2, 3]
    for line in updates:
        assert line["train/steps"] == 2
        assert line["train/ratio_first"] == pytest.approx(1.0, abs=0.02)
        assert line["train/gradient_norm"] > 0
        assert line["rollout/env_steps"] == 4 * 24
    adapters = [adapter(whole["run"], step) for step in range(4)]
    assert not any(value.any() for name, value in adapters[0].items() if "lora_B" in name)
    for earlier, later in pairwise(adapters):
        assert any(not np.array_equal(earlier[name], later[name]) for name in earlier)


def test_the_video_shows_the_simulator_before_and_after(whole: dict[str, Any]):
    av = pytest.importorskip("av")
    with av.open(whole["artifacts"]["video"]) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    # Two tasks below each other, before and after beside each other; 3 looks, the end, and a second of standing still.
    assert frames[0].shape == (256, 256, 3)
    assert len(frames) == 3 + 1 + 5
    assert frames[0].std() > 20
    assert np.abs(frames[0].astype(int) - frames[3].astype(int)).max() > 50
    before, after = frames[0][:128, :128].astype(int), frames[0][:128, 128:].astype(int)
    assert np.abs(before - after).mean() < 12  # Both begin in the same state.


def test_eval_finds_the_success_that_train_reported(whole: dict[str, Any], house: House):
    done = house.invoke("eval", "--run", "latest", "--runs-dir", house.folder / "whole", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["tasks"] == whole["comparisons"]["held-out"]["after"]["tasks"]
    assert result["summary"] == whole["comparisons"]["held-out"]["after"]["summary"]


def test_a_killed_run_goes_on_as_if_nothing_had_been(whole: dict[str, Any], house: House):
    process = house.start(house.arguments("killed"))
    try:
        done = house.folder / "killed" / "latest" / "checkpoints" / "000001" / "manifest.json"
        wait_for(process, done.is_file, house)
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    # Nobody is left to tell the simulator's processes, and they must notice.
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    stopped = RunFolder.open("latest", house.folder / "killed")
    assert stopped.info()["status"] == "running"
    assert stopped.checkpoints.last().name in ("000001", "000002")
    result = house.resume("killed")
    assert Path(result["run"]).resolve() == stopped.path.resolve()
    assert_same_run(whole, result)


@pytest.mark.slow
def test_an_interrupted_run_saves_ends_with_130_and_goes_on(whole: dict[str, Any], house: House):
    process = house.start(house.arguments("interrupted"))
    try:
        folder = house.folder / "interrupted" / "latest"

        def rolling() -> bool:
            return folder.exists() and any(event.get("stage") == "rollout" for event in RunFolder(folder).events())

        wait_for(process, rolling, house)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130, (house.folder / "output.txt").read_text()
    finally:
        process.kill()
        process.wait()
    stopped = RunFolder.open("latest", house.folder / "interrupted")
    assert stopped.info()["status"] == "interrupted"
    assert int(stopped.checkpoints.last().name) in (1, 2)
    assert_same_run(whole, house.resume("interrupted"))


@pytest.mark.parametrize("reward", [pytest.param("siglip", marks=pytest.mark.slow), "success"])
def test_the_shipped_scorers_run_on_the_simulator(reward: str, house: House):
    more = ("--set", "evaluation.trials=1", "--set", "evaluation.train_states=false")
    done = house.invoke(*house.arguments(reward, *more, "--json", reward=reward, updates=1))
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["updates"], set(result["comparisons"])) == (1, {"held-out"})
    line = next(line for line in numbers(result["run"]) if "rollout/success" in line)
    assert line["reward/mean"] == line["rollout/success"] or reward == "siglip"
