"""``vlacoach train --engine modal`` with Modal's own client, against a stand-in for its servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from modal_proto import api_pb2
from modal_server import ModalServer

import vlacoach
from vlacoach.errors import LaunchError
from vlacoach.launch.supervising import Job
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder

SOURCE = str(Path(vlacoach.__file__).parents[1])


class Trainer:
    """Takes the place of the container: leaves a run folder, as training does.

    Args:
        runs: Folder of all runs there.
        error: Raised at the end, if any.
        until: Waited for in the middle, if anything.
    """

    def __init__(self, runs, error=None, until=None):
        self.runs = runs
        self.error = error
        self.until = until
        self.jobs = []

    def __call__(self, fields):
        job = Job(**fields)
        self.jobs.append(job)
        with RunFolder.create(self.runs, job.name, TrainConfig(name=job.name)) as folder, folder.running():
            folder.log_metrics(1, {"rollout/success": 0.5})
            if self.until is not None:
                assert self.until.wait(60)
            folder.log_metrics(2, {"rollout/success": 0.6})
            folder.checkpoints.save(2, lambda path: (path / "weights").write_text("w"))
        if self.error is not None:
            raise self.error
        return {"status": 0, "output": "what was measured\n"}


def begin(folder, server, *arguments):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("VLACOACH_")},
        **server.environment,
        "HF_TOKEN": "hf_secret",
        "VLACOACH_GRPO__PROMPTS": "2",
        "PYTHONPATH": SOURCE,
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "vlacoach", "train", "--engine", "modal", "--yes", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )


def volumes_in(folder):
    (folder / "volumes" / "vlacoach-runs").mkdir(parents=True)
    return folder / "volumes"


class Finished:
    """A training that was started, and has ended well."""

    def __init__(self, folder):
        (folder / "settings.yaml").write_text("grpo:\n  updates: 3\n")
        root = volumes_in(folder)
        trainer = Trainer(root / "vlacoach-runs")
        with ModalServer(root, trainer) as server:
            process = begin(folder, server, "--gpu", "l4", "--config", "settings.yaml", "--name", "first")
            self.stdout, self.stderr = process.communicate(timeout=120)
        self.status = process.returncode
        self.requests = server.requests
        self.jobs = trainer.jobs
        self.runs = folder / "runs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Finished(tmp_path_factory.mktemp("finished"))


def test_what_the_command_printed_there_is_printed_here(finished):
    assert finished.status == 0, finished.stderr
    assert finished.stdout == "what was measured\n"


def test_the_cost_is_said_before(finished):
    assert finished.stderr.startswith("Modal L4 with 8 cores and 32 GiB: 1.43 USD an hour (list prices of 2025")
    assert "3 updates of" in finished.stderr


def test_the_container_is_given_the_command_that_was_typed(finished):
    (job,) = finished.jobs
    assert job.name.startswith("first-")
    assert job.arguments == [
        "train",
        "--config=/tmp/vlacoach/settings.yaml",
        "--set=env.workers=8",
        f"--name={job.name}",
        "--runs-dir=/runs",
    ]
    assert job.again == ["train", "--runs-dir=/runs", "--resume"]
    assert job.files == {"/tmp/vlacoach/settings.yaml": "grpo:\n  updates: 3\n"}
    assert job.environment == {"VLACOACH_GRPO__PROMPTS": "2"}


def test_the_run_is_copied_with_its_checkpoints(finished):
    (job,) = finished.jobs
    run = RunFolder.open("latest", finished.runs)
    assert run.info()["name"] == job.name
    assert run.status() == "finished"
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert run.checkpoints.last().name == "000002"
    assert json.loads((run.path / "modal.json").read_text()) == {"app": "ap-1", "call": "fc-1"}
    assert f"vlacoach watch {run.path.name}" in finished.stderr


def function(requests):
    (request,) = requests["FunctionCreate"]
    return request.function


def test_the_function_asks_for_the_machine_that_was_priced(finished):
    asked = function(finished.requests)
    assert (asked.resources.gpu_config.gpu_type, asked.resources.gpu_config.count) == ("L4", 1)
    assert (asked.resources.milli_cpu, asked.resources.memory_mb) == (8000, 32768)


def test_an_attempt_may_take_a_day_and_is_repeated(finished):
    asked = function(finished.requests)
    assert asked.timeout_secs == 86400
    assert asked.retry_policy.retries == 3


def test_the_function_is_found_in_the_installed_package(finished):
    asked = function(finished.requests)
    assert (asked.module_name, asked.function_name) == ("vlacoach.launch.modal", "train_in_container")
    assert asked.definition_type == api_pb2.Function.DEFINITION_TYPE_FILE
    # Modal's own client is all that is mounted: mounted source would hide the package and lack its assets.
    assert len(finished.requests["MountGetOrCreate"]) == 1 + 4  # Four copies for the image: three files, a folder.
    assert len(asked.mount_ids) <= 1


def test_the_function_has_both_volumes(finished):
    mounted = {mount.mount_path: mount.volume_id for mount in function(finished.requests).volume_mounts}
    assert mounted == {"/runs": "vo-vlacoach-runs", "/cache": "vo-vlacoach-cache"}


def test_the_hub_token_is_a_secret(finished):
    (secret,) = finished.requests["SecretGetOrCreate"]
    assert secret.env_dict == {"HF_TOKEN": "hf_secret"}
    assert "hf_secret" not in str(finished.jobs)


def test_the_image_has_libraries_then_dependencies_then_this_project(finished):
    lines = [line for one in finished.requests["ImageGetOrCreate"] for line in one.image.dockerfile_commands]
    text = "\n".join(lines)
    assert lines[0].startswith("FROM python:3.11")
    steps = ["install -y libegl1 libgl1 libgl1-mesa-dri", "'torch>=2.6,<2.14'", "COPY", "--no-deps /opt/vlacoach"]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    assert "'bitsandbytes>=0.48'" in text
    assert "ENV HF_HOME=/cache/huggingface" in lines
    assert "ENV VLACOACH_CACHE=/cache/vlacoach" in lines


def test_the_app_outlives_this_process(finished):
    (request,) = finished.requests["AppCreate"]
    assert request.app_state == api_pb2.APP_STATE_DETACHED


def wait_for(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_leaves_the_training_alone_and_resume_comes_back_to_it(tmp_path):
    root, over = volumes_in(tmp_path), threading.Event()
    trainer = Trainer(root / "vlacoach-runs", until=over)
    with ModalServer(root, trainer) as server:
        first = begin(tmp_path, server)
        wait_for(lambda: list(tmp_path.glob("runs/*/modal.json")), first)
        first.send_signal(signal.SIGINT)
        _, told = first.communicate(timeout=60)
        (run,) = [path.parent for path in tmp_path.glob("runs/2*/modal.json")]
        assert first.returncode == 130
        assert "The training goes on at Modal, as app ap-1." in told
        assert f"vlacoach train --engine modal --resume {run.name}" in told
        assert "Stop it: modal app stop ap-1" in told
        assert RunFolder(run).status() == "running"
        second = begin(tmp_path, server, "--resume", "latest")
        wait_for(lambda: len(server.requests["FunctionGetOutputs"]) >= 3, second)
        over.set()
        printed, told = second.communicate(timeout=60)
    assert (second.returncode, printed) == (0, "what was measured\n"), told
    assert "is at work at Modal; this goes on copying it." in told
    assert len(trainer.jobs) == 1  # Not a second training in the same folder.
    assert len(RunFolder(run).metrics()) == 2


@pytest.mark.slow
def test_a_run_that_failed_there_is_copied_and_its_error_is_this_commands(tmp_path):
    root = volumes_in(tmp_path)
    trainer = Trainer(root / "vlacoach-runs", error=LaunchError("The training ended with status -9.", "See the log."))
    with ModalServer(root, trainer) as server:
        process = begin(tmp_path, server)
        printed, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert printed == ""
    assert "Error: The training ended with status -9.\nSee the log." in told
    assert "goes on at Modal" not in told
    assert RunFolder.open("latest", tmp_path / "runs").checkpoints.last().name == "000002"


@pytest.mark.slow
def test_a_run_that_has_ended_is_resumed_by_a_new_container(tmp_path):
    root = volumes_in(tmp_path)
    with RunFolder.create(tmp_path / "runs", "first", TrainConfig()) as folder:
        folder.log_metrics(38, {"rollout/success": 0.5})
    jobs = []

    def work(fields):
        jobs.append(Job(**fields))
        return {"status": 6, "output": ""}

    with ModalServer(root, work) as server:
        absent = begin(tmp_path, server, "--resume", "first")
        _, told = absent.communicate(timeout=60)
        assert absent.returncode == 5
        assert "is not in Modal's volume vlacoach-runs" in told
        assert jobs == []
        (root / "vlacoach-runs" / folder.path.name).mkdir()
        process = begin(tmp_path, server, "--resume", "first", "--updates", "50")
        _, told = process.communicate(timeout=120)
    assert process.returncode == 6, told
    assert "12 updates of" in told
    (job,) = jobs
    assert job.arguments == ["train", "--updates=50", "--runs-dir=/runs", f"--resume={folder.path.name}"]
    assert (job.again, job.name) == ([], "")
