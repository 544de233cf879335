"""Runs that fail before they have begun leave nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from vlacoach.runs.folder import RunFolder
from vlacoach.runs.removing import repair_latest
from vlacoach.runs.reporting import Reporter


@contextmanager
def discarded_if_nothing_began(folder: RunFolder, reporter: Reporter) -> Iterator[None]:
    """Remove a new run's folder if the work fails before its first checkpoint.

    A run writes that one before anything that takes time; without it there is nothing to resume, evaluate or look at.
    ``latest`` points at the run before again.

    Args:
        folder: The run's.
        reporter: Is told.
    """
    try:
        yield
    except BaseException:
        if not folder.checkpoints.entries():
            shutil.rmtree(folder.path, ignore_errors=True)
            repair_latest(folder.path.parent)
            reporter.message(f"Nothing had begun, so the run folder is removed: {folder.path}")
        raise
