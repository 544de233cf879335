"""What every pane has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.widget import Widget
from textual.widgets import DataTable, Input

from vlacoach.cli.dashboard.chart import MetricChart
from vlacoach.cli.dashboard.view import View


def fill_table(table: DataTable[Text], columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
    """Write a table anew; its cursor stays on its row.

    Args:
        table: The table.
        columns: Headings.
        rows: One text a column each.
    """
    cursor = table.cursor_row
    table.clear(columns=True)
    for index, heading in enumerate(columns):
        # Widths are given, because a table that measures itself when idle shows rows that were drawn before cut short.
        table.add_column(heading, width=max([len(heading), *(row[index].cell_len for row in rows)]))
    for row in rows:
        table.add_row(*row)
    if rows:
        table.move_cursor(row=min(cursor, len(rows) - 1))


ALL_FILES: frozenset[str] = frozenset({"*"})
"""Instead of the names of changed files: the pane has just come on screen, and knows nothing."""


class Pane(Widget):
    """A part of the dashboard. Only the one on screen is kept up to date.

    Attributes:
        files: Files of the run folder that it depends on; it is updated when one of them has changed.
    """

    DEFAULT_CSS = "Pane { height: 1fr; width: 1fr; }"

    files: ClassVar[frozenset[str]] = frozenset()

    def update_view(self, view: View, changed: frozenset[str]) -> None:
        """Show what is new.

        Args:
            view: The runs; its lock is held.
            changed: Files that have changed.
        """
        if changed & (self.files | ALL_FILES):
            self.show(view)

    def show(self, view: View) -> None:
        """Show the runs as they are now; the view's lock is held."""
        raise NotImplementedError

    def shown(self) -> None:
        """The pane has come on screen."""

    def hidden(self) -> None:
        """Another pane has come on screen."""

    def charts(self) -> list[MetricChart]:
        """Charts that keys for charts act on."""
        return list(self.query(MetricChart))


class FilterPane(Pane):
    """A pane whose contents can be chosen by typing.

    Attributes:
        pattern: What has been typed.
    """

    DEFAULT_CSS = """
    FilterPane Input { display: none; height: 1; border: none; padding: 0; }
    FilterPane.-filtering Input { display: block; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.pattern = ""

    def filter_line(self, example: str) -> Input:
        """The line to type in, for :meth:`compose`; hidden until it is asked for."""
        return Input(placeholder=example, id=f"{self.id}-filter", compact=True)

    def choose(self) -> None:
        """Show what fits the pattern."""
        raise NotImplementedError

    def start_filter(self) -> None:
        """Let the user type."""
        self.add_class("-filtering")
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Choose as the user types."""
        self.pattern = event.value
        self.choose()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the choice; an empty one puts the line away."""
        self.set_class(bool(event.value), "-filtering")
        self.shown()
