"""``vlacoach train --engine ray`` on real LIBERO and two nodes, of which one is lost in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cluster_utils
from test_training_cycle import PATIENCE, House, adapter, house, numbers

import vlacoach
from vlacoach.runs.checkpoints import verify_checkpoint
from vlacoach.runs.constants import BYTES_SENT
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(1800)]
__all__ = ["house"]

UPDATES = 4


class Nodes:
    """Two nodes on this machine: the first has room for both workers, the second for one."""

    def __init__(self) -> None:
        self.cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        self.second: Any = None

    def complete(self) -> None:
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=1)
            self.cluster.wait_for_nodes()

    def lose_one(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@pytest.fixture(scope="module")
def nodes(house: House) -> Iterator[Nodes]:
    package = str(Path(vlacoach.__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{house.plugins}:{package}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Nodes()
        yield nodes
        nodes.cluster.shutdown()


def start(house: House, nodes: Nodes, runs: str, *more: str) -> subprocess.Popen[bytes]:
    nodes.complete()
    engine = ["--engine", "ray", "--ray-address", nodes.cluster.address, "--workers", "2", "--gpus-per-worker", "0"]
    engine += ["--placement", "spread", "--set", "env.workers=1", "--set", "env.num_envs=2", "--json"]
    arguments = house.arguments(runs, *engine, *more, updates=UPDATES)
    with (house.folder / "output.txt").open("wb") as errors, (house.folder / "result.json").open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", "vlacoach", *arguments], stdout=output, stderr=errors)


def finish(house: House, process: subprocess.Popen[bytes], status: int = 0) -> dict[str, Any]:
    try:
        code = process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert code == status, said(house)
    return dict(json.loads((house.folder / "result.json").read_text())) if status == 0 else {}


def said(house: House) -> str:
    return (house.folder / "output.txt").read_text()


def wait_for_update(house: House, process: subprocess.Popen[bytes], folder: Path, update: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(folder.glob(f"*/checkpoints/{update:06d}/manifest.json")):
        assert process.poll() is None, said(house)
        assert time.monotonic() < deadline, said(house)
        time.sleep(0.1)


def counted(run: str) -> list[dict[str, Any]]:
    """Metrics but for times, and for what a process that is started again counts anew."""
    return [{key: value for key, value in line.items() if key != BYTES_SENT} for line in numbers(run)]


def assert_same(whole: dict[str, Any], other: dict[str, Any]) -> None:
    assert other["updates"] == UPDATES
    assert counted(whole["run"]) == counted(other["run"])
    first, second = adapter(whole["run"], UPDATES), adapter(other["run"], UPDATES)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    for split, comparison in whole["comparisons"].items():
        for when in ("before", "after"):
            assert comparison[when]["tasks"] == other["comparisons"][split][when]["tasks"]


@pytest.fixture(scope="module")
def whole(house: House, nodes: Nodes) -> dict[str, Any]:
    """A run that nothing disturbs."""
    began = time.monotonic()
    result = finish(house, start(house, nodes, "whole"))
    print(f"undisturbed: {time.monotonic() - began:.0f} s")
    return result


def test_workers_on_two_nodes_train(whole: dict[str, Any], house: House):
    lines = [line for line in numbers(whole["run"]) if "rollout/success" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["train/gradient_norm"] > 0 for line in lines)
    assert all(line[BYTES_SENT] > 0 for line in numbers(whole["run"]) if BYTES_SENT in line)
    assert RunFolder(Path(whole["run"])).info()["status"] == "finished"
    assert sorted(path.name for path in (house.folder / "whole").iterdir()) == [Path(whole["run"]).name, "latest"]


@pytest.mark.parametrize("storage", [False, True], ids=["shared disk", "storage"])
def test_the_loss_of_a_node_changes_no_number(whole: dict[str, Any], house: House, nodes: Nodes, storage: bool):
    runs = f"lost_{storage}"
    place = house.folder / (f"storage_{storage}" if storage else runs)
    began = time.monotonic()
    process = start(house, nodes, runs, *(["--storage", str(place)] if storage else []))
    try:
        wait_for_update(house, process, place, 2)
        nodes.lose_one()
        lost = time.monotonic()
    except BaseException:
        process.kill()
        process.wait()
        raise
    result = finish(house, process)
    assert_same(whole, result)
    assert "The group was started again, for the 1. time" in said(house)
    (run,) = list_runs(house.folder / runs)
    assert str(run) == result["run"]
    folder = RunFolder(run)
    assert len(folder.info()["resumed"]) == 1
    assert (folder.checkpoints.folder / "last").resolve().name == f"{UPDATES:06d}"
    for checkpoint in folder.checkpoints.entries():
        verify_checkpoint(checkpoint)
    print(f"storage {storage}: {lost - began:.0f} s until the loss, {time.monotonic() - began:.0f} s in all")


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(whole: dict[str, Any], house: House, nodes: Nodes):
    place = house.folder / "storage_stopped"
    process = start(house, nodes, "stopped", "--storage", str(place))
    wait_for_update(house, process, place, 0)
    process.send_signal(signal.SIGINT)
    finish(house, process, 130)
    (run,) = list_runs(house.folder / "stopped")
    assert f"--storage {place} --resume {run.name}" in said(house)
    assert RunFolder(run).info()["status"] == "interrupted"
    assert int(RunFolder(run).checkpoints.last().name) < UPDATES
    nodes.complete()
    resumed = ["--engine", "ray", "--ray-address", nodes.cluster.address, "--workers", "2", "--gpus-per-worker", "0"]
    resumed += ["--storage", str(place), "--resume", run.name, "--runs-dir", str(run.parent), "--json"]
    with (house.folder / "output.txt").open("wb") as errors, (house.folder / "result.json").open("wb") as output:
        again = subprocess.Popen([sys.executable, "-m", "vlacoach", "train", *resumed], stdout=output, stderr=errors)
    assert_same(whole, finish(house, again))
