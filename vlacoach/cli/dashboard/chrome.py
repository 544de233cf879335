"""The frame around the panes: the line with the run's state, and the row of tabs."""

from __future__ import annotations

from rich.text import Text
from textual import events
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from vlacoach.cli.dashboard.keys import PANE_NAMES
from vlacoach.cli.dashboard.summary import course_text, status_text
from vlacoach.runs.overview import Overview


class RunLine(Widget):
    """Name, state and course of the run, on one line; what does not fit is left out from the right."""

    DEFAULT_CSS = "RunLine { height: 1; background: $panel; color: $foreground; }"

    view: reactive[Overview | None] = reactive(None)
    ascii: reactive[bool] = reactive(False)

    def render(self) -> Text:
        """The line."""
        if self.view is None:
            return Text("reading ...")
        line = Text.assemble(
            status_text(self.view, self.ascii), f"  {course_text(self.view)}  ", (self.view.run, "dim")
        )
        line.truncate(self.size.width)
        return line


class Tabs(Widget):
    """Numbers and titles of the panes; only numbers, but for the one on screen, where there is little room."""

    DEFAULT_CSS = """
    Tabs { height: 1; background: $surface; color: $text-muted; }
    """

    class Chosen(Message):
        """A tab was clicked.

        Attributes:
            pane: Identifier of its pane.
        """

        def __init__(self, pane: str) -> None:
            self.pane = pane
            super().__init__()

    active: reactive[str] = reactive(PANE_NAMES[0][0])

    def labels(self) -> list[tuple[str, str]]:
        """Identifier and label of each tab, as there is room for."""
        full = [(name, f"{number} {title} ") for number, (name, title) in enumerate(PANE_NAMES, 1)]
        if sum(len(label) for _, label in full) <= self.size.width:
            return full
        return [(name, label if name == self.active else f"{number} ") for number, (name, label) in enumerate(full, 1)]

    def render(self) -> Text:
        """The row."""
        text = Text(no_wrap=True)
        for name, label in self.labels():
            text.append(label, "bold reverse" if name == self.active else "")
        return text

    def on_click(self, event: events.Click) -> None:
        """Choose the tab under the mouse."""
        end = 0
        for name, label in self.labels():
            end += len(label)
            if event.x < end:
                self.post_message(self.Chosen(name))
                return
