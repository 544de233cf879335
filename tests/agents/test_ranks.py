"""Two processes that train together come to what one comes to, and say which of them is lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_program import HERE, SETTINGS, learned
from safetensors.torch import load_file

import vlacoach
from vlacoach.agents.ranks import Ranks


def start(what: str, folder: Path, size: int = 2) -> None:
    """Run the program with ``size`` ranks, to its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    package = str(Path(vlacoach.__file__).parents[1])
    common = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(size)}
    command = [sys.executable, str(HERE / "rank_program.py"), what, str(folder)]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-3000:]


def said(what: str, rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{what}_{rank}.json").read_text())
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks found, one thing after the other."""
    folder = tmp_path_factory.mktemp("ranks")
    start(",".join([*SETTINGS, "exchange", "slow", "drift", "stop"]), folder)
    return folder


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_two_ranks_score_compare_and_learn_as_one_does(name: str, together: Path):
    alone = learned(name, Ranks())
    parts = [load_file(together / f"{name}_{rank}.safetensors") for rank in range(2)]
    slots = {key for key in alone if ".reward." in key or ".advantage." in key}
    # Each trajectory is on one rank only, and every group is whole.
    owners = [{key for key in part if key in slots} for part in parts]
    assert owners[0] | owners[1] == slots
    assert not owners[0] & owners[1]
    assert all(owners)
    for part in parts:
        for key in part.keys() & slots:
            torch.testing.assert_close(part[key], alone[key], atol=1e-6, rtol=0)
        shared = alone.keys() - slots
        assert part.keys() - slots == shared
        for key in sorted(shared - {"weights"}):
            torch.testing.assert_close(
                part[key], alone[key], atol=1e-6, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
        torch.testing.assert_close(part["weights"], alone["weights"], atol=1e-5, rtol=0)
    assert torch.equal(parts[0]["weights"], parts[1]["weights"])
    assert any(value.abs().max() > 0 for key, value in alone.items() if key.startswith("gradient"))


def test_what_ranks_exchange_is_the_same_everywhere(together: Path):
    first, second = (said("exchange", rank, together) for rank in range(2))
    assert (first.pop("mine"), second.pop("mine")) == ([0, 2, 4], [1, 3])
    assert first == second
    assert first["gathered"] == [[1, 1]]
    assert first["json"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "ä"}]
    assert first["added"] == [[3.0] * 4, [1.0]]
    assert first["bytes"] == 5 * 4
    assert first["sent"] == "from the leader"
    assert first["any"] == [True, False]


def test_a_rank_that_is_slow_but_works_is_waited_for(together: Path):
    assert said("slow", 0, together) == {"met": [0, 1]}


def test_weights_that_drift_apart_stop_all(together: Path):
    for rank in range(2):
        assert "The weights of rank 1 are no longer those of rank 0" in said("drift", rank, together)["error"]


def test_a_rank_that_stops_takes_the_others_along_with_its_reason(together: Path):
    assert "Rank 1 stopped, so rank 0 does: The disk is full." in said("stop", 0, together)["error"]


def test_a_rank_that_hangs_is_named_with_its_stage(tmp_path: Path):
    start("hang", tmp_path)
    error = said("hang", 0, tmp_path)["error"]
    assert "Rank 1 has given no sign of life for 1.5 s: it was last at rollout of update 7" in error
    assert "while rank 0 waits with a message at reward of update 7" in error


def test_the_loss_of_the_leading_rank_is_noticed(tmp_path: Path):
    start("vanish", tmp_path)
    assert "Rank 1 lost touch with the others at rollout of update 1" in said("vanish", 1, tmp_path)["error"]


@pytest.mark.slow
def test_a_rank_without_a_group_takes_part(tmp_path: Path):
    start("success", tmp_path, size=4)
    weights = [load_file(tmp_path / f"success_{rank}.safetensors")["weights"] for rank in range(4)]
    torch.testing.assert_close(weights[0], learned("success", Ranks())["weights"], atol=1e-5, rtol=0)
    assert all(torch.equal(weights[0], other) for other in weights[1:])
