"""One attempt at a training where it runs, with real processes and real run folders."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vlacoach import __version__
from vlacoach.errors import LaunchError
from vlacoach.launch import supervising
from vlacoach.launch.supervising import Job, Outcome, begun, command, supervise
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder

NAME = "grpo-a1b2c3"
JOB = Job(["train", f"--name={NAME}", "--runs-dir=/runs"], ["train", "--runs-dir=/runs", "--resume"], NAME)


class Commits:
    """Counts commits; raises at those whose number is given."""

    def __init__(self, *fail):
        self.count = 0
        self.fail = fail

    def __call__(self):
        self.count += 1
        if self.count in self.fail:
            raise ConnectionError(f"commit {self.count}")


def make_run(runs, name=NAME, checkpoint=True):
    with RunFolder.create(runs, name, TrainConfig()) as folder:
        if checkpoint:
            folder.checkpoints.save(0, lambda path: (path / "x").write_text("data"))
    return folder.path


def test_a_first_attempt_begins_the_run(tmp_path):
    make_run(tmp_path, "another")
    assert command(JOB, tmp_path) == ["train", "--name=grpo-a1b2c3", "--runs-dir=/runs"]


def test_the_next_attempt_goes_on_with_it(tmp_path):
    run = make_run(tmp_path)
    make_run(tmp_path, "another")
    assert command(JOB, tmp_path) == ["train", "--runs-dir=/runs", "--resume", run.name]


def test_a_job_that_resumes_by_itself_is_repeated_as_it_is(tmp_path):
    make_run(tmp_path)
    job = Job(["train", "--resume=x"])
    assert command(job, tmp_path) == ["train", "--resume=x"]


def test_an_attempt_that_was_killed_before_its_first_checkpoint_leaves_nothing(tmp_path):
    killed, other = make_run(tmp_path, checkpoint=False), make_run(tmp_path, "another", checkpoint=False)
    assert begun(NAME, tmp_path) is None
    assert not killed.exists()
    assert other.exists()


def test_the_outcome_has_the_status_and_what_was_printed(tmp_path, capfd):
    commits = Commits()
    assert supervise(Job(["--version"]), tmp_path, commits, OSError) == Outcome(0, f"vlacoach {__version__}\n")
    assert commits.count == 1
    refused = supervise(
        Job(["train", "--runs-dir", str(tmp_path), "--suite", "libero_gaol"]), tmp_path, commits, OSError
    )
    assert refused == Outcome(2, "")
    assert "Did you mean 'libero_goal'" in capfd.readouterr().err


def test_files_and_variables_arrive(tmp_path):
    file = tmp_path / "folder" / "config.yaml"
    job = Job(
        ["config", "show", "--json", f"--config={file}"],
        files={str(file): "grpo:\n  updates: 77\n"},
        environment={"VLACOACH_GRPO__PROMPTS": "5"},
    )
    settings = json.loads(supervise(job, tmp_path, Commits(), OSError).output)["settings"]
    assert settings["grpo.updates"] == {"value": 77, "origin": str(file)}
    assert settings["grpo.prompts"]["value"] == 5


def test_what_may_go_better_next_time_is_an_error_so_that_it_is_tried_again(tmp_path, monkeypatch):
    real = subprocess.Popen
    for status, worth in ((1, True), (3, True), (-9, True), (2, False), (4, False), (6, False), (130, False)):
        code = f"import os; os.kill(os.getpid(), {-status})" if status < 0 else f"raise SystemExit({status})"
        monkeypatch.setattr(
            supervising.subprocess, "Popen", lambda words, code=code, **kw: real([sys.executable, "-c", code], **kw)
        )
        commits = Commits()
        if worth:
            with pytest.raises(LaunchError, match=f"status {status}"):
                supervise(Job([]), tmp_path, commits, OSError)
        else:
            assert supervise(Job([]), tmp_path, commits, OSError).status == status
        assert commits.count == 1, status


def sleeper(monkeypatch, code):
    """Let every attempt run this code instead, and look at it often."""
    started = []
    real = subprocess.Popen

    def start(words, **kw):
        started.append(real([sys.executable, "-c", code], **kw))
        return started[-1]

    monkeypatch.setattr(supervising.subprocess, "Popen", start)
    monkeypatch.setattr(supervising, "COMMIT_SECONDS", 0.02)
    return started


def test_a_commit_that_fails_is_said_and_made_up_for(tmp_path, monkeypatch, capfd):
    sleeper(monkeypatch, "import time; time.sleep(0.5); print('done')")
    commits = Commits(1)
    assert supervise(Job([]), tmp_path, commits, ConnectionError).output == "done\n"
    assert commits.count >= 3
    assert "The volume was not committed, and will be: commit 1" in capfd.readouterr().err


def test_a_last_commit_that_fails_is_an_error(tmp_path):
    with pytest.raises(ConnectionError, match="commit 1"):
        supervise(Job(["--version"]), tmp_path, Commits(1), ConnectionError)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_container_that_is_taken_away_lets_the_training_end_and_keeps_what_it_wrote(tmp_path, monkeypatch, deaf):
    ignored = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if deaf else "pass"
    ready = tmp_path / "ready"
    code = f"import pathlib, signal, time; {ignored}; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    started = sleeper(monkeypatch, code)
    monkeypatch.setattr(supervising, "GRACE_SECONDS", 0.2)
    commits = []

    def commit():
        commits.append(started[0].poll())
        if ready.exists() and len(commits) > 1 and commits[-1] is None:
            raise KeyboardInterrupt  # As Modal interrupts.

    with pytest.raises(KeyboardInterrupt):
        supervise(Job([]), tmp_path, commit, OSError)
    assert started[0].returncode == (-9 if deaf else -15)
    assert commits[-1] == started[0].returncode  # The last commit came after its end.
