"""Groups on a cluster of two nodes on this machine; a stand-in for the training ends as it is told to."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray_entry
from ray.cluster_utils import Cluster

import vlacoach
from vlacoach.errors import ConfigError, LaunchError
from vlacoach.launch.ray import RAY_FOLDER, RaySettings, start
from vlacoach.launch.ray_worker import Task
from vlacoach.launch.supervising import Job
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder


@pytest.fixture(scope="module")
def address():
    with pytest.MonkeyPatch.context() as patch:
        # For whatever the nodes start.
        patch.setenv("PYTHONPATH", f"{Path(ray_entry.__file__).parent}:{Path(vlacoach.__file__).parents[1]}")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        yield cluster.address
        cluster.shutdown()


def task(tmp_path, what, storage=None, runs="runs"):
    job = Job(["train", what, "--name=run-a1b2c3"], ["train", "--resume"], "run-a1b2c3")
    return Task(job, ray_entry.run, str(tmp_path / runs), "", str(tmp_path), storage)


def settings(address):
    return RaySettings(workers=2, gpus=0, address=address, max_failures=2)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_group_that_failed_goes_on_from_what_is_stored(address, tmp_path, capfd):
    storage = tmp_path / "storage"
    said: list[str] = []
    status = start(settings(address), task(tmp_path, ray_entry.FAILS_ONCE, str(storage)), said.append)
    assert status == 0, said
    (run,) = list_runs(tmp_path / "runs")
    folder = RunFolder(run)
    assert [line["rollout/success"] for line in folder.metrics()] == [0.5, 0.75]
    assert [path.name for path in folder.checkpoints.entries()] == ["000001", "000002"]
    assert folder.checkpoints.named("last").name == "000002"
    assert folder.info()["status"] == "finished"
    assert len(folder.info()["resumed"]) == 1
    assert (run / "videos" / "before.mp4").is_file()
    assert [line for line in said if "started again" in line] == ["The group was started again, for the 1. time of 2."]
    assert any(f"Watch it: vlacoach watch {run.name}" in line for line in said)
    # Nothing but runs is left, and nothing was printed but narration.
    assert {path.name for path in storage.iterdir()} == {run.name}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {run.name, "latest"}
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_would_fail_again_is_not_tried_again(address, tmp_path):
    said: list[str] = []
    assert start(settings(address), task(tmp_path, ray_entry.DIVERGES), said.append) == 6
    (run,) = list_runs(tmp_path / "runs")
    assert len(RunFolder(run).metrics()) == 1
    assert not (run.parent / RAY_FOLDER).exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_after_too_many_failures_ray_gives_up_and_the_run_stays(address, tmp_path):
    with pytest.raises(LaunchError, match=r"Ray gave the training up.*Rank 0 ended with status 1") as caught:
        start(replace(settings(address), max_failures=0), task(tmp_path, ray_entry.FAILS_ONCE), print)
    (run,) = list_runs(tmp_path / "runs")
    assert f"--resume {run.name}" in str(caught.value)
    assert RunFolder(run).checkpoints.last().name == "000001"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_politely_and_says_how_to_go_on(address, tmp_path, number):
    said: list[str] = []

    def interrupt():
        while not list_runs(tmp_path / "runs"):
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    assert start(settings(address), task(tmp_path, ray_entry.WAITS), said.append) == 130
    (run,) = list_runs(tmp_path / "runs")
    assert any(line.startswith("SIG") and "stopping after this update" in line for line in said)
    assert said[-1] == f"Go on with: vlacoach train --engine ray --workers 2 --resume {run.name}"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_cluster_that_is_too_small_is_said_to_be(address, tmp_path):
    said: list[str] = []

    def lose_patience():
        while not said:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=lose_patience, daemon=True).start()
    asked = RaySettings(workers=3, gpus=0, address=address)
    with pytest.raises(KeyboardInterrupt):
        start(asked, task(tmp_path, ray_entry.FAILS_ONCE), said.append)
    assert said[0].startswith("3 workers with 1 CPU each do not fit on the cluster's nodes (1 CPU; 1 CPU)")
    assert said[-1] == "Nothing had begun that could be gone on with."


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_on_this_machine_alone_too_many_are_refused(tmp_path):
    asked = RaySettings(workers=100_000, gpus=0)
    with pytest.raises(ConfigError, match="100000 workers with 1 CPU each do not fit"):
        start(asked, task(tmp_path, ray_entry.FAILS_ONCE), print)
    assert not (tmp_path / "runs").exists()
