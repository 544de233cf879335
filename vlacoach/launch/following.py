"""The near end of an engine: the copy of the run folder grows until the training has ended or the user leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import modal

from vlacoach.errors import LaunchError, VlacoachError
from vlacoach.launch.mirror import RunMirror
from vlacoach.runs.files import replace_text

LOOK_SECONDS = 10.0
"""Between two looks at the volume, and at whether the training has ended."""

RECORD_FILE = "modal.json"
"""What started a run, in its copy: ids of the app and the call."""

Say = Callable[[str], None]


class Call(Protocol):
    """What is used of ``modal.FunctionCall``."""

    def get(self, timeout: float | None = None) -> dict[str, Any]:
        """The function's result; raises ``TimeoutError`` if there is none yet."""


def follow(call: Call, mirror: RunMirror, say: Say, record: Mapping[str, str]) -> dict[str, Any]:
    """Copy a run until it has ended, and then once more with its checkpoints.

    Args:
        call: The training.
        mirror: Copies the run folder.
        say: Tells the user something.
        record: What started the run; left in the copy.

    Returns:
        Exit status and standard output of the command.

    Raises:
        LaunchError: Modal gave it up.
        RunError: The copy cannot be written.
    """
    told = False
    while True:
        _sync(mirror, say)
        told = _tell(mirror, say, record, told)
        try:
            outcome = call.get(timeout=LOOK_SECONDS)
        except TimeoutError:
            continue
        except modal.exception.ConnectionError as error:
            say(f"Modal does not answer, and is asked again: {error}")
            time.sleep(LOOK_SECONDS)
            continue
        except VlacoachError:
            _sync(mirror, say, last=True)
            raise
        except modal.exception.Error as error:
            _sync(mirror, say, last=True)
            raise LaunchError(f"Modal gave the training up: {type(error).__name__}: {error}") from error
        mirror.sync(last=True)
        _tell(mirror, say, record, told)
        return outcome


def _tell(mirror: RunMirror, say: Say, record: Mapping[str, str], told: bool) -> bool:
    """Once there is a copy, leave the record in it and say where it is; whether that has been done."""
    if mirror.path is None or told:
        return told
    replace_text(mirror.path / RECORD_FILE, json.dumps(dict(record)) + "\n")
    say(f"Run folder: {mirror.path}, a copy that grows. Watch it: vlacoach watch {mirror.path.name}")
    return True


def _sync(mirror: RunMirror, say: Say, last: bool = False) -> None:
    try:
        mirror.sync(last)
    except modal.exception.Error as error:  # The training does not depend on the copy.
        say(f"The run folder was not copied, and will be: {error}")


@contextmanager
def ways_to_go_on(mirror: RunMirror, app_id: str | None, say: Say) -> Iterator[None]:
    """If the block is left by an exception, Ctrl-C above all, say how to come back to the training and how to end it.

    A training that has ended with an error of its own needs no such words.
    """
    try:
        yield
    except LaunchError:
        raise
    except BaseException:
        say(f"The training goes on at Modal, as app {app_id}. Its log: modal app logs {app_id}")
        if mirror.path is not None:
            run = mirror.path.name
            say(f"Go on copying it: vlacoach train --engine modal --resume {run}, and watch it: vlacoach watch {run}")
        say(f"Stop it: modal app stop {app_id}")
        raise


def record_of(run: Path) -> dict[str, str] | None:
    """What started a run, by its copy; None if it was not started at Modal from here."""
    try:
        record = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return {str(key): str(value) for key, value in record.items()}
