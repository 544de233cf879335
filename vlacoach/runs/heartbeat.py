"""What a run tells its folder while it works: a reporter that keeps the heartbeat's stage and progress right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlacoach.runs.folder import RunFolder
from vlacoach.runs.reporting import Level, Reporter


class RunReporter:
    """Passes everything on, and writes stages to the heartbeat and messages to the log.

    Args:
        folder: The run's folder.
        reporter: Who shows progress on the terminal.
    """

    def __init__(self, folder: RunFolder, reporter: Reporter) -> None:
        self._folder = folder
        self._reporter = reporter
        self._stage = "starting"
        self._done = 0
        self._total: int | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins."""
        self._stage, self._done, self._total = name, 0, total
        self._folder.progress(name, 0 if total else None, total)
        self._reporter.stage(name, total)

    def advance(self, amount: int = 1, **fields: Any) -> None:
        """Work on the stage has gone on."""
        self._done += amount
        self._folder.progress(self._stage, self._done, self._total)
        self._reporter.advance(amount, **fields)

    def update(self, metrics: Mapping[str, float], done: int | None = None, total: int | None = None) -> None:
        """An update is done."""
        self._reporter.update(metrics, done, total)

    def message(self, text: str, level: Level = "info") -> None:
        """Something worth a line of its own, in the log too."""
        self._folder.log(text if level == "info" else f"{level.upper()} {text}")
        self._reporter.message(text, level)
