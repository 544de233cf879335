"""``vlacoach train`` on real LIBERO, killed with its simulators at random moments of every stage, and resumed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from test_training_cycle import PATIENCE, House, assert_same_run, house, numbers, wait_for, whole

from vlacoach.runs.checkpoints import verify_checkpoint
from vlacoach.runs.constants import WORKERS_REPLACED
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder

pytestmark = [pytest.mark.sim, pytest.mark.slow]
__all__ = ["house", "whole"]


def start(house: House, runs: str) -> subprocess.Popen[bytes]:
    """Start, or go on, as the leader of a process group."""
    root = house.folder / runs
    begun = ["train", "--resume", "latest", "--runs-dir", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(house.plugins), "OMP_NUM_THREADS": "1"}
    with (house.folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "vlacoach", *(begun if list_runs(root) else house.arguments(runs))],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def stages(house: House, runs: str) -> list[str]:
    found = list_runs(house.folder / runs)
    return [event["stage"] for event in RunFolder(found[-1]).events() if event.get("stage")] if found else []


def kill(house: House, runs: str, stage: str, after: float) -> str:
    """Kill some time after a stage has begun; in which stage that was."""
    before = len(stages(house, runs))
    process = start(house, runs)
    try:
        reached: Callable[[], bool] = lambda: stage == "start" or stage in stages(house, runs)[before:]  # noqa: E731
        wait_for(process, reached, house)
        time.sleep(after)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for path in list_runs(house.folder / runs):
        for checkpoint in RunFolder(path).checkpoints.entries():
            verify_checkpoint(checkpoint)
    return (stages(house, runs)[before:] or ["start"])[-1]


@pytest.mark.timeout(7200)
def test_at_least_twenty_kills_on_libero_change_no_number(whole: dict[str, Any], house: House):
    """Prints in which stages they came, for docs/reliability.md; run it with ``-s``."""
    rng = random.Random(0)
    killed: Counter[str] = Counter()
    middle = ["rollout", "reward", "update", "checkpoint", "rollout", "update", "advantage"]
    for number, stage in enumerate(middle):
        runs = f"killed_{number}"
        killed[kill(house, runs, *(("start", 10 * rng.random()) if number % 2 else ("evaluation", rng.random())))] += 1
        killed[kill(house, runs, stage, 0.5 * rng.random())] += 1
        # The rest of the updates is done, the last evaluation has begun.
        process = start(house, runs)
        before = len(stages(house, runs))
        try:
            wait_for(process, lambda: "evaluation" in stages(house, runs)[before:] and done(house, runs), house)  # noqa: B023
            time.sleep(rng.random())
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        killed["last evaluation"] += 1
        assert_same_run(whole, house.resume(runs))
    print(f"{sum(killed.values())} kills: {dict(killed)}")
    assert sum(killed.values()) > 20


def done(house: House, runs: str) -> bool:
    return any(path.name == "000003" for path in RunFolder(list_runs(house.folder / runs)[-1]).checkpoints.entries())


def test_a_signal_to_the_whole_group_costs_no_world_and_the_run_goes_on(whole: dict[str, Any], house: House):
    process = start(house, "group")
    try:
        wait_for(process, lambda: "rollout" in stages(house, "group"), house)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == 130, (house.folder / "output.txt").read_text()
    finally:
        process.kill()
        process.wait()
    assert_same_run(whole, house.resume("group"))


def test_a_worker_that_is_killed_in_a_rollout_costs_episodes_and_not_the_run(house: House):
    process = start(house, "worker")
    try:
        wait_for(process, lambda: "rollout" in stages(house, "worker"), house)
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        workers[0].kill()
        assert process.wait(PATIENCE) == 0, (house.folder / "output.txt").read_text()
    finally:
        process.kill()
        process.wait()
    (run,) = list_runs(house.folder / "worker")
    lines = numbers(str(run))
    assert max(line.get(WORKERS_REPLACED, 0) for line in lines) == 1
    assert [line["step"] for line in lines if "rollout/success" in line] == [1, 2, 3]
    for checkpoint in RunFolder(run).checkpoints.entries():
        verify_checkpoint(checkpoint)
