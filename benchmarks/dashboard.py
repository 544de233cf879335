"""What the dashboard costs: how soon it shows a long run, how much of a core it takes, and what the trainer pays.

The run has 2,000 updates of 60 metrics, as a long training leaves them; while the dashboard is measured, it goes on: a
heartbeat twice a second, and an update every five. The dashboard runs in a terminal of its own (a pseudo-terminal of
120 x 40 cells) whose output is read, so everything it draws is counted.

    python benchmarks/dashboard.py [--seconds 20] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil

from vlacoach.cli.dashboard.view import Options, View
from vlacoach.runs import constants as names
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.control import RemoteControl
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.live import LIVE_SECONDS, LiveView, keep_watching
from vlacoach.runs.reporting import NullReporter
from vlacoach.runs.stopping import GracefulStop

UPDATES, METRICS, EPISODES = 2000, 60, 16
WIDTH, HEIGHT = 120, 40
UPDATE_SECONDS, SIDE = 5.0, 224
PANES = {"1": "overview", "2": "charts", "3": "tasks", "4": "episodes", "5": "robot", "6": "reward", "9": "system"}


def write_update(run: RunFolder, step: int, rng: np.random.Generator) -> None:
    metrics = {
        names.ROLLOUT_SUCCESS: 0.5 + 0.4 * step / UPDATES,
        names.ROLLOUT_EPISODES: float(EPISODES),
        names.TIME_TOTAL: 10.0,
        f"{names.TIME_PREFIX}rollout": 8.0,
        names.TIME_ELAPSED: 12.0 * step,
        f"{names.ROLLOUT_SUCCESS}/1": 0.5,
    }
    metrics |= {f"train/metric_{index:02d}": rng.normal() for index in range(METRICS - len(metrics))}
    run.log_metrics(step, metrics)
    for slot in range(EPISODES):
        success = bool(rng.random() < 0.5)
        run.log_episode(step, task=1, init_state=step % 30, group=0, slot=slot, success=success, valid=True,
                        length=100, reward=1.0 if success else 0.3, distance=12.0)  # fmt: skip


@contextlib.contextmanager
def working(run: RunFolder) -> Iterator[None]:
    """Go on with the run in a thread; a bar moves through the pictures, where somebody watches."""
    stop = threading.Event()

    def work() -> None:
        rng, step, last = np.random.default_rng(1), UPDATES, time.monotonic()
        live = LiveView(run.path)
        ground = np.add.outer(np.arange(SIDE), np.arange(SIDE))[..., None] * np.array([0.4, 0.3, 0.2])
        done = 0
        while not stop.wait(LIVE_SECONDS):
            done += 1
            run.progress(names.STAGE_ROLLOUT, done % 128, 128)
            if live.wanted():
                picture = ground.astype(np.uint8)
                picture[:, 8 * done % SIDE :][:, :12] = 255
                live.show(picture, {"task": 1, "update": step, "episode": done, "init_state": 0})
            if time.monotonic() - last >= UPDATE_SECONDS:
                step, last = step + 1, time.monotonic()
                write_update(run, step, rng)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Terminal:
    """The dashboard in a pseudo-terminal whose output is read and kept."""

    def __init__(self, run: Path) -> None:
        self.began = time.perf_counter()
        self.output = b""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "OMP_NUM_THREADS": "1"}
            os.environ["XDG_CONFIG_HOME"] = str(run.parent)
            time.sleep(0.05)  # Until the size is set.
            os.execv(sys.executable, [sys.executable, "-m", "vlacoach", "watch", str(run)])
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))

    def read_for(self, seconds: float, until: bytes | None = None) -> bool:
        """Read for a while, or until some bytes have come; says whether they have."""
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            if select.select([self._fd], [], [], left)[0]:
                self.output += os.read(self._fd, 65536)
                if until is not None and until in self.output:
                    return True
        return until is None

    def press(self, key: str) -> None:
        """Press a key."""
        os.write(self._fd, key.encode())

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """End the dashboard."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


def opening(run: Path, repeats: int = 5) -> dict[str, float]:
    """Seconds from the start of the command until the run's last update is on screen, and of the first look alone."""
    whole, looks = [], []
    for _ in range(repeats + 1):
        terminal = Terminal(run)
        if not terminal.read_for(60.0, f"update {UPDATES}".encode()):
            raise SystemExit("The dashboard never showed the run.")
        whole.append(time.perf_counter() - terminal.began - 0.05)
        terminal.close()
        view = View.of(run, Options(run.parent))
        began = time.perf_counter()
        view.poll()
        looks.append(time.perf_counter() - began)
    del whole[0], looks[0]  # Python compiles what it has not seen.
    return {
        "command_to_screen_s": min(whole),
        "command_to_screen_median_s": sorted(whole)[repeats // 2],
        "first_look_s": min(looks),
    }


def load(run: RunFolder, seconds: float) -> dict[str, float]:
    """Percent of one core that each pane takes while the run goes on."""
    found = {}
    terminal = Terminal(run.path)
    terminal.read_for(60.0, f"update {UPDATES}".encode())
    with working(run):
        for key, pane in PANES.items():
            terminal.press(key)
            terminal.read_for(3.0)
            began, cpu = time.perf_counter(), terminal.cpu_seconds()
            terminal.read_for(seconds)
            found[pane] = 100 * (terminal.cpu_seconds() - cpu) / (time.perf_counter() - began)
    terminal.close()
    return found


def trainer(run: RunFolder) -> dict[str, float]:
    """Microseconds of what the trainer does for whoever watches; each happens once a round of the worlds."""
    control = RemoteControl(run, NullReporter(), GracefulStop())
    view, picture = LiveView(run.path), np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)

    def each(what: Callable[[], object], count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            what()
        return 1e6 * (time.perf_counter() - began) / count

    unwatched = each(view.wanted, 2000)
    keep_watching(run.path)
    return {
        "look for wishes": each(control.obey, 2000),
        "ask whether somebody watches": unwatched,
        "heartbeat": each(lambda: run.beat(force=True), 200),
        "picture of 224 x 224, watched, at most 2.5 a second": each(lambda: view.show(picture, {"task": 1}), 50),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each pane is watched")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        config = TrainConfig(grpo={"updates": 2 * UPDATES})
        with RunFolder.create(root, "long", config) as run:
            run.set_status(names.STATUS_RUNNING)
            run.progress(names.STAGE_ROLLOUT, 0, 128)
            rng = np.random.default_rng(0)
            for step in range(1, UPDATES + 1):
                write_update(run, step, rng)
            size = (run.path / names.METRICS_FILE).stat().st_size / 2**20
            found = {
                "metrics_mb": size,
                "opening": opening(run.path),
                "percent_of_a_core": load(run, arguments.seconds),
                "trainer_microseconds": trainer(run),
            }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{UPDATES} updates of {METRICS} metrics, {size:.1f} MiB")
    for title, figures in found.items():
        if isinstance(figures, dict):
            print(title.replace("_", " "))
            for name, value in figures.items():
                print(f"  {name.replace('_', ' '):<52} {value:8.2f}")


if __name__ == "__main__":
    main()
