"""``vlacoach runs rm``: what it removes, and what it leaves alone."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from vlacoach.runs import constants as names
from vlacoach.runs.folder import RunFolder


@pytest.fixture
def runs(tmp_path):
    """Three runs, the last of which is ``latest``."""
    made = []
    for name in ("one", "two", "three"):
        with RunFolder.create(tmp_path / "runs", name) as folder:
            # In time order even if all three are made within a second.
            path = folder.path.with_name(f"2026010{len(made)}_000000_{name}_{folder.path.name[-4:]}")
        folder.path.rename(path)
        made.append(path)
    link = tmp_path / "runs" / "latest"
    link.unlink()
    link.symlink_to(made[-1].name)
    return made


def folders(runs):
    return [path for path in runs if path.exists()]


def test_without_a_terminal_it_needs_yes(invoke, runs):
    result = invoke("runs", "rm", "one")
    assert result.exit_code == 2
    assert runs[0].name in result.stderr
    assert "--yes" in result.stderr
    assert folders(runs) == runs


def test_it_removes_what_was_named_and_nothing_else(invoke, runs):
    result = invoke("runs", "rm", "one", runs[0].name, runs[1], "--yes")
    assert result.exit_code == 0
    assert result.stdout == f"removed {runs[0].name}\nremoved {runs[1].name}\n"
    assert folders(runs) == [runs[2]]
    assert sorted(os.listdir(runs[0].parent)) == [runs[2].name, "latest"]
    assert os.readlink(runs[0].parent / "latest") == runs[2].name


def test_latest_moves_to_the_newest_run_that_is_left(invoke, runs):
    assert invoke("runs", "rm", "latest", "-y").exit_code == 0
    assert folders(runs) == runs[:2]
    assert os.readlink(runs[0].parent / "latest") == runs[1].name


def test_latest_goes_with_the_last_run(invoke, runs):
    assert invoke("runs", "rm", "one", "two", "three", "-y").exit_code == 0
    assert os.listdir(runs[0].parent) == []


def test_a_run_in_use_is_refused_and_so_are_those_named_with_it(invoke, runs):
    with RunFolder(runs[1]) as folder:
        folder.lock()
        result = invoke("runs", "rm", "one", "two", "-y")
    assert result.exit_code == 5
    assert "in use" in result.stderr
    assert folders(runs) == runs
    # The lock of the other was given back.
    with RunFolder(runs[0]) as folder:
        folder.lock()


def test_a_run_that_beats_on_another_machine_is_refused(invoke, runs):
    with RunFolder(runs[0]) as folder:
        folder.update_info(host="elsewhere", status=names.STATUS_RUNNING)
        folder.beat("rollout")
    result = invoke("runs", "rm", "one", "-y")
    assert result.exit_code == 5
    assert "running on elsewhere" in result.stderr
    with RunFolder(runs[0]) as folder:
        folder.update_info(status=names.STATUS_FAILED)
    assert invoke("runs", "rm", "one", "-y").exit_code == 0


def test_a_folder_that_is_no_run_is_refused(invoke, runs):
    plain = runs[0].parent / "precious"
    plain.mkdir()
    (plain / "file").write_text("x")
    foreign = runs[0].parent / "foreign"
    foreign.mkdir()
    (foreign / "run.json").write_text("{}")
    for path in (plain, foreign):
        assert invoke("runs", "rm", path, "-y").exit_code == 5
    assert (plain / "file").exists()
    assert foreign.exists()


def test_links_out_of_the_runs_folder_are_not_followed(invoke, runs, tmp_path):
    outside = tmp_path / "elsewhere" / runs[0].name
    outside.parent.mkdir()
    runs[0].rename(outside)
    link = runs[0].parent / "link"
    link.symlink_to(outside)
    (runs[0].parent / "latest").unlink()
    (runs[0].parent / "latest").symlink_to(outside)
    for reference in (link, outside):
        result = invoke("runs", "rm", reference, "-y")
        assert result.exit_code == 5
        assert "--runs-dir" in result.stderr
    # Bent to lead elsewhere, "latest" is the newest run that is here.
    assert invoke("runs", "rm", "latest", "-y").exit_code == 0
    assert [run.exists() for run in runs[1:]] == [True, False]
    assert outside.exists()
    assert invoke("runs", "rm", outside, "-y", "--runs-dir", outside.parent).exit_code == 0
    assert not outside.exists()


def test_links_inside_a_run_are_removed_and_their_targets_are_not(invoke, runs, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (runs[0] / "videos").symlink_to(tmp_path / "kept")
    assert invoke("runs", "rm", "one", "-y").exit_code == 0
    assert (tmp_path / "kept" / "file").exists()


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 3), ("y", 0, 2)])
def test_on_a_terminal_it_asks(runs, answer, code, left):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vlacoach", "runs", "rm", "one", "--runs-dir", str(runs[0].parent)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        os.write(ours, f"{answer}\n".encode())
        _, said = done.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code
    assert runs[0].name.encode() in said
    assert len(folders(runs)) == left
