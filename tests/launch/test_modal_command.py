"""``vlacoach train --engine modal`` with Modal's own client, against a stand-in for its servers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from modal_server import ModalServer

import vlacoach
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder

SOURCE = str(Path(vlacoach.__file__).parents[1])


class Trainer:
    """Takes the place of the container: leaves a run folder, as training does."""

    def __init__(self, root, error=None):
        self.runs = root / "vlacoach-runs"
        self.jobs = []
        self.error = error

    def __call__(self, job):
        self.jobs.append(job)
        with RunFolder.create(self.runs, job["name"], TrainConfig(name=job["name"])) as folder, folder.running():
            folder.log_metrics(1, {"rollout/success": 0.5})
            folder.checkpoints.save(1, lambda path: (path / "weights").write_text("w"))
        if self.error is not None:
            raise self.error
        return {"status": 0, "output": "what was measured\n"}


def train(tmp_path, server, *arguments):
    environment = {**os.environ, **server.environment, "HF_TOKEN": "hf_secret", "COLUMNS": "200", "PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "vlacoach", "train", "--engine", "modal", "--runs-dir", str(tmp_path / "runs")]
    return subprocess.run(
        [*command, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / "volumes" / "vlacoach-runs").mkdir(parents=True)
    return tmp_path / "volumes"


def test_a_training_is_started_and_its_run_copied(tmp_path, root):
    trainer = Trainer(root)
    with ModalServer(root, trainer) as server:
        done = train(tmp_path, server, "--yes", "--gpu", "L4", "--updates", "3", "--name", "first")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "what was measured\n"
    assert "Modal L4 with 8 cores and 32 GiB" in done.stderr
    print(asdict, done.stderr, server.requests.keys())
