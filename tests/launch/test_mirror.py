"""A run folder copied out of a volume.

Modal's own volumes need an account; the one here has the two methods that are used, over a folder, and its entries are
Modal's.
"""

from __future__ import annotations

import os

import pytest
from modal.types import FileEntry, FileEntryType

from vlacoach.launch.mirror import FILE, RunMirror, folders_in, is_run_of
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.jsonl import JsonlReader


class FolderVolume:
    """A volume over a folder, that counts what is read."""

    def __init__(self, root):
        self.root = root
        self.read = []
        self.gone = set()

    def listdir(self, path, *, recursive=False):
        base = self.root / path.strip("/")
        return [self._entry(found) for found in (base.rglob("*") if recursive else base.iterdir())]

    def _entry(self, path):
        kind = FileEntryType.FILE
        if path.is_symlink():
            kind = FileEntryType.SYMLINK
        elif path.is_dir():
            kind = FileEntryType.DIRECTORY
        status = path.lstat()
        return FileEntry(path.relative_to(self.root).as_posix(), kind, int(status.st_mtime), status.st_size)

    def read_file(self, path):
        self.read.append(path.rpartition("/")[2])
        if path.rpartition("/")[2] in self.gone:
            raise FileNotFoundError(path)
        data = (self.root / path).read_bytes()
        yield data[:7]
        yield data[7:]


@pytest.fixture
def volume(tmp_path):
    (tmp_path / "volume").mkdir()
    return FolderVolume(tmp_path / "volume")


@pytest.fixture
def run(volume):
    """A run in the volume, as training writes it."""
    with RunFolder.create(volume.root, "grpo-a1b2c3", TrainConfig()) as folder:
        folder.checkpoints.save(0, lambda path: (path / "weights").write_text("w"), score=0.1)
        folder.log_metrics(1, {"rollout/success": 0.5})
        yield folder


@pytest.fixture
def mirror(volume, tmp_path):
    return RunMirror(volume, tmp_path / "runs", "grpo-a1b2c3")


def test_the_kind_of_entry_that_is_copied_is_modals_file():
    assert FILE == FileEntryType.FILE


def test_without_a_run_nothing_is_copied(mirror, volume, tmp_path):
    assert mirror.sync() == 0
    assert mirror.path is None
    assert not (tmp_path / "runs").exists()


def test_a_run_is_copied_and_can_be_opened(mirror, run, tmp_path):
    assert mirror.sync() >= 3
    assert mirror.path == tmp_path / "runs" / run.path.name
    copy = RunFolder.open("latest", tmp_path / "runs")
    assert copy.path == mirror.path
    assert copy.info() == run.info()
    assert copy.config() == run.config()
    assert copy.metrics() == run.metrics()


def test_run_json_is_read_last(mirror, run, volume):
    mirror.sync()
    assert volume.read[-1] == "run.json"


def test_what_has_not_changed_is_not_read_again(mirror, run, volume):
    mirror.sync()
    volume.read.clear()
    assert mirror.sync() == 0
    assert volume.read == []


def test_another_mirror_goes_on_where_the_first_left_off(mirror, run, volume, tmp_path):
    mirror.sync()
    run.log_metrics(2, {"rollout/success": 0.6})
    volume.read.clear()
    again = RunMirror(volume, tmp_path / "runs", "", folder=run.path.name)
    assert again.sync() == 1
    assert volume.read == ["metrics.jsonl"]
    assert again.path == mirror.path


def test_lines_are_appended_so_that_a_reader_goes_on(mirror, run, tmp_path):
    mirror.sync()
    reader = JsonlReader(mirror.path / "metrics.jsonl")
    assert [line["step"] for line in reader.read()] == [1]
    inode = reader.path.stat().st_ino
    run.log_metrics(2, {"rollout/success": 0.6})
    mirror.sync()
    assert [line["step"] for line in reader.read()] == [2]
    assert (reader.restarts, reader.path.stat().st_ino) == (0, inode)


def test_half_a_line_is_completed_by_the_next_look(mirror, run):
    file = run.path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"step": 2')
    mirror.sync()
    reader = JsonlReader(mirror.path / "metrics.jsonl")
    assert len(reader.read()) == 1
    file.write_bytes(whole + b'{"step": 2, "x": 1}\n')
    mirror.sync()
    assert [line["x"] for line in reader.read()] == [1]
    assert reader.broken == 0


def test_a_resumed_run_that_dropped_lines_is_copied_anew(mirror, run):
    run.log_metrics(2, {"rollout/success": 0.6})
    mirror.sync()
    reader = JsonlReader(mirror.path / "metrics.jsonl")
    assert len(reader.read()) == 2
    run.rewind(1)
    run.log_metrics(2, {"rollout/success": 0.7})
    os.utime(run.path / "metrics.jsonl", (2e9, 2e9))
    mirror.sync()
    assert [line["rollout/success"] for line in reader.read()] == [0.5, 0.7]
    assert reader.restarts == 1


def test_checkpoints_come_with_the_last_look(mirror, run):
    mirror.sync()
    assert not (mirror.path / "checkpoints").exists()
    mirror.sync(last=True)
    assert RunFolder(mirror.path).checkpoints.last().name == "000000"


def test_what_belongs_to_the_other_machine_stays_there(mirror, run):
    for name in ("control.json", "watching", ".metrics.jsonl.tmp"):
        (run.path / name).write_text("x")
    mirror.sync()
    assert {path.name for path in mirror.path.iterdir()} == {"config.yaml", "run.json", "metrics.jsonl"}


def test_what_lies_in_the_copy_alone_is_left_there(mirror, run):
    mirror.sync()
    (mirror.path / "notes.txt").write_text("mine")
    mirror.sync(last=True)
    assert (mirror.path / "notes.txt").read_text() == "mine"


def test_a_file_that_vanishes_between_list_and_read_is_no_error(mirror, run, volume):
    volume.gone = {"metrics.jsonl"}
    mirror.sync()
    assert {path.name for path in mirror.path.iterdir()} == {"config.yaml", "run.json"}
    volume.gone = set()
    mirror.sync()
    assert len(RunFolder(mirror.path).metrics()) == 1


def test_a_replaced_file_of_the_same_size_is_seen_by_its_time(mirror, run):
    (run.path / "heartbeat").write_text("1")
    mirror.sync()
    (run.path / "heartbeat").write_text("2")
    os.utime(run.path / "heartbeat", (2e9, 2e9))
    mirror.sync()
    assert (mirror.path / "heartbeat").read_text() == "2"


def test_the_last_look_sees_what_size_and_time_do_not_tell(mirror, run):
    (run.path / "results.json").write_text("1")
    os.utime(run.path / "results.json", (2e9, 2e9))
    mirror.sync()
    (run.path / "results.json").write_text("2")
    os.utime(run.path / "results.json", (2e9, 2e9))
    mirror.sync()
    assert (mirror.path / "results.json").read_text() == "1"
    mirror.sync(last=True)
    assert (mirror.path / "results.json").read_text() == "2"


def test_of_several_attempts_the_newest_is_copied(mirror, volume):
    for folder in ("20260101_100000_grpo-a1b2c3_0001", "20260101_110000_grpo-a1b2c3_0002"):
        (volume.root / folder).mkdir()
        (volume.root / folder / "run.json").write_text("{}")
    mirror.sync()
    assert mirror.path.name == "20260101_110000_grpo-a1b2c3_0002"


@pytest.mark.parametrize(
    ("folder", "same"),
    [
        ("20260101_100000_grpo-a1b2c3_0001", True),
        ("20260101_100000_x_grpo-a1b2c3_0001", False),
        ("20260101_100000_grpo-a1b2c3_x_0001", False),
        ("20260101_100000_grpo_0001", False),
        ("latest", False),
    ],
)
def test_a_folder_is_a_run_of_its_whole_name_only(folder, same):
    assert is_run_of(folder, "grpo-a1b2c3") is same


def test_folders_of_a_volume_by_name(volume):
    for name in ("b", "a"):
        (volume.root / name).mkdir()
    assert folders_in(volume) == ["a", "b"]
