"""Ray without a cluster: what is asked of one, what is said when it is not there, and how an attempt ends."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import ray

from vlacoach.cli.main import run_command
from vlacoach.errors import ConfigError
from vlacoach.launch.ray import RaySettings, _Heard, room, shortage, start
from vlacoach.launch.ray_worker import Ledger, Task, _lead
from vlacoach.launch.supervising import Job


def task(tmp_path, **fields):
    given = {"job": Job(["train"], name="run-a1b2c3"), "entry": run_command, "runs": str(tmp_path / "runs")}
    return Task(**{**given, "shared": "", "here": str(tmp_path), **fields})


def test_what_ray_train_is_asked_for():
    scaling = RaySettings(workers=8, gpus=1, cpus=6, placement="SPREAD").scaling()
    assert scaling.num_workers == 8
    assert scaling.use_gpu
    assert scaling.resources_per_worker == {"CPU": 6.0, "GPU": 1.0}
    assert scaling.placement_strategy == "SPREAD"
    alone = RaySettings(workers=2, gpus=0).scaling()
    assert not alone.use_gpu
    assert alone.resources_per_worker == {"CPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "needs", "expected"),
    [
        ([{"CPU": 4.0}], {"CPU": 1.0}, 4),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"CPU": 2.0}, 2),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 8.0}], {"CPU": 1.0, "GPU": 1.0}, 3),
        ([{"CPU": 16.0}], {"CPU": 1.0, "GPU": 1.0}, 0),
        ([], {"CPU": 1.0}, 0),
    ],
)
def test_room_is_counted_node_by_node(nodes, needs, expected):
    assert room(nodes, needs) == expected


def test_a_shortage_names_what_is_asked_and_what_is_there():
    settings = RaySettings(workers=8, gpus=1, cpus=2)
    assert shortage([{"CPU": 32.0, "GPU": 8.0}], settings) is None
    assert shortage([{"CPU": 6.0, "GPU": 4.0}, {"CPU": 8.0}], settings) == (
        "8 workers with 2 CPU and 1 GPU each do not fit on the cluster's nodes (6 CPU and 4 GPU; 8 CPU and 0 GPU): "
        "there is room for 3."
    )


def test_nobody_answers_at_an_address(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConfigError, match=f"No Ray cluster answers at {address}") as caught:
        start(RaySettings(address=address), task(tmp_path), print)
    assert "ray start --head" in str(caught.value)
    assert not (tmp_path / "runs").exists()
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["nonsense", "host:port", "ray://host:10001"])
def test_addresses_that_are_none(tmp_path, address):
    with pytest.raises(ConfigError, match=address):
        start(RaySettings(address=address), task(tmp_path), print)


def test_a_storage_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        start(RaySettings(), task(tmp_path, storage=str(tmp_path / "file")), print)


def test_the_first_to_settle_is_right():
    ledger = Ledger()
    ledger.begin()
    ledger.begin()
    assert (ledger.look().attempts, ledger.look().stop, ledger.look().status) == (2, False, None)
    ledger.stop()
    ledger.settle(6)
    ledger.settle(5, "Rank 0 stopped")
    assert (ledger.look().stop, ledger.look().status, ledger.look().reason) == (True, 6, "")


def test_rays_helpers_are_not_heard(capsys):
    heard = _Heard(sys.stderr)
    print("(PlacementGroupCleaner pid=7) Failed to query", file=heard)
    print("(RayTrainWorker pid=8) update 1/2", file=heard)
    heard.write("half")
    heard.flush()
    assert capsys.readouterr().err == "(RayTrainWorker pid=8) update 1/2\nhalf"


def test_the_run_of_a_task_is_found_by_its_name_or_folder(tmp_path):
    from vlacoach.runs.folder import RunFolder

    runs = tmp_path / "runs"
    with RunFolder.create(runs, "run-a1b2c3") as mine, RunFolder.create(runs, "other"):
        assert task(tmp_path).find(runs) == mine.path
        assert task(tmp_path, folder=mine.path.name).find(runs) == mine.path
        assert task(tmp_path, folder="gone").find(runs) is None
        assert task(tmp_path, job=Job([], name="run-000000")).find(Path(runs)) is None


def test_a_node_that_does_not_have_the_folder_of_runs_says_so(tmp_path, monkeypatch):
    settled = []

    class Settle:
        @staticmethod
        def remote(*what):
            settled.append(what)

    class Told:
        settle = Settle

    monkeypatch.setattr(ray, "get", lambda answer: answer)
    assert _lead(task(tmp_path, shared=str(tmp_path / "elsewhere")), Told) == 2
    ((status, reason),) = settled
    assert status == 2
    assert reason.endswith(f"where the first rank is, does not have {tmp_path / 'runs'}.")
