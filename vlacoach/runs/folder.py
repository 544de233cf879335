"""The run folder: everything a run leaves behind, written by one process and read by any."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlacoach.errors import ConfigError, RunError
from vlacoach.runs import constants as names
from vlacoach.runs.checkpoints import CheckpointStore
from vlacoach.runs.files import lock_file, plain, replace_link, replace_text, writing
from vlacoach.runs.finding import find_run
from vlacoach.runs.jsonl import JsonlReader, JsonlWriter, keep_records, step_of
from vlacoach.runs.provenance import provenance
from vlacoach.runs.trackers import MetricWriter, Trackers

if TYPE_CHECKING:
    from vlacoach.runs.config import TrainConfig

STALE_SECONDS = 120.0
"""A run that says it is running but has not beaten for this long is shown as stalled."""

BEAT_SECONDS = 0.5
"""Heartbeats closer together than this are not written, unless the stage changed."""


class RunFolder:
    """One run on disk. Make it with :meth:`create`, :meth:`open` (to read) or :meth:`resume` (to write on).

    Args:
        path: The folder.

    Attributes:
        path: The folder.
        checkpoints: Its checkpoints.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self.checkpoints = CheckpointStore(path / names.CHECKPOINTS_FOLDER, keep)
        self._writers: dict[str, JsonlWriter] = {}
        self._trackers = Trackers(lambda message, advice: self.alert("warning", message, advice))
        self._lock = -1
        self._last_beat = -BEAT_SECONDS
        self._alert_lock = threading.Lock()
        self._progress: tuple[str | None, int | None, int | None] = (None, None, None)

    # Making and finding

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str,
        config: TrainConfig | None = None,
        origins: Mapping[str, str] | None = None,
        argv: Sequence[str] | None = None,
    ) -> RunFolder:
        """Make a new run folder, lock it for this process, and point ``latest`` at it.

        Args:
            root: Folder of all runs; made if missing.
            name: Name of the run, a part of the folder's name.
            config: Written as config.yaml; None for runs without one.
            origins: Where each value of the configuration came from; defaults are left out of run.json.
            argv: The command line; None is this process's.

        Raises:
            ConfigError: The name has characters that do not belong in a file name.
            RunError: The folder cannot be made.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise ConfigError(f"Run name {name!r} is not usable.", "Use letters, digits, dots, dashes, '_'.")
        # Only here and in config(): building the models takes longer than all that a reader of run folders needs.
        from vlacoach.runs.yaml_io import write_config

        run_id = secrets.token_hex(2)
        path = Path(root) / f"{datetime.now():%Y%m%d_%H%M%S}_{name}_{run_id}"
        with writing(path):
            path.mkdir(parents=True)
        folder = cls(path, config.checkpoint.keep if config else 2)
        folder.lock()
        if config is not None:
            write_config(config, path / names.CONFIG_FILE)
        folder.write_info(
            {
                "schema_version": names.SCHEMA_VERSION,
                "id": run_id,
                "name": name,
                "status": names.STATUS_CREATED,
                **provenance(config, origins, argv),
                "created": round(time.time(), 3),
                "finished": None,
                "resumed": [],
            }
        )
        replace_link(path.parent / names.LATEST_LINK, path.name)
        return folder

    @classmethod
    def open(cls, reference: str | Path, root: str | Path = "runs") -> RunFolder:
        """Find a run to read.

        Args:
            reference: Path of its folder, its folder's name, its four-digit id, a unique beginning of
                either, the name of exactly one run, or ``"latest"``.
            root: Folder of all runs.

        Raises:
            RunError: There is no such run (the message lists what exists), or it cannot be read.
        """
        folder = cls(find_run(str(reference), Path(root)))
        folder.info()
        return folder

    @classmethod
    def resume(cls, reference: str | Path, root: str | Path = "runs") -> RunFolder:
        """Find a run to go on with, and lock it for this process.

        Raises:
            RunError: There is no such run, or another process writes to it.
        """
        found = cls.open(reference, root)
        folder = cls(found.path, found.config().checkpoint.keep)
        folder.lock()
        with writing(folder.checkpoints.folder):
            folder.checkpoints.recover()
        info = folder.info()
        folder.update_info(
            pid=os.getpid(),
            host=socket.gethostname(),
            finished=None,
            resumed=[*info.get("resumed", []), round(time.time(), 3)],
        )
        return folder

    def lock(self) -> None:
        """Lock the run for this process until :meth:`close`.

        Raises:
            RunError: Another process writes to it, or the folder cannot be written.
        """
        try:
            self._lock = lock_file(self.path / names.LOCK_FILE)
        except BlockingIOError:
            pid = self.info().get("pid", "?")
            raise RunError(f"Run {self.path} is in use by process {pid}.", "Wait for it, or stop it first.") from None

    # run.json and config.yaml

    def info(self) -> dict[str, Any]:
        """Contents of run.json.

        Raises:
            RunError: It is missing, broken, or of a later schema.
        """
        file = self.path / names.RUN_FILE
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} is not a run folder: it has no {names.RUN_FILE}.") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read: {error}.") from error
        version = info.get("schema_version") if isinstance(info, dict) else None
        if not isinstance(version, int):
            raise RunError(f"{file} has no schema_version; it was not written by vlacoach.")
        if version > names.SCHEMA_VERSION:
            raise RunError(
                f"{file} has schema {version}; this vlacoach reads up to {names.SCHEMA_VERSION}.",
                "Update vlacoach.",
            )
        return dict(info)

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace run.json."""
        replace_text(self.path / names.RUN_FILE, json.dumps(plain(info), indent=2, allow_nan=False) + "\n")

    def update_info(self, **fields: Any) -> None:
        """Change some fields of run.json."""
        self.write_info({**self.info(), **fields})

    def set_status(self, status: str, error: str | None = None) -> None:
        """Note that the run has reached a state, in run.json and events.jsonl.

        Args:
            status: One of ``constants.STATUSES``.
            error: Why it failed.

        Raises:
            ValueError: There is no such status.
        """
        if status not in names.STATUSES:
            raise ValueError(f"{status!r} is not one of {names.STATUSES}")
        fields: dict[str, Any] = {"status": status, "error": error}
        if status in (names.STATUS_FINISHED, names.STATUS_FAILED, names.STATUS_INTERRUPTED):
            fields["finished"] = round(time.time(), 3)
        self.update_info(**fields)
        self.log_event("status", status=status, **({"error": error} if error else {}))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep the status right while work goes on: running, then finished, interrupted, or failed."""
        self.set_status(names.STATUS_RUNNING)
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            # A folder that can no longer be written must not hide why the work ended.
            with suppress(RunError):
                self.set_status(
                    names.STATUS_INTERRUPTED if stopped else names.STATUS_FAILED,
                    None if stopped else f"{type(error).__name__}: {error}",
                )
            raise
        self.set_status(names.STATUS_FINISHED)

    def status(self) -> str:
        """Status of the run; ``"stalled"`` if it claims to run and its heartbeat has stopped."""
        info = self.info()
        status = str(info.get("status", names.STATUS_CREATED))
        if status not in (names.STATUS_CREATED, names.STATUS_RUNNING, names.STATUS_PAUSED):
            return status
        signs = [self.heartbeat().get(names.TIME), info.get("created")]
        last = next((sign for sign in signs if isinstance(sign, (int, float))), 0.0)
        return "stalled" if time.time() - last > STALE_SECONDS else status

    def config(self) -> TrainConfig:
        """Configuration of the run.

        Raises:
            RunError: The run has none.
            ConfigError: It is not valid.
        """
        file = self.path / names.CONFIG_FILE
        if not file.is_file():
            raise RunError(f"Run {self.path} has no {names.CONFIG_FILE}.")
        from vlacoach.runs.config import TrainConfig

        return TrainConfig.load(file)

    # Writing

    def writer(self, file: str) -> JsonlWriter:
        """Writer of one of the run's JSON-lines files."""
        if file not in self._writers:
            self._writers[file] = JsonlWriter(self.path / file)
        return self._writers[file]

    def log_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, and send it to the trackers; ``step`` is the number of updates done."""
        self.writer(names.METRICS_FILE).write({names.STEP: step, **values})
        self._trackers.log(step, values)

    def attach(self, tracker: MetricWriter) -> None:
        """Send metrics to a tracker too, which :meth:`close` ends."""
        self._trackers.attach(tracker)

    def log_episode(self, step: int, **fields: Any) -> None:
        """Append a line to episodes.jsonl."""
        self.writer(names.EPISODES_FILE).write({names.STEP: step, **fields})

    def log_event(self, kind: str, **fields: Any) -> None:
        """Append a line to events.jsonl."""
        self.writer(names.EVENTS_FILE).write({"event": kind, **fields})

    def alert(self, level: str, message: str, advice: str | None = None, **fields: Any) -> None:
        """Append a line to alerts.jsonl, from any thread; ``level`` is ``"warning"`` or ``"error"``."""
        with self._alert_lock:
            self.writer(names.ALERTS_FILE).write({"level": level, "message": message, "advice": advice, **fields})

    def log(self, text: str) -> None:
        """Append a dated line to log.txt."""
        file = self.path / names.LOG_FILE
        with writing(file), file.open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")

    def progress(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        """Say what the run is doing, and how far that is; then :meth:`beat`.

        Args:
            stage: What is being done.
            done: Units of work done in it.
            total: Units of work in it, or None if unknown.

        Raises:
            RunError: The folder is gone or not writable.
        """
        changed = (stage, total) != (self._progress[0], self._progress[2])
        self._progress = (stage, done, total)
        self.beat(force=changed)

    @property
    def last_beat(self) -> float:
        """When this process last wrote a heartbeat, by ``time.monotonic``; below 0 if it has not yet."""
        return self._last_beat

    def beat(self, force: bool = False) -> None:
        """Say that the run is alive; cheap enough to call at every simulator step.

        Args:
            force: Write even if the last heartbeat is very young.

        Raises:
            RunError: The folder is gone or not writable.
        """
        now = time.monotonic()
        if now - self._last_beat < BEAT_SECONDS and not force:
            return
        self._last_beat = now
        stage, done, total = self._progress
        beat = {names.TIME: round(time.time(), 3), "pid": os.getpid(), "stage": stage, "done": done, "total": total}
        replace_text(self.path / names.HEARTBEAT_FILE, json.dumps(beat) + "\n", sync=False)

    def rewind(self, step: int) -> None:
        """Drop metrics and episodes after an update, so that a resumed run repeats no line.

        Args:
            step: Last update whose lines stay.

        Raises:
            RunError: The files cannot be rewritten.
        """
        for file in (names.METRICS_FILE, names.EPISODES_FILE):
            self._keep(file, lambda record: step_of(record) <= step)

    def forget_metrics(self, step: int, keys: Collection[str]) -> None:
        """Drop lines of metrics that will be written again, as after a kill between two of them.

        Args:
            step: Update whose lines go if they have one of the keys.
            keys: Metrics.
        """
        self._keep(names.METRICS_FILE, lambda record: step_of(record) != step or record.keys().isdisjoint(keys))

    def _keep(self, file: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        if file in self._writers:
            self._writers.pop(file).close()
        keep_records(self.path / file, keep)

    def sync(self) -> None:
        """Wait until the disk has every line, so that a checkpoint never outlives the lines before it.

        Raises:
            RunError: The disk refuses.
        """
        for writer in self._writers.values():
            writer.sync()

    def close(self) -> None:
        """End the trackers, close the files, and give the lock back."""
        try:
            self._trackers.close()
        finally:
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def reader(self, file: str) -> JsonlReader:
        """A new reader of one of the run's JSON-lines files, from its beginning."""
        return JsonlReader(self.path / file)

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl."""
        return self.reader(names.METRICS_FILE).read()

    def episodes(self) -> list[dict[str, Any]]:
        """Every whole line of episodes.jsonl."""
        return self.reader(names.EPISODES_FILE).read()

    def events(self) -> list[dict[str, Any]]:
        """Every whole line of events.jsonl."""
        return self.reader(names.EVENTS_FILE).read()

    def alerts(self) -> list[dict[str, Any]]:
        """Every whole line of alerts.jsonl."""
        return self.reader(names.ALERTS_FILE).read()

    def heartbeat(self) -> dict[str, Any]:
        """The last heartbeat, or an empty dict if there is none yet."""
        try:
            beat = json.loads((self.path / names.HEARTBEAT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # A heart that has not begun to beat is no error.
        return beat if isinstance(beat, dict) else {}
