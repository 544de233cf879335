"""Append-only files of JSON lines: one writer, any number of readers, whole lines only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vlacoach.errors import RunError
from vlacoach.runs.constants import STEP, TIME
from vlacoach.runs.files import plain, replace_text, to_json, write_all, write_failure, writing


class JsonlWriter:
    """Appends records to a file of JSON lines.

    Opening cuts off a half line that a killed process left behind. A record that cannot be written in full is
    taken back, so the file always ends with a whole line.

    Args:
        path: The file; made if missing.

    Raises:
        RunError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._descriptor, _whole_lines(self._descriptor))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, with the time added if it has none.

        Args:
            record: Keys to JSON-like values (NumPy numbers and arrays too). NaN and infinity become null
                and are named under ``"nonfinite"``.

        Raises:
            RunError: The line cannot be written; the file is as before.
        """
        line = to_json(plain({TIME: round(time.time(), 3), **record})) + "\n"
        size = os.fstat(self._descriptor).st_size
        try:
            write_all(self._descriptor, line.encode("utf-8"))
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise write_failure(self.path, error) from error

    def sync(self) -> None:
        """Wait until the disk has everything.

        Raises:
            RunError: The disk refuses.
        """
        with writing(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; closing again changes nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _whole_lines(descriptor: int) -> int:
    """Bytes up to and with the last line end."""
    position = os.fstat(descriptor).st_size
    while position > 0:
        start = max(0, position - 65536)
        found = os.pread(descriptor, position - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


class JsonlReader:
    """Reads records as they appear; a line without its end is held back until it is whole.

    Args:
        path: The file; it may not exist yet.
        tail: Bytes at the end of the file to begin with, for files whose beginning is not worth the time; None begins
            at the beginning.

    Attributes:
        skipped: Bytes before the first line that was read.
        broken: Whole lines that were not JSON objects and were skipped.
        restarts: How often the file was found replaced or shortened, and reading began anew; whoever keeps
            the records of earlier calls must drop them when this number rises.
    """

    def __init__(self, path: Path, tail: int | None = None) -> None:
        self.path = path
        self.skipped = 0
        self.broken = 0
        self.restarts = 0
        self._tail = tail
        self._offset = 0
        self._inode = 0

    def read(self) -> list[dict[str, Any]]:
        """Records that are new since the last call, oldest first.

        Raises:
            RunError: The file exists and cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if self._offset and (status.st_ino != self._inode or status.st_size < self._offset):
                    self.restarts += 1
                    self.broken = 0
                    self._offset = 0
                if self._inode != status.st_ino or not self._offset:
                    self._offset = self.skipped = self._beginning(file, status.st_size)
                self._inode = status.st_ino
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"Cannot read {self.path}: {error.strerror}.") from error
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [record for line in whole.splitlines() if (record := self._parse(line)) is not None]

    def _beginning(self, file: BinaryIO, size: int) -> int:
        """Where to begin: at the first line that lies wholly within the tail."""
        if self._tail is None or size <= self._tail:
            return 0
        file.seek(size - self._tail - 1)
        file.readline()
        return file.tell()

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            return record
        self.broken += 1
        return None


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Rewrite a file with some of its records only, in one step.

    Args:
        path: The file; nothing happens if it does not exist.
        keep: Says which records stay.

    Returns:
        How many records were dropped; if none, the file is untouched.

    Raises:
        RunError: The file cannot be read or written.
    """
    records = JsonlReader(path).read()
    kept = [record for record in records if keep(record)]
    if len(kept) < len(records):
        replace_text(path, "".join(to_json(record) + "\n" for record in kept))
    return len(records) - len(kept)


def step_of(record: Mapping[str, Any]) -> float:
    """Update of a line; one that has none, or no number, belongs to the beginning."""
    step = record.get(STEP)
    return step if isinstance(step, (int, float)) else 0


def numbers_of(records: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """What the lines that have a number under a key have there, in their order."""
    found = [record.get(key) for record in records]
    return [float(value) for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]
