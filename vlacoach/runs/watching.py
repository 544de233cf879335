"""Following a run from its folder alone: read what is new, keep what is worth showing, survive what is broken."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

from vlacoach.errors import ConfigError, RunError
from vlacoach.runs import constants as names
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.jsonl import JsonlReader
from vlacoach.runs.series import SeriesTable
from vlacoach.runs.yaml_io import read_settings

EPISODE_BYTES = 2**20
"""How much of the end of episodes.jsonl is read: some 6,000 episodes."""
LOG_BYTES = 256 * 2**10
EPISODES_KEPT = 20_000
EVENTS_KEPT = 2_000
LOG_LINES_KEPT = 2_000


class RunWatcher:
    """What a run has written so far, brought up to date by :meth:`poll`.

    Nothing but the files is asked, so a finished run, one over ssh, and one on a shared disk are watched alike.

    Args:
        path: The run folder.

    Attributes:
        path: The run folder.
        info: Contents of run.json.
        status: As ``RunFolder.status`` says: a status, or ``"stalled"``.
        heartbeat: The last one.
        config: Dotted key to value, as config.yaml has them.
        metrics: Columns of metrics.jsonl.
        system: Columns of system.jsonl.
        episodes: The newest episodes, oldest first.
        events: The newest events, oldest first.
        alerts: All alerts, oldest first.
        log: The newest lines of log.txt, oldest first.
        problem: What cannot be read, in words; None if all is well. Whatever was read before stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: dict[str, Any] = {}
        self.status = names.STATUS_CREATED
        self.heartbeat: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.problem: str | None = None
        self._folder = RunFolder(path)
        self._log = _TextTail(path / names.LOG_FILE)
        self._stamps: dict[str, tuple[int, int, int]] = {}
        self._clear()

    def _clear(self) -> None:
        self.metrics = SeriesTable()
        self.system = SeriesTable()
        self.episodes: deque[dict[str, Any]] = deque(maxlen=EPISODES_KEPT)
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self.alerts: list[dict[str, Any]] = []
        self._readers = {
            names.METRICS_FILE: JsonlReader(self.path / names.METRICS_FILE),
            names.SYSTEM_FILE: JsonlReader(self.path / names.SYSTEM_FILE),
            names.EPISODES_FILE: JsonlReader(self.path / names.EPISODES_FILE, EPISODE_BYTES),
            names.EVENTS_FILE: JsonlReader(self.path / names.EVENTS_FILE, EPISODE_BYTES),
            names.ALERTS_FILE: JsonlReader(self.path / names.ALERTS_FILE),
        }

    @property
    def log(self) -> list[str]:
        """The newest lines of log.txt, oldest first."""
        return list(self._log.lines)

    @property
    def broken(self) -> dict[str, int]:
        """Files with lines that could not be read, and how many."""
        return {name: reader.broken for name, reader in self._readers.items() if reader.broken}

    @property
    def episodes_skipped(self) -> bool:
        """Whether there are older episodes than those that were read."""
        return self._readers[names.EPISODES_FILE].skipped > 0

    def poll(self) -> frozenset[str]:
        """Read what is new.

        Returns:
            Names of the files that have changed since the last call; ``"status"`` if the status has, ``"problem"`` if
            the problem has. Errors are no exceptions here: a display goes on with what it has.
        """
        changed: set[str] = set()
        before = (self.status, self.problem)
        try:
            self._read(changed)
            self.problem = None
        except (RunError, ConfigError) as error:
            self.problem = error.message if self.path.is_dir() else f"The run folder is gone: {self.path}."
        except OSError as error:
            self.problem = f"{error.filename or self.path} cannot be read: {error.strerror}."
        changed |= {name for name, old, new in _pairs(before, (self.status, self.problem)) if old != new}
        return frozenset(changed)

    def _read(self, changed: set[str]) -> None:
        if self._is_new(names.RUN_FILE) or not self.info:
            self.info = self._folder.info()
            changed.add(names.RUN_FILE)
        if self._is_new(names.HEARTBEAT_FILE):
            self.heartbeat = self._folder.heartbeat()
            changed.add(names.HEARTBEAT_FILE)
        self.status = self._folder.status()
        if self._is_new(names.CONFIG_FILE):
            self.config = read_settings(self.path / names.CONFIG_FILE)
            changed.add(names.CONFIG_FILE)
        self._read_lines(changed)
        if self._log.poll():
            changed.add(names.LOG_FILE)

    def _read_lines(self, changed: set[str]) -> None:
        restarts = sum(reader.restarts for reader in self._readers.values())
        found = {name: reader.read() for name, reader in self._readers.items()}
        if sum(reader.restarts for reader in self._readers.values()) > restarts:
            # A resumed run has taken lines back; what was read of them must go.
            self._clear()
            found = {name: reader.read() for name, reader in self._readers.items()}
            changed |= set(found)
        self.metrics.extend(found[names.METRICS_FILE])
        self.system.extend(found[names.SYSTEM_FILE])
        self.episodes.extend(found[names.EPISODES_FILE])
        self.events.extend(found[names.EVENTS_FILE])
        self.alerts.extend(found[names.ALERTS_FILE])
        changed |= {name for name, records in found.items() if records}

    def _is_new(self, file: str) -> bool:
        try:
            status = os.stat(self.path / file)
        except FileNotFoundError:
            return False
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._stamps.get(file) == stamp:
            return False
        self._stamps[file] = stamp
        return True


class _TextTail:
    """The newest lines of a growing text file."""

    def __init__(self, path: Path) -> None:
        self.lines: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._path = path
        self._offset: int | None = None

    def poll(self) -> bool:
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if self._offset is None or size < self._offset:
                    self.lines.clear()
                    self._offset = max(0, size - LOG_BYTES)
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.lines.extend(whole.decode("utf-8", "replace").splitlines())
        return bool(whole)


def _pairs(before: tuple[object, ...], after: tuple[object, ...]) -> list[tuple[str, object, object]]:
    return list(zip(("status", "problem"), before, after, strict=True))
