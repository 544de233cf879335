"""Stands in for ``vlacoach train`` in Ray's workers: keeps a run folder as a training does, in no time.

What the first rank does after its first checkpoint is said by ``--set=seed=...``, the only setting that it reads.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from vlacoach.errors import ExitCode
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.control import read_control
from vlacoach.runs.folder import RunFolder

FAILS_ONCE, DIVERGES, WAITS = "--set=seed=1", "--set=seed=2", "--set=seed=3"


def run(arguments: list[str]) -> int:
    print("printed by a worker")
    if os.environ["RANK"] != "0":
        assert arguments == ["train"]
        assert os.environ["WORLD_SIZE"] == "2"
        return ExitCode.OK
    runs = arguments[-1].removeprefix("--runs-dir=")
    if "--resume" in arguments:
        with RunFolder.resume(arguments[arguments.index("--resume") + 1], runs) as folder, folder.running():
            folder.log_metrics(2, {"rollout/success": 0.75})
            folder.checkpoints.save(2, write)
        return ExitCode.OK
    name = next(word for word in arguments if word.startswith("--name=")).removeprefix("--name=")
    with RunFolder.create(runs, name, TrainConfig()) as folder, folder.running():
        folder.log_metrics(1, {"rollout/success": 0.5})
        (folder.path / "videos").mkdir()
        (folder.path / "videos" / "before.mp4").write_text("video")
        folder.checkpoints.save(1, write)
        if WAITS in arguments:
            while not read_control(folder.path).stop:
                time.sleep(0.1)
            return ExitCode.INTERRUPTED
    return ExitCode.DIVERGED if DIVERGES in arguments else ExitCode.FAILURE


def write(folder: Path) -> None:
    (folder / "adapter").write_text("weights")
