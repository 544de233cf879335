"""What the run said."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import RichLog, Static

from vlacoach.cli.dashboard.fuzzy import matches
from vlacoach.cli.dashboard.panes.base import FilterPane
from vlacoach.cli.dashboard.view import View
from vlacoach.runs import constants as names

LEVELS = ("everything", "warnings and errors", "errors")
_SIGNS = ("", "WARNING", "ERROR")


class LogPane(FilterPane):
    """The tail of log.txt, by level and by words."""

    DEFAULT_CSS = """
    LogPane { layout: vertical; }
    LogPane RichLog { height: 1fr; background: $background; }
    LogPane #log-note { height: 1; color: $text-muted; }
    """

    files: ClassVar[frozenset[str]] = frozenset({names.LOG_FILE})

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.level = 0
        self.follow = True
        self._lines: list[str] = []

    def compose(self) -> ComposeResult:
        """The filter, the lines, and a note."""
        yield self.filter_line("words that a line must have")
        yield RichLog(wrap=True, auto_scroll=False)
        yield Static(id="log-note")

    def show(self, view: View) -> None:
        """Show the newest lines."""
        self._lines = view.watcher.log
        self.choose()

    def choose(self) -> None:
        """Write the list anew."""
        log = self.query_one(RichLog)
        top = log.scroll_y
        log.clear()
        fitting = [line for line in self._lines if self._fits(line)]
        for line in fitting:
            log.write(Text(line, style=_style(line)), scroll_end=False)
        if self.follow:
            log.scroll_end(animate=False)
        else:
            log.scroll_to(y=top, animate=False)
        follow = "following" if self.follow else "not following"
        self.query_one("#log-note", Static).update(
            f"{len(fitting)} of {len(self._lines)} lines, {LEVELS[self.level]}, {follow}"
        )

    def _fits(self, line: str) -> bool:
        grave = not self.level or any(f" {sign} " in line for sign in _SIGNS[self.level :])
        return grave and matches(self.pattern, line)

    def next_level(self) -> None:
        """Show graver lines only, or all again."""
        self.level = (self.level + 1) % len(LEVELS)
        self.choose()

    def toggle_follow(self) -> None:
        """Keep the newest line in view, or stay where we are."""
        self.follow = not self.follow
        self.choose()

    def shown(self) -> None:
        """Give the keys to the lines."""
        self.query_one(RichLog).focus()


def _style(line: str) -> str:
    return "bold red" if " ERROR " in line else "yellow" if " WARNING " in line else ""
