"""What goes wrong around a training run: signals, clocks, disks, folders. It ends with the right status and a message
that says what to do, nothing is lost, and the run that goes on has the numbers of one to which nothing happened.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_house import House, assert_nothing_was_lost, outcome
from toy_trainer import Trainer

from vlacoach.errors import ExitCode
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder


def in_stage(house: House, runs: str, stage: str) -> Trainer:
    trainer = house.start(runs)
    trainer.until(lambda: stage in house.stages(runs))
    return trainer


@pytest.mark.parametrize(
    ("number", "stage", "done"),
    [(signal.SIGTERM, "evaluation", {0}), (signal.SIGINT, "rollout", {1}), (signal.SIGTERM, "update", {1, 2})],
)
def test_one_signal_finishes_the_stage_saves_and_ends_with_130(
    number: signal.Signals, stage: str, done: set[int], house: House
):
    runs = f"one_{number.name}_{stage}"
    trainer = in_stage(house, runs, stage)
    trainer.signal(number)
    assert trainer.wait() == ExitCode.INTERRUPTED, trainer.output
    assert f"{number.name}: stopping after this update" in trainer.output
    assert "go on with: vlacoach train --resume latest" in trainer.output
    folder = RunFolder(house.run(runs))
    assert folder.status() == "interrupted"
    assert int(folder.checkpoints.last().name) in done
    assert house.finish(runs) == house.whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_signals_leave_at_once_and_the_last_checkpoint_is_intact(number: signal.Signals, house: House):
    runs = f"two_{number.name}"
    trainer = house.start_long(runs)
    trainer.signal(number)
    trainer.until(lambda: "stopping after this update" in trainer.output)
    trainer.signal(number)
    assert trainer.wait() == ExitCode.INTERRUPTED, trainer.output
    folder = RunFolder(house.run(runs))
    assert folder.status() == "interrupted"
    assert int(folder.checkpoints.last().name) == 0
    assert not (folder.path / "baseline.json").exists()


def test_a_signal_before_anything_began_ends_with_130_and_leaves_no_folder(house: House):
    trainer = house.trainers.start(
        ["train", "--config", house.folder / "config.yaml", "--runs-dir", house.folder / "early"]
    )
    trainer.until(lambda: (house.folder / "early").exists())
    trainer.signal(signal.SIGTERM)
    assert trainer.wait() == ExitCode.INTERRUPTED, trainer.output
    assert [path for path in list_runs(house.folder / "early") if not (path / "checkpoints").exists()] == []


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_a_trainer_that_is_stopped_for_a_while_goes_on_as_if_nothing_had_been(seconds: int, house: House):
    runs = f"suspended_{seconds}"
    trainer = in_stage(house, runs, "rollout")
    trainer.signal(signal.SIGSTOP)
    time.sleep(seconds)
    trainer.signal(signal.SIGCONT)
    assert trainer.wait() == 0, trainer.output
    assert outcome(house.run(runs)) == house.whole


def test_a_clock_that_runs_backward_changes_no_number_and_no_duration_is_negative(house: House):
    assert house.finish("clock", "clock:3600") == house.whole
    run = house.run("clock")
    durations = [
        value
        for line in RunFolder(run).metrics()
        for key, value in line.items()
        if key.startswith("time/") and value is not None
    ]
    assert len(durations) > 15
    assert min(durations) >= 0
    assert 0 < json.loads((run / "results.json").read_text())["seconds"] < 300
    stamps = [line["time"] for line in RunFolder(run).metrics()]
    assert stamps == sorted(stamps, reverse=True)  # The clock did run backward.


def test_two_trainers_on_one_run_are_refused_and_the_first_is_unharmed(house: House):
    first = house.start_long("locked")
    command = [sys.executable, "-m", "vlacoach", "train", "--resume", "latest", "--runs-dir", house.folder / "locked"]
    second = subprocess.run(command, capture_output=True, text=True, env=house.trainers.environment)
    assert second.returncode == ExitCode.RUN
    assert f"is in use by process {first.pid}" in " ".join(second.stderr.split())
    assert RunFolder(house.run("locked")).status() == "running"
    first.signal(signal.SIGKILL)
    first.wait()
    # The lock went with its holder.
    RunFolder.resume("latest", house.folder / "locked").close()


def test_a_run_folder_that_is_deleted_ends_the_run_with_a_message_and_does_not_come_back_half(house: House):
    trainer = house.start_long("deleted")
    run = house.run("deleted")
    # Renamed first: files that come and go meanwhile would keep it from being removed.
    run.rename(run.with_name("gone"))
    shutil.rmtree(run.with_name("gone"))
    assert trainer.wait() == ExitCode.RUN, trainer.output
    assert "Cannot write" in trainer.output
    assert "Check that the folder still exists" in trainer.output
    assert not run.exists()


@pytest.fixture
def disk(house: House) -> Iterator[Path]:
    """A disk of its own, of 64 MB, which can be filled and made read-only."""
    folder = house.folder / "disk"
    folder.mkdir()
    if mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder) != 0:
        folder.rmdir()
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
    folder.rmdir()


def mount(*arguments: object) -> int:
    found = shutil.which("mount")
    return 1 if found is None else subprocess.run([found, *map(str, arguments)], capture_output=True).returncode


@pytest.mark.parametrize("change", [5, 30, 60])
def test_a_full_disk_ends_the_run_with_a_message_and_it_goes_on_once_there_is_space(
    change: int, house: House, disk: Path
):
    trainer = house.start(disk, f"fill-at:{change}")
    assert trainer.wait() == ExitCode.RUN, trainer.output
    assert "No space left on device" in trainer.output
    assert "Free some space, then go on with --resume" in " ".join(trainer.output.split())
    assert_nothing_was_lost(house, disk)
    (disk / "filler").unlink()
    assert house.finish(disk) == house.whole


def test_a_disk_too_small_for_the_next_checkpoint_keeps_the_one_before(house: House, disk: Path):
    size = sum(file.stat().st_size for file in house.run("whole").rglob("checkpoints/*/**/*") if file.is_file()) // 2
    assert mount("-o", f"remount,size={int(1.8 * size)}", disk) == 0
    trainer = house.start(disk)
    assert trainer.wait() == ExitCode.RUN, trainer.output
    assert "checkpoints/" in trainer.output
    assert "No space left on device" in trainer.output
    folder = RunFolder(house.run(disk))
    assert not list(folder.checkpoints.folder.glob(".*"))
    assert_nothing_was_lost(house, disk)
    assert mount("-o", "remount,size=64m", disk) == 0
    assert house.finish(disk) == house.whole


def test_a_folder_that_is_read_only_is_refused_and_the_run_goes_on_once_it_is_not(house: House, disk: Path):
    assert house.start(disk, "kill-at:60").wait() == -signal.SIGKILL
    assert mount("-o", "remount,ro", disk) == 0
    resumed = house.start(disk)
    assert resumed.wait() == ExitCode.RUN, resumed.output
    fresh = house.trainers.run(["train", "--config", house.folder / "config.yaml", "--runs-dir", disk])
    for refused in (resumed, fresh):
        assert refused.status == ExitCode.RUN, refused.output
        assert "Read-only file system" in refused.output
        assert "The folder is not writable" in refused.output
    assert_nothing_was_lost(house, disk)
    assert mount("-o", "remount,rw", disk) == 0
    assert house.finish(disk) == house.whole
