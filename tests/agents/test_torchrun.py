"""torchrun itself, on LIBERO: a rank is killed, all are started again, and no number changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import vlacoach
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder

pytestmark = [pytest.mark.sim, pytest.mark.slow]

SETTINGS = ["env.workers=1", "env.num_envs=2", "env.max_steps=56", "grpo.prompts=2", "grpo.group_size=4"]
SETTINGS += ["grpo.filter_low=0", "grpo.filter_high=1", "checkpoint.every=1", "evaluation.trials=2"]
SETTINGS += ["evaluation.train_states=false"]


def start(runs: Path) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    train = [
        "-m",
        "vlacoach",
        "train",
        "--reward",
        "success",
        "--tasks",
        "8",
        "--updates",
        "3",
        "--runs-dir",
        str(runs),
    ]
    words = [word for one in SETTINGS for word in ("--set", one)]
    package = str(Path(vlacoach.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, *train, *words, "--runs-dir", str(runs)], env=environment)


def finished(runs: Path) -> dict[str, Any]:
    folder = RunFolder(list_runs(runs)[-1])
    dropped = ("time", "ranks/")
    lines = [{key: v for key, v in line.items() if not key.startswith(dropped)} for line in folder.metrics()]
    adapter = folder.checkpoints.last() / "adapter" / "adapter_model.safetensors"
    return {"metrics": lines, "adapter": adapter.read_bytes(), "status": folder.info()["status"]}


def rank_of(process: psutil.Process) -> int:
    return int(process.environ().get("RANK", "-1"))


def test_a_rank_that_is_killed_is_started_again_with_the_rest_and_changes_no_number(tmp_path: Path):
    assert start(tmp_path / "whole").wait(300) == 0
    torchrun = start(tmp_path / "killed")
    deadline = time.monotonic() + 200
    while not any(RunFolder(run).checkpoints.entries()[1:] for run in list_runs(tmp_path / "killed")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (victim,) = [one for one in psutil.Process(torchrun.pid).children() if rank_of(one) == 1]
    victim.send_signal(signal.SIGKILL)
    assert torchrun.wait(300) == 0
    (run,) = list_runs(tmp_path / "killed")
    assert len(json.loads((run / "run.json").read_text())["resumed"]) == 1
    assert finished(tmp_path / "killed") == finished(tmp_path / "whole")
