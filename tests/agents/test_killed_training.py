"""``vlacoach train`` is killed at random moments and resumed, and ends with the very numbers of a run that was not.

The command is the real one, in processes of its own that are killed with SIGKILL; the world is the toy one, so that
hundreds of kills cost minutes. ``test_training_cycle`` does the same on real LIBERO.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_envs import toy_config, toy_policy
from toy_trainer import Trainer, Trainers

from vlacoach.runs.checkpoints import verify_checkpoint
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.yaml_io import write_config


class House:
    """A folder with a policy, a configuration, and runs."""

    def __init__(self, folder: Path, trainers: Trainers) -> None:
        self.folder = folder
        self.trainers = trainers
        config = toy_config(
            name="toy",
            policy={"path": str(toy_policy().save(folder / "policy"))},
            reward={"name": "siglip-t", "reference": "bank", "refit_every": 2, "params": {"steps": 8}},
            grpo={"updates": 3, "minibatches": 2, "prompts": 4},
            evaluation={"every": 2, "trials": 2},
            checkpoint={"every": 1},
            logging={"episodes": 1},
        )
        write_config(config, folder / "config.yaml")
        self.whole = self.finish("whole")

    def arguments(self, runs: str) -> list[object]:
        """Start, or go on if there is something to go on with."""
        root = self.folder / runs
        begin = ["--resume", "latest"] if list_runs(root) else ["--config", self.folder / "config.yaml"]
        return ["train", *begin, "--runs-dir", root]

    def start(self, runs: str, fault: str = "") -> Trainer:
        return self.trainers.start(self.arguments(runs), fault)

    def finish(self, runs: str) -> dict[str, Any]:
        trainer = self.start(runs)
        assert trainer.wait() == 0, trainer.output
        return outcome(list_runs(self.folder / runs)[-1])

    def stages(self, runs: str) -> list[str]:
        """Stages that the latest run has begun, over all its processes."""
        found = list_runs(self.folder / runs)
        return [event["stage"] for event in RunFolder(found[-1]).events() if event.get("stage")] if found else []


def outcome(run: Path) -> dict[str, Any]:
    """Everything about a run that must not depend on whether it was stopped."""
    folder = RunFolder(run)
    results = json.loads((run / "results.json").read_text())
    for comparison in results["comparisons"].values():
        for when in ("before", "after"):
            del comparison[when]["seconds"]
    last = folder.checkpoints.last()
    files = ("adapter/adapter_model.safetensors", "training_state/state.safetensors", "training_state/state.json")
    timeless = [{key: v for key, v in line.items() if not key.startswith("time")} for line in folder.metrics()]
    return {
        "metrics": timeless,
        "episodes": [{key: v for key, v in line.items() if key != "time"} for line in folder.episodes()],
        "comparisons": results["comparisons"],
        "checkpoints": [path.name for path in folder.checkpoints.entries()],
        "best": folder.checkpoints.best().name,
        "files": {name: (last / name).read_bytes() for name in files},
        "scorer": {file.name: file.read_bytes() for file in sorted((last / "scorer").iterdir())},
    }


def assert_nothing_was_lost(house: House, runs: str) -> None:
    """What is there after a kill can be read, and the newest checkpoint loads."""
    for path in list_runs(house.folder / runs):
        folder = RunFolder(path)
        folder.metrics()
        for entry in folder.checkpoints.entries():
            verify_checkpoint(entry)


def kill_at_changes(house: House, runs: str, changes: Iterable[int]) -> Counter[str]:
    """Kill at each of these changes of the run folder, one after the other, each time going on; in which stage."""
    stages: Counter[str] = Counter()
    for change in changes:
        trainer = house.start(runs, f"kill-at:{change}")
        if trainer.wait() == 0:
            break  # What was left to do had fewer changes.
        assert trainer.status == -signal.SIGKILL, trainer.output
        assert_nothing_was_lost(house, runs)
        stages[(house.stages(runs) or ["start"])[-1]] += 1
    return stages


def kill_in_stage(house: House, runs: str, stage: str, after: float) -> str:
    """Kill some time after a stage has begun, or the next stage, if that comes first; in which stage it was."""
    before = len(house.stages(runs))
    trainer = house.start(runs)
    trainer.until(lambda: stage in house.stages(runs)[before:])
    time.sleep(after)
    trainer.signal(signal.SIGKILL)
    assert trainer.wait() == -signal.SIGKILL, trainer.output
    assert_nothing_was_lost(house, runs)
    return house.stages(runs)[-1]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    trainers = Trainers(folder)
    yield House(folder, trainers)
    trainers.close()


def test_kills_between_any_two_changes_of_the_folder_change_no_number(house: House):
    stages = kill_at_changes(house, "changes", [3, 12, 40, 40, 75])
    assert sum(stages.values()) == 5
    assert house.finish("changes") == house.whole


def test_kills_in_each_stage_change_no_number(house: House):
    rng = random.Random(0)
    for stage in ("evaluation", "rollout", "reward", "update", "checkpoint"):
        kill_in_stage(house, "stages", stage, 0.05 * rng.random())
    assert house.finish("stages") == house.whole


@pytest.mark.slow
def test_a_hundred_kills_change_no_number(house: House):
    """Prints in which stages they came, for docs/reliability.md; run it with ``-s``."""
    rng = random.Random(1)
    stages: Counter[str] = Counter()
    kills = 0
    for number in range(10):
        runs = f"many_{number}"
        for _ in range(5):
            stages += kill_at_changes(house, runs, [rng.randint(1, 90)])
            stage = rng.choice(["evaluation", "rollout", "reward", "filter", "advantage", "update", "checkpoint"])
            stages[kill_in_stage(house, runs, stage, 0.3 * rng.random() ** 2)] += 1
        kills = sum(stages.values())
        assert house.finish(runs) == house.whole
    print(f"{kills} kills: {dict(stages)}")
    assert kills >= 20
