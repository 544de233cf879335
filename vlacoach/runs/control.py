"""Asking a run for something while it works: pause, checkpoint, evaluate, stop.

Whoever watches replaces ``control.json`` in the run folder; the trainer looks at it between the worlds' rounds and
between updates. A file, not a socket: it works over ssh and on shared disks, and nothing listens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vlacoach.errors import RunError
from vlacoach.runs.constants import CONTROL_FILE, STATUS_PAUSED, STATUS_RUNNING
from vlacoach.runs.files import replace_text
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.reporting import Reporter
from vlacoach.runs.stopping import GracefulStop

POLL_SECONDS = 0.2
"""How often a paused run looks whether it may go on."""

Wish = Literal["pause", "resume", "checkpoint", "evaluate", "stop"]
"""What a run can be asked for."""


@dataclass(frozen=True)
class Control:
    """What ``control.json`` says.

    Attributes:
        paused: The run is to wait.
        stop: The run is to end after the present update, with a checkpoint.
        checkpoint: How often a checkpoint has been asked for so far.
        evaluate: How often an evaluation has been asked for so far.
    """

    paused: bool = False
    stop: bool = False
    checkpoint: int = 0
    evaluate: int = 0

    def with_wish(self, wish: Wish) -> Control:
        """What the file says once a wish is added."""
        if wish in ("pause", "resume"):
            return replace(self, paused=wish == "pause")
        if wish == "stop":
            # A paused run could not reach the end of its update.
            return replace(self, stop=True, paused=False)
        return replace(self, **{wish: getattr(self, wish) + 1})


def read_control(folder: Path) -> Control:
    """Read the wishes to a run; a missing file has none.

    Raises:
        RunError: The file cannot be read, or does not hold what it should.
    """
    file = folder / CONTROL_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Control()
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file} cannot be read: {error}.", "Remove it, and ask again.") from error
    return _parse(content, file)


def _parse(content: Any, file: Path) -> Control:
    defaults = asdict(Control())
    if not isinstance(content, dict):
        raise RunError(f"{file} is not a JSON object.", "Remove it, and ask again.")
    values: dict[str, Any] = {}
    for key, default in defaults.items():
        value = content.get(key, default)
        if type(value) is not type(default) or value < 0:
            raise RunError(f"{file}: {key!r} cannot be {value!r}.", "Remove it, and ask again.")
        values[key] = value
    return Control(**values)


def ask(folder: Path, wish: Wish) -> Control:
    """Ask a run for something.

    Args:
        folder: The run folder.
        wish: What is wanted. ``checkpoint`` and ``evaluate`` are done once for each time they are asked.

    Returns:
        What the file says now.

    Raises:
        RunError: The folder cannot be written; the run goes on as before.
    """
    try:
        before = read_control(folder)
    except RunError:
        before = Control()  # A broken file is replaced by the one that is wanted now.
    after = before.with_wish(wish)
    text = json.dumps({"time": round(time.time(), 3), **asdict(after)})
    replace_text(folder / CONTROL_FILE, text + "\n", sync=False)
    return after


class ControlReader:
    """The trainer's side: notices that the file has changed, and what is still to be done.

    Wishes of an earlier session are void: a run that is resumed would stop at once.

    Args:
        folder: The run folder.

    Raises:
        RunError: An old file cannot be removed.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / CONTROL_FILE
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{self._file} cannot be removed: {error.strerror}.") from error
        self._seen: tuple[int, int] | None = None
        self._now = Control()
        self._done = Control()

    def poll(self) -> Control:
        """Read the file if it has changed; costs one ``stat`` otherwise.

        Raises:
            RunError: It changed to something that cannot be understood; what it said before stays in force.
        """
        try:
            status = self._file.stat()
        except OSError:
            # A wish that was taken back, or a folder that is gone, which the next write will report.
            self._now, self._seen = self._done, None
            return self._now
        seen = (status.st_ino, status.st_mtime_ns)
        if seen != self._seen:
            self._seen = seen
            self._now = read_control(self._file.parent)
        return self._now

    def take(self, wish: Literal["checkpoint", "evaluate"]) -> bool:
        """Whether something was asked for that has not been done yet; it counts as done from now on."""
        asked = getattr(self._now, wish)
        due = asked > getattr(self._done, wish)
        self._done = replace(self._done, **{wish: asked})
        return bool(due)


class RemoteControl:
    """Does what ``control.json`` asks for, as far as that can be done between two rounds of the worlds.

    Args:
        folder: The run's folder.
        reporter: Told what was asked for.
        stop: Gets the wish to stop.
        on_pause: Called again and again while the run is paused.

    Raises:
        RunError: An old file of wishes cannot be removed.
    """

    def __init__(
        self,
        folder: RunFolder,
        reporter: Reporter,
        stop: GracefulStop,
        on_pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_pause = on_pause
        self._folder = folder
        self._reporter = reporter
        self._stop = stop
        self._reader = ControlReader(folder.path)
        self._paused_seconds = 0.0

    def clock(self) -> float:
        """Seconds that rise while the run is not paused."""
        return time.perf_counter() - self._paused_seconds

    def obey(self) -> None:
        """Look for new wishes; note a wish to stop, and wait as long as the run is paused.

        Raises:
            RunError: The folder is gone or not writable.
        """
        if self._poll().paused and not self._stop.requested:
            self._pause()

    def take(self, wish: Literal["checkpoint", "evaluate"]) -> bool:
        """Whether this was asked for and has not been done yet; it counts as done from now on."""
        due = self._reader.take(wish)
        if due:
            self._tell(wish)
        return due

    def _poll(self) -> Control:
        try:
            found = self._reader.poll()
        except RunError as error:
            self._folder.alert("warning", error.message, error.hint)
            self._reporter.message(f"{error.message} {error.hint}", "warning")
            return Control()
        if found.stop and not self._stop.requested:
            self._stop.requested = True
            self._tell("stop after this update")
        return found

    def _pause(self) -> None:
        self._tell("pause")
        self._folder.set_status(STATUS_PAUSED)
        began = time.perf_counter()
        while self._poll().paused and not self._stop.requested:
            self._folder.beat()
            self._on_pause()
            time.sleep(POLL_SECONDS)
        self._paused_seconds += time.perf_counter() - began
        self._folder.set_status(STATUS_RUNNING)
        self._reporter.message("Going on.")

    def _tell(self, wish: str) -> None:
        self._folder.log_event("control", wish=wish)
        self._reporter.message(f"Asked for by a watcher: {wish}")
