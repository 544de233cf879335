"""A place where the toy world is trained on by processes of their own, and what is looked at afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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

    def start(self, runs: str | Path, fault: str = "", *more: str) -> Trainer:
        """Train in a folder of runs, or go on with the one that is there."""
        root = self.folder / runs
        begin = ["--resume", "latest"] if list_runs(root) else ["--config", self.folder / "config.yaml"]
        return self.trainers.start(["train", *begin, "--runs-dir", root, *more], fault)

    def start_long(self, runs: str | Path) -> Trainer:
        """Start a run whose first evaluation takes longer than anybody waits, and wait until it is under way."""
        trainer = self.start(runs, "", "--set", "evaluation.trials=5000")
        trainer.until(lambda: "evaluation" in self.stages(runs))
        return trainer

    def finish(self, runs: str | Path, fault: str = "") -> dict[str, Any]:
        trainer = self.start(runs, fault)
        assert trainer.wait() == 0, trainer.output
        return outcome(self.run(runs))

    def run(self, runs: str | Path) -> Path:
        """The latest run of a folder."""
        return list_runs(self.folder / runs)[-1]

    def stages(self, runs: str | Path) -> list[str]:
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


def assert_nothing_was_lost(house: House, runs: str | Path) -> None:
    """What is there after a kill can be read, and the newest checkpoint loads."""
    for path in list_runs(house.folder / runs):
        folder = RunFolder(path)
        folder.metrics()
        for entry in folder.checkpoints.entries():
            verify_checkpoint(entry)
