"""``vlacoach watch`` as a command: what it prints, what it loads, and in a real terminal."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "dashboard"))
from fake_runs import make_run

from vlacoach.runs import constants as names
from vlacoach.runs.files import replace_text
from vlacoach.runs.folder import RunFolder

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


def test_once_prints_the_overview_as_text(invoke, tmp_path):
    run = make_run(tmp_path / "runs")
    result = invoke("watch", "--once")
    assert result.exit_code == 0
    assert "update 12/40" in result.stdout
    assert "held-out" in result.stdout
    assert result.stderr == ""
    assert invoke("watch", run, "--once", "--ascii").stdout.isascii()


def test_once_prints_one_json_document(invoke, tmp_path):
    make_run(tmp_path / "runs")
    result = invoke("watch", "latest", "--once", "--json")
    found = json.loads(result.stdout)
    assert (found["status"], found["update"], found["updates"]) == ("finished", 12, 40)
    assert found["held_out"]["now"] == {
        "step": 12, "rate": 0.75, "episodes": 20,
        "low": pytest.approx(0.5313, abs=1e-4), "high": pytest.approx(0.8881, abs=1e-4),
    }  # fmt: skip


def test_what_cannot_be_watched_is_said_with_status_5(invoke, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "empty").mkdir()
    later = make_run(tmp_path / "later")
    replace_text(later / names.RUN_FILE, '{"schema_version": 99}')
    for reference, words in ((("nothing",), "No run 'nothing'"), ((tmp_path / "empty",), "not a run folder"),
                             ((later,), "schema 99")):  # fmt: skip
        result = invoke("watch", *reference, "--once")
        assert (result.exit_code, result.stdout) == (5, "")
        assert words in result.stderr.replace("\n", " ")


def test_without_a_terminal_it_says_so(invoke, tmp_path):
    make_run(tmp_path / "runs")
    for arguments in (("watch",), ("watch", "--json"), ("train", "--watch"), ("train", "--watch", "--json")):
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "terminal" in result.stderr or "--once" in result.stderr or "contradict" in result.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir() if "console" in path.name] == []


def test_it_loads_neither_torch_nor_mujoco_and_only_runs_of_the_project(tmp_path):
    run = make_run(tmp_path)
    code = (
        "import sys, vlacoach\n"
        "known = set(sys.modules)  # Importing vlacoach registers the environments' names.\n"
        "from typer.testing import CliRunner\n"
        "from vlacoach.cli.main import app\n"
        f"assert CliRunner().invoke(app, ['watch', {str(run)!r}, '--once']).exit_code == 0\n"
        "heavy = ('torch', 'mujoco', 'transformers', 'scipy', 'matplotlib', 'robosuite', 'h5py')\n"
        "print([name for name in (*heavy, 'textual') if name in sys.modules])\n"
        "import vlacoach.cli.dashboard.app\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "rooms = ('envs', 'policies', 'rewards', 'agents', 'data')\n"
        "loaded = [name for name in sys.modules if name.startswith(tuple(f'vlacoach.{room}' for room in rooms))]\n"
        "print([name for name in loaded if name not in known])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]", "[]"]


class Terminal:
    """A terminal of its own, driven by keys and read as text."""

    def __init__(self, folder: Path) -> None:
        self._socket = f"vlacoach-{os.getpid()}-{time.time_ns()}"
        self._folder = folder

    def start(self, *command: object, width: int = 100, height: int = 30) -> None:
        environment = {"XDG_CONFIG_HOME": str(self._folder / "settings"), "OMP_NUM_THREADS": "1"}
        words = shlex.join(["env", *(f"{key}={value}" for key, value in environment.items()), *map(str, command)])
        self._tmux("new-session", "-d", "-x", str(width), "-y", str(height), "-c", str(self._folder),
                   f"{words}; echo status $?; sleep 600")  # fmt: skip

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def wait_for(self, words: str, seconds: float = 60.0) -> str:
        return self.wait_until(lambda: words in self.screen(), words, seconds)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 60.0) -> str:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what!r} in vain; on screen:\n{self.screen()}"
            time.sleep(0.1)
        return self.screen()

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._socket, "-f", os.devnull, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def close(self) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def terminal(tmp_path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made.close()


@needs_tmux
def test_a_live_run_is_followed_in_a_terminal(terminal, tmp_path):
    run = make_run(tmp_path / "runs", status="running", updates=3)
    terminal.start(sys.executable, "-m", "vlacoach", "watch")
    terminal.wait_for("update 3/40")
    with RunFolder.resume(run) as folder:
        folder.log_metrics(4, {"rollout/success": 0.875, "rollout/episodes": 16, "time/total": 10})
        folder.progress("update", 3, 12)
        terminal.wait_for("update 4/40")
        assert "87.5" in terminal.wait_for("update 3/12")
        terminal.press("7")
        terminal.wait_for("following")
        folder.log("something new")
        terminal.wait_for("something new")
        terminal.press("?")
        terminal.wait_for("ctrl+p finds every command")
        terminal.press("Escape")
        folder.set_status(names.STATUS_FINISHED)
    terminal.wait_for("finished")
    shutil.rmtree(run)
    terminal.press("1")
    terminal.wait_for("is gone")
    terminal.press("q")
    assert "status 0" in terminal.wait_for("status")


@needs_tmux
@pytest.mark.sim
def test_a_real_training_is_started_paused_resumed_checkpointed_and_stopped_from_the_keyboard(terminal, tmp_path):
    terminal.start(
        sys.executable, "-m", "vlacoach", "train", "--watch", "--tasks", "8", "--updates", "500", "--reward", "success",
        "--set", "grpo.prompts=1", "--set", "grpo.group_size=2", "--set", "evaluation.trials=1", "--set",
        "checkpoint.every=400", "--set", "env.num_envs=2", "--set", "env.workers=1",
    )  # fmt: skip
    terminal.wait_for("rollouts", seconds=240)
    (run,) = (tmp_path / "runs").glob("2*")
    folder = RunFolder(run)
    terminal.press("p")
    terminal.wait_for("paused")
    lines = len(folder.metrics())
    time.sleep(1.5)
    assert len(folder.metrics()) == lines
    assert folder.status() == "paused"
    terminal.press("p")
    terminal.wait_for("running")
    terminal.press("c")
    terminal.wait_until(lambda: len(folder.checkpoints.entries()) > 1, "a second checkpoint")
    terminal.press("5")
    terminal.wait_for("put the bowl on the plate")
    assert (run / names.LIVE_FILE).is_file()
    terminal.press("x")
    terminal.wait_for("(y / n)")
    terminal.press("y")
    terminal.wait_for("interrupted")
    terminal.press("q")
    assert "status 130" in terminal.wait_for("status 130")
    assert folder.checkpoints.last().name == f"{max(line['step'] for line in folder.metrics()):06d}"
    assert "Stopped after update" in (run / "console.txt").read_text()
    assert not (run / names.WATCHING_FILE).exists()


@needs_tmux
def test_an_error_before_there_is_a_run_is_shown_with_its_status(terminal, tmp_path):
    terminal.start(sys.executable, "-m", "vlacoach", "train", "--watch", "--set", "grpo.clip_hihg=1")
    text = terminal.wait_for("status 2")
    assert "grpo.clip_high" in text
    assert list((tmp_path / "runs").iterdir()) == []


@needs_tmux
def test_a_training_that_fails_at_once_says_why_though_its_folder_is_gone(terminal, tmp_path):
    terminal.start(sys.executable, "-m", "vlacoach", "train", "--watch", "--set", "reward.params={nonsense: 1}")
    terminal.wait_until(lambda: "is gone" in terminal.screen() or "status" in terminal.screen(), "the end")
    terminal.press("q")
    assert "nonsense" in terminal.wait_for("status 2")
