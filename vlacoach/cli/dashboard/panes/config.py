"""The configuration: every value, where it is from, and how another run's differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import DataTable, Static

from vlacoach.cli.dashboard.fuzzy import matches
from vlacoach.cli.dashboard.panes.base import FilterPane, fill_table
from vlacoach.cli.dashboard.view import View
from vlacoach.runs import constants as names
from vlacoach.runs.watching import RunWatcher


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
        self._config: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._other: RunWatcher | None = None

    def compose(self) -> ComposeResult:
        """The filter, the table, and a line under it."""
        yield self.filter_line("parts of names or values, such as: grpo clip")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Static(id="config-note")

    def show(self, view: View) -> None:
        """List the settings."""
        self._config = view.watcher.config
        origins = view.watcher.info.get("origins")
        self._origins = origins if isinstance(origins, dict) else {}
        self.choose()

    def compare(self, path: Path | None) -> None:
        """List only what differs from another run; None lists everything again."""
        self._other = None if path is None else RunWatcher(path)
        if self._other is not None:
            self._other.poll()
        self.choose()

    def choose(self) -> None:
        """Write the list anew."""
        table = self.query_one(DataTable)
        rows = self._rows()
        if self._other is None:
            fill_table(table, ("setting", "value", "from"), rows)
            note = f"{len(rows)} of {len(self._config)} settings"
        else:
            name = self._other.path.resolve().name
            fill_table(table, ("setting", "this run", name), rows)
            note = self._other.problem or f"{len(rows)} settings differ from {name}; d shows all again"
        self.query_one("#config-note", Static).update(note if self._config else "This run has no configuration.")

    def _rows(self) -> list[tuple[Text, ...]]:
        rows: list[tuple[Text, ...]] = []
        others = None if self._other is None else self._other.config
        for key in self._config if others is None else dict.fromkeys([*self._config, *others]):
            value = written(self._config[key]) if key in self._config else "-"
            last = self._origins.get(key, "default")
            if others is not None:
                last = written(others[key]) if key in others else "-"
                if last == value:
                    continue
            if matches(self.pattern, f"{key} {value} {last}"):
                own = others is not None or last != "default"
                rows.append((Text(key, style="bold" if own else ""), Text(value), Text(last)))
        return rows

    def shown(self) -> None:
        """Give the keys to the table."""
        self.query_one(DataTable).focus()

    @property
    def comparing(self) -> bool:
        """Whether another run is compared with."""
        return self._other is not None


def written(value: Any) -> str:
    """A value as a file of settings has it, with long lists of indices as ranges."""
    from vlacoach.runs.indices import format_indices

    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return format_indices(value)
    return value if isinstance(value, str) else json.dumps(value)
