"""The rollouts, one line each; Enter opens one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.message import Message
from textual.widgets import DataTable, Static

from vlacoach.cli.dashboard.panes.base import FilterPane, fill_table
from vlacoach.cli.dashboard.view import View
from vlacoach.runs import constants as names
from vlacoach.runs.formatting import format_value

COLUMNS = ("update", "task", "state", "outcome", "steps", "reward", "distance", "video")
ROWS = 200
"""Episodes that are listed; more would not be read, and would slow the display."""


class EpisodesPane(FilterPane):
    """A table of rollouts, to filter and to sort."""

    DEFAULT_CSS = """
    EpisodesPane { layout: vertical; }
    EpisodesPane DataTable { height: 1fr; }
    EpisodesPane #episodes-note { height: 1; color: $text-muted; }
    """

    files: ClassVar[frozenset[str]] = frozenset({names.EPISODES_FILE})

    class Opened(Message):
        """An episode was chosen.

        Attributes:
            episode: Its line of episodes.jsonl.
        """

        def __init__(self, episode: dict[str, Any]) -> None:
            self.episode = episode
            super().__init__()

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._episodes: list[dict[str, Any]] = []
        self._listed: list[dict[str, Any]] = []
        self._skipped = False
        self._sort = 0

    def compose(self) -> ComposeResult:
        """The filter, the table, and a line under it."""
        yield self.filter_line("such as: failure task:8 video")
        yield DataTable(cursor_type="row", zebra_stripes=True, cell_padding=1)
        yield Static(id="episodes-note")

    def show(self, view: View) -> None:
        """List the newest episodes."""
        self._episodes = list(view.watcher.episodes)
        self._skipped = view.watcher.episodes_skipped
        self.choose()

    def choose(self) -> None:
        """Write the list anew."""
        table = self.query_one(DataTable)
        fitting = [episode for episode in reversed(self._episodes) if fits(self.pattern, episode)]
        column = COLUMNS[self._sort]
        if self._sort:
            fitting.sort(key=lambda episode: _order(episode, column))
        self._listed = fitting[:ROWS]
        headings = [f"{name} *" if name == column else name for name in COLUMNS]
        fill_table(table, headings, [_cells(episode) for episode in self._listed])
        older = ", older ones are not read" if self._skipped else ""
        won = sum(bool(episode.get("success")) for episode in fitting)
        note = f"{len(self._listed)} of {len(fitting)} shown, {won} succeeded{older}; sorted by {column}"
        self.query_one("#episodes-note", Static).update(note if self._episodes else "No episodes yet.")

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open the episode under the cursor."""
        event.stop()
        if 0 <= event.cursor_row < len(self._listed):
            self.post_message(self.Opened(self._listed[event.cursor_row]))

    def next_sort(self) -> None:
        """Sort by the next column; by the update, the newest are first."""
        self._sort = (self._sort + 1) % len(COLUMNS)
        self.choose()

    def shown(self) -> None:
        """Give the keys to the table."""
        self.query_one(DataTable).focus()


def outcome(episode: Mapping[str, Any]) -> str:
    """How an episode ended: success, failure, or broken where the simulation was lost."""
    if not episode.get("valid", True):
        return "broken"
    return "success" if episode.get("success") else "failure"


def fits(pattern: str, episode: Mapping[str, Any]) -> bool:
    """Whether an episode has every word of a pattern.

    Args:
        pattern: Words such as ``failure``, ``video``, or ``task:8`` (columns: update, task, state).
        episode: A line of episodes.jsonl.
    """
    facts = {
        "update": str(episode.get(names.STEP, "")),
        "task": str(episode.get("task", "")),
        "state": str(episode.get("init_state", "")),
    }
    plain = f"{outcome(episode)} {'video' if episode.get('video') else ''}"
    for word in pattern.lower().split():
        column, colon, value = word.partition(":")
        if colon and column in facts:
            if value and facts[column] != value:
                return False
        elif word not in plain:
            return False
    return True


def _cells(episode: Mapping[str, Any]) -> list[Text]:
    result = outcome(episode)
    style = {"success": "green", "failure": "red"}.get(result, "yellow")
    return [
        Text(str(episode.get(names.STEP, "")), justify="right"),
        Text(str(episode.get("task", "")), justify="right"),
        Text(str(episode.get("init_state", "")), justify="right"),
        Text(result, style=style),
        *(_number(episode.get(key)) for key in ("length", "reward", "distance")),
        Text("yes" if episode.get("video") else ""),
    ]


def _number(value: object) -> Text:
    shown = "" if value is None else format_value(round(value, 3) if isinstance(value, float) else value)
    return Text(shown, justify="right")


def _order(episode: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    if column in ("outcome", "video"):
        return (False, outcome(episode) if column == "outcome" else not episode.get("video"))
    key = {"state": "init_state", "steps": "length", "update": names.STEP}.get(column, column)
    value = episode.get(key)
    missing = isinstance(value, bool) or not isinstance(value, (int, float))
    return (missing, 0 if missing else value)
