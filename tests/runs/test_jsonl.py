"""JSON lines: half lines, damage, replaced files, and a disk that refuses."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys

import numpy as np
import pytest

from vlacoach.runs.jsonl import JsonlReader, JsonlWriter, keep_records


def test_nonfinite_numbers_become_null_and_are_named(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    writer.write({"a": math.nan, "b": np.float32("inf"), "c": [1.0, -math.inf], "d": 2.0, "time": 5})
    record = json.loads((tmp_path / "m.jsonl").read_text())
    assert record == {
        "a": None,
        "b": None,
        "c": [1.0, None],
        "d": 2.0,
        "time": 5,
        "nonfinite": ["a", "b", "c.1"],
    }


def test_numpy_values_are_written_as_numbers(tmp_path):
    JsonlWriter(tmp_path / "m.jsonl").write({"i": np.int64(3), "b": np.bool_(True), "x": np.arange(3)})
    (record,) = JsonlReader(tmp_path / "m.jsonl").read()
    assert (record["i"], record["b"], record["x"]) == (3, True, [0, 1, 2])


def test_unwritable_values_are_refused_before_anything_is_written(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    with pytest.raises(TypeError, match="'a' holds a set"):
        writer.write({"a": {1}})
    assert (tmp_path / "m.jsonl").read_bytes() == b""


def test_half_line_is_held_back_until_whole(tmp_path):
    file = tmp_path / "m.jsonl"
    reader = JsonlReader(file)
    assert reader.read() == []
    file.write_bytes(b'{"a":1}\n{"a":')
    assert reader.read() == [{"a": 1}]
    assert reader.read() == []
    with file.open("ab") as stream:
        stream.write(b"2}\n")
    assert reader.read() == [{"a": 2}]
    assert reader.broken == reader.restarts == 0


def test_broken_lines_are_skipped_and_counted(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_bytes(b'{"a":1}\nrubbish\n[1]\n\xff\xfe\n{"a":2}\n')
    reader = JsonlReader(file)
    assert reader.read() == [{"a": 1}, {"a": 2}]
    assert reader.broken == 3


def test_writer_cuts_off_what_a_killed_process_left(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_bytes(b'{"a":1,"time":0}\n{"a":2,"ti')
    JsonlWriter(file).write({"a": 3, "time": 1})
    assert [record["a"] for record in JsonlReader(file).read()] == [1, 3]
    file.write_bytes(b"x" * 200_000)
    JsonlWriter(file)
    assert file.read_bytes() == b""


def test_reader_starts_anew_on_a_replaced_file(tmp_path):
    file = tmp_path / "m.jsonl"
    writer = JsonlWriter(file)
    for step in range(5):
        writer.write({"step": step})
    reader = JsonlReader(file)
    assert len(reader.read()) == 5
    assert keep_records(file, lambda record: record["step"] <= 1) == 3
    assert [record["step"] for record in reader.read()] == [0, 1]
    assert reader.restarts == 1


def test_keep_records_leaves_a_file_without_losses_alone(tmp_path):
    file = tmp_path / "m.jsonl"
    JsonlWriter(file).write({"step": 1})
    inode = file.stat().st_ino
    assert keep_records(file, lambda record: True) == 0
    assert file.stat().st_ino == inode
    assert keep_records(tmp_path / "none", lambda record: True) == 0


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from vlacoach.errors import RunError
from vlacoach.runs.jsonl import JsonlWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = JsonlWriter(Path(sys.argv[1]))
writer.write({"a": "x" * 100})
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    writer.write({"a": "y" * 500})
except RunError as error:
    print(error)
"""


def test_a_line_that_does_not_fit_is_taken_back(tmp_path):
    assert resource.RLIM_INFINITY == resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    file = tmp_path / "m.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(file)], capture_output=True, text=True, check=True)
    assert "Cannot write" in done.stdout
    assert "full" in done.stdout
    assert [record["a"] for record in JsonlReader(file).read()] == ["x" * 100]
    assert file.read_bytes().endswith(b"\n")
