"""How long-running work tells whoever watches what it is doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

Level = Literal["info", "warning", "error"]


@runtime_checkable
class Reporter(Protocol):
    """Receives the progress of a run; the command line shows it, a test records it."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins.

        Args:
            name: What is being done, for example ``"rollout"``.
            total: Units of work in it, or None if unknown.
        """

    def advance(self, amount: int = 1, **fields: Any) -> None:
        """Work on the stage has gone on.

        Args:
            amount: Units done since the last call.
            **fields: What to show beside the bar, for example ``success=0.43``.
        """

    def update(self, metrics: Mapping[str, float], done: int | None = None, total: int | None = None) -> None:
        """A part of the whole run, such as an update, is done.

        Args:
            metrics: Its metrics, by the names in ``vlacoach.runs.constants``.
            done: Parts done so far.
            total: Parts in all.
        """

    def message(self, text: str, level: Level = "info") -> None:
        """Something worth a line of its own.

        Args:
            text: The line.
            level: How grave it is.
        """


class NullReporter:
    """Shows nothing."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Ignore the stage."""

    def advance(self, amount: int = 1, **fields: Any) -> None:
        """Ignore the step."""

    def update(self, metrics: Mapping[str, float], done: int | None = None, total: int | None = None) -> None:
        """Ignore the metrics."""

    def message(self, text: str, level: Level = "info") -> None:
        """Ignore the line."""
