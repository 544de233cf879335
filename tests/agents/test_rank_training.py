"""The command, started twice to train together on the toy world: as one process, and on from where it was killed."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from safetensors.numpy import load
from toy_house import House, outcome
from toy_trainer import Trainer, Trainers

from vlacoach.errors import ExitCode
from vlacoach.runs.folder import RunFolder


class Pair:
    """Two processes that torchrun might have started, each from a nursery of its own."""

    def __init__(self, house: House, second: Trainers) -> None:
        self.house = house
        self._trainers = (house.trainers, second)

    def start(self, runs: str, restarts: int = 0, more: Sequence[str] = ()) -> tuple[Trainer, Trainer]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        common |= {"TORCHELASTIC_RESTART_COUNT": restarts, "TORCHELASTIC_RUN_ID": runs}
        command = ["train", "--config", self.house.folder / "config.yaml", "--runs-dir", self.house.folder / runs]
        first, second = (
            trainers.start([*command, *more], environment={**common, "RANK": rank, "LOCAL_RANK": rank})
            for rank, trainers in enumerate(self._trainers)
        )
        return first, second

    def finish(self, runs: str, restarts: int = 0) -> dict[str, Any]:
        for trainer in self.start(runs, restarts):
            assert trainer.wait() == 0, trainer.output
        return outcome(self.house.run(runs))


@pytest.fixture(scope="module")
def pair(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    second = Trainers(tmp_path_factory.mktemp("second"))
    yield Pair(house, second)
    second.close()


@pytest.fixture(scope="module")
def whole(pair: Pair) -> dict[str, Any]:
    return pair.finish("together")


def test_two_processes_train_as_one_does(pair: Pair, whole: dict[str, Any]):
    alone = pair.house.whole
    assert whole["comparisons"] == alone["comparisons"]
    assert whole["checkpoints"] == alone["checkpoints"]
    assert len(whole["episodes"]) == len(alone["episodes"]) > 0
    for ours, theirs in zip(whole["episodes"], alone["episodes"], strict=True):
        assert without_ranks(ours) == pytest.approx(without_ranks(theirs), abs=1e-5)
    sent = [line.pop("ranks/bytes_sent") for line in whole["metrics"] if "ranks/bytes_sent" in line]
    assert sent == sorted(sent)
    assert sent[0] > 0
    for ours, theirs in zip(whole["metrics"], alone["metrics"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-4)
    name = "adapter/adapter_model.safetensors"
    ours, theirs = load(whole["files"][name]), load(alone["files"][name])
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-5)


def test_one_that_is_killed_is_missed_and_the_next_start_goes_on_with_the_same_numbers(
    pair: Pair, whole: dict[str, Any]
):
    leader, other = pair.start("killed", more=["--set", "guards.rank=2"])
    leader.until(lambda: pair.house.stages("killed").count("rollout") >= 2)
    other.signal(signal.SIGKILL)
    assert other.wait() == -signal.SIGKILL
    assert leader.wait() == ExitCode.RUN
    assert "Rank 1 has given no sign of life for 2 s" in leader.output or "lost touch" in leader.output
    run = pair.house.run("killed")
    assert RunFolder(run).info()["status"] == "failed"
    ended = pair.finish("killed", restarts=1)
    assert pair.house.run("killed") == run
    assert timeless(ended) == timeless(whole)


def test_ctrl_c_stops_both_after_the_update_and_they_go_on(pair: Pair, whole: dict[str, Any]):
    leader, other = pair.start("stopped")
    leader.until(lambda: pair.house.stages("stopped").count("rollout") >= 2)
    # Only one of them is told; the other learns it.
    other.signal(signal.SIGINT)
    assert [leader.wait(), other.wait()] == [ExitCode.INTERRUPTED] * 2, leader.output + other.output
    assert timeless(pair.finish("stopped", restarts=1)) == timeless(whole)


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on how often the ranks had to meet."""
    return {**found, **{key: [without_ranks(line) for line in found[key]] for key in ("metrics", "episodes")}}


def without_ranks(line: dict[str, Any]) -> dict[str, Any]:
    """Without what only the leading rank records, or counts."""
    return {key: value for key, value in line.items() if key not in ("ranks/bytes_sent", "video", "progress")}
