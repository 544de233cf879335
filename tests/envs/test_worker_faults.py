"""Simulator processes that run out of memory, and signals that reach the whole process group."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import vlacoach
from vlacoach.envs.vector import LiberoVectorEnv
from vlacoach.errors import SimulatorError

pytestmark = pytest.mark.sim

ACTIONS = np.zeros((2, 4, 7), dtype=np.float32)


def make(**options):
    defaults = {"num_envs": 2, "workers": 2, "chunk_size": 4, "image_size": 32, "max_steps": 20, "settle_steps": 0}
    return LiberoVectorEnv(**{**defaults, **options})


def test_a_worker_that_finds_no_memory_is_replaced_and_costs_its_episodes_and_nothing_else(caplog):
    envs = make()
    envs.reset(options={"task": 8, "init_state": 0})
    starved = envs.processes[1].pid
    used = psutil.Process(starved).memory_info().vms
    resource.prlimit(starved, resource.RLIMIT_AS, (used, used))
    # Pictures and physics are in memory already; another scene is not.
    observation, _ = envs.reset(options={"task": [8, 1], "init_state": 0})
    assert envs.workers_lost == 1, caplog.text
    assert envs.processes[1].pid != starved
    assert observation["task"].tolist() == [8, 1]
    *_, truncated, info = envs.step(ACTIONS)
    assert not truncated.any()
    assert info["executed"].tolist() == [4, 4]
    envs.close()


@pytest.mark.slow
def test_workers_that_never_find_memory_are_an_error_that_says_so(monkeypatch):
    envs = make(workers=1)
    envs.reset(options={"task": 8, "init_state": 0})
    spawn = type(envs._pool)._spawn

    def starve(pool, worker):
        process, connection = spawn(pool, worker)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (2**26, 2**26))
        return process, connection

    monkeypatch.setattr(type(envs._pool), "_spawn", starve)
    envs.processes[0].kill()
    with pytest.raises(SimulatorError, match="4 times in a row") as caught:
        envs.reset(options={"task": 8, "init_state": 0})
    assert "out of memory" in caught.value.hint
    monkeypatch.undo()
    envs.close()


@pytest.mark.slow
def test_signals_to_the_whole_process_group_do_not_reach_the_worlds():
    envs = make()
    envs.reset(options={"task": 8, "init_state": 0})
    for process in envs.processes:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(process.pid, number)
    *_, truncated, _ = envs.step(ACTIONS)
    assert not truncated.any()
    assert envs.workers_lost == 0
    children = envs.processes
    envs.close()
    assert not any(psutil.pid_exists(child.pid) for child in children)


PROGRAM = """
import sys
import numpy as np
from vlacoach.envs.vector import LiberoVectorEnv

if __name__ == "__main__":
    envs = LiberoVectorEnv(num_envs=2, workers=2, chunk_size=4, image_size=32, max_steps=20, settle_steps=0)
    envs.reset(options={"task": 8, "init_state": 0})
    chunk = np.zeros((2, 4, 7), dtype=np.float32)
    envs.step(chunk)  # The first one compiles.
    envs._pool._timeout = 4.0
    print(*(process.pid for process in envs.processes), flush=True)
    sys.stdin.readline()
    *_, truncated, _ = envs.step(chunk)
    print(envs.workers_lost, truncated.tolist(), flush=True)
    # Not closed: the end of the program must not wait for its workers.
"""


@pytest.mark.slow
def test_a_machine_that_sleeps_longer_than_a_worker_may_take_loses_no_world(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    package = os.path.dirname(os.path.dirname(vlacoach.__file__))
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": package},
        start_new_session=True,
    )
    workers = [int(pid) for pid in program.stdout.readline().split()]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # So that their answer is not there before the sleep begins.
    program.stdin.write("\n")
    program.stdin.flush()
    time.sleep(0.5)
    os.killpg(program.pid, signal.SIGSTOP)
    time.sleep(4.5)
    os.killpg(program.pid, signal.SIGCONT)
    assert program.communicate(timeout=60)[0].split(" ", 1) == ["0", "[False, False]\n"]
    assert program.returncode == 0
    assert psutil.wait_procs([psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)], timeout=10)[1] == []
