"""The configuration: every value, where it is from, and how another run's differs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import DataTable, Static

from vlacoach.cli.dashboard.fuzzy import matches
from vlacoach.cli.dashboard.panes.base import FilterPane, fill_table
from vlacoach.cli.dashboard.view import View
from vlacoach.errors import ConfigError, RunError
from vlacoach.runs import constants as names
from vlacoach.runs.difference import different_settings, settings
from vlacoach.runs.folder import RunFolder


class ConfigPane(FilterPane):
    """Settings of the run, with their origin."""

    DEFAULT_CSS = """
    ConfigPane { layout: vertical; }
    ConfigPane DataTable { height: 1fr; }
    ConfigPane #config-note { height: 1; color: $text-muted; }
    """

    files: ClassVar[frozenset[str]] = frozenset({names.CONFIG_FILE, names.RUN_FILE})

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._run: RunFolder | None = None
        self._other: RunFolder | None = None

    def compose(self) -> ComposeResult:
        """The filter, the table, and a line under it."""
        yield self.filter_line("parts of names or values, such as: grpo clip")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Static(id="config-note")

    def show(self, view: View) -> None:
        """List the settings."""
        self._run = RunFolder(view.watcher.path)
        self.choose()

    def compare(self, path: Path | None) -> None:
        """List only what differs from another run; None lists everything again."""
        self._other = None if path is None else RunFolder(path)
        self.choose()

    def choose(self) -> None:
        """Write the list anew."""
        if self._run is None:
            return
        try:
            headings, rows, note = (
                self._everything(self._run) if self._other is None else self._differences(self._run, self._other)
            )
        except (RunError, ConfigError) as error:
            headings, rows, note = ("setting", "value", "from"), [], error.message
        fill_table(self.query_one(DataTable), headings, rows)
        self.query_one("#config-note", Static).update(note)

    def _everything(self, run: RunFolder) -> tuple[tuple[str, ...], list[tuple[Text, ...]], str]:
        found = settings(run)
        rows = [
            (Text(key, style="" if setting.origin == names.DEFAULT_ORIGIN else "bold"), Text(setting.text),
             Text(setting.origin))
            for key, setting in found.items()
            if matches(self.pattern, f"{key} {setting.text} {setting.origin}")
        ]  # fmt: skip
        return ("setting", "value", "from"), list[tuple[Text, ...]](rows), f"{len(rows)} of {len(found)} settings"

    def _differences(self, run: RunFolder, other: RunFolder) -> tuple[tuple[str, ...], list[tuple[Text, ...]], str]:
        name = other.path.resolve().name
        rows = [
            (Text(key, style="bold"), *(Text("-" if setting is None else setting.text) for setting in pair))
            for key, pair in different_settings(run, other).items()
            if matches(self.pattern, key)
        ]
        return ("setting", "this run", name), rows, f"{len(rows)} settings differ from {name}; d shows all again"

    def shown(self) -> None:
        """Give the keys to the table."""
        self.query_one(DataTable).focus()

    @property
    def comparing(self) -> bool:
        """Whether another run is compared with."""
        return self._other is not None
