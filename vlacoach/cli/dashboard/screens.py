"""Screens over the main one: help, the choice of runs, a question, an episode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from vlacoach.cli.dashboard.bars import sparkline
from vlacoach.cli.dashboard.fuzzy import best
from vlacoach.cli.dashboard.keys import EPISODE_KEYS, KEYS, Key, by_category, shown
from vlacoach.cli.dashboard.panes.episodes import outcome
from vlacoach.cli.dashboard.picture import PictureView
from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.formatting import format_value
from vlacoach.runs.videos import FRAMES_PER_SECOND, read_frames


def bindings(keys: Sequence[Key]) -> list[BindingType]:
    """Textual's bindings of some keys."""
    return [
        Binding(key.keys, key.action, key.label, show=key.footer, id=key.id, tooltip=key.description,
                priority="tab" in key.keys)
        for key in keys
    ]  # fmt: skip


class HelpScreen(ModalScreen[None]):
    """Every key and what it does, as the user has set them."""

    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen VerticalScroll { width: 90%; max-width: 84; height: 90%; background: $panel; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,h,f1", "dismiss", "Close")]

    def __init__(self, keymap: dict[str, str]) -> None:
        super().__init__()
        self._keymap = keymap

    def compose(self) -> ComposeResult:
        """The text."""
        with VerticalScroll():
            yield Static(help_text(self._keymap))


def help_text(keymap: dict[str, str]) -> Text:
    """The help screen's text.

    Args:
        keymap: Identifier to keys, where a user has chosen others.
    """
    text = Text("Keys  (escape closes; ctrl+p finds every command by name)\n", style="bold")
    for category, keys in by_category((*KEYS, *EPISODE_KEYS)).items():
        text.append(f"\n{category}\n", "bold underline")
        for key in keys:
            where = f"  [{', '.join(key.panes)}]" if key.panes else ""
            text.append(f"  {shown(keymap.get(key.id, key.keys)):<14}", "bold")
            text.append(f" {key.description}")
            text.append(f"{where}\n", "dim")
    return text


class ConfirmScreen(ModalScreen[bool]):
    """A question with two answers.

    Args:
        question: What is asked.
    """

    DEFAULT_CSS = """
    ConfirmScreen { align: center middle; }
    ConfirmScreen Static { width: auto; max-width: 90%; background: $panel; padding: 1 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question."""
        yield Static(f"{self._question}  (y / n)")

    def action_answer(self, answer: bool) -> None:
        """Close with an answer."""
        self.dismiss(answer)


class RunsScreen(ModalScreen[tuple[Path, list[Path]] | None]):
    """A list of runs, to watch one and to lay others over it.

    Args:
        runs: Folders.
        current: The run that is watched.
        others: Runs that lie over it.
        single: Whether only one is to be chosen.
    """

    DEFAULT_CSS = """
    RunsScreen { align: center middle; }
    RunsScreen Vertical { width: 90%; max-width: 80; height: 80%; background: $panel; }
    RunsScreen Input { height: 1; border: none; padding: 0 1; }
    RunsScreen OptionList { height: 1fr; border: none; }
    RunsScreen Static { height: 1; color: $text-muted; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel"),
        Binding("ctrl+o", "overlay", "Lay over", priority=True),
        Binding("down", "move(1)", "Down", show=False, priority=True),
        Binding("up", "move(-1)", "Up", show=False, priority=True),
    ]

    def __init__(self, runs: Sequence[Path], current: Path, others: Sequence[Path], single: bool = False) -> None:
        super().__init__()
        self._runs = list(runs)
        self._current = current.resolve()
        self._others = [other.resolve() for other in others]
        self._single = single
        self._listed = self._runs

    def compose(self) -> ComposeResult:
        """The filter, the list, and what the keys do."""
        with Vertical():
            yield Input(placeholder="part of a name", compact=True)
            yield OptionList()
            over = "" if self._single else ", ctrl+o lays over the charts, or takes away"
            yield Static(f"enter chooses{over}, escape cancels")

    def on_mount(self) -> None:
        """List the runs."""
        self._fill("")
        self.query_one(Input).focus()

    def _fill(self, pattern: str) -> None:
        options = self.query_one(OptionList)
        before = options.highlighted or 0
        self._listed = best(pattern, [(path.name, path) for path in self._runs])
        options.clear_options()
        options.add_options([Option(self._label(path)) for path in self._listed])
        if self._listed:
            options.highlighted = min(before, len(self._listed) - 1)

    def _label(self, path: Path) -> Text:
        sign = "> " if path.resolve() == self._current else "+ " if path.resolve() in self._others else "  "
        return Text(sign + path.name)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Choose as the user types."""
        self._fill(event.value)

    def on_input_submitted(self) -> None:
        """Take the run under the bar."""
        self._choose(self.query_one(OptionList).highlighted)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Take the run that was clicked."""
        self._choose(event.option_index)

    def _choose(self, index: int | None) -> None:
        if index is not None and index < len(self._listed):
            chosen = self._listed[index]
            self.dismiss((chosen, self._overlays(chosen.resolve())))

    def _overlays(self, chosen: Path) -> list[Path]:
        return [path for path in self._runs if path.resolve() in self._others and path.resolve() != chosen]

    def action_move(self, by: int) -> None:
        """Move the bar."""
        options = self.query_one(OptionList)
        if self._listed:
            options.highlighted = ((options.highlighted or 0) + by) % len(self._listed)

    def action_overlay(self) -> None:
        """Lay the run under the bar over the charts, or take it away."""
        index = self.query_one(OptionList).highlighted
        if self._single or index is None or index >= len(self._listed):
            return
        path = self._listed[index].resolve()
        if path == self._current:
            return
        if path in self._others:
            self._others.remove(path)
        else:
            self._others.append(path)
        self._fill(self.query_one(Input).value)

    def action_cancel(self) -> None:
        """Change nothing of which run is watched; what was laid over stays."""
        current = next((path for path in self._runs if path.resolve() == self._current), None)
        self.dismiss(None if self._single or current is None else (current, self._overlays(self._current)))


class EpisodeScreen(ModalScreen[None]):
    """The pictures of an episode, to step through or to play, with its progress.

    Args:
        folder: The run folder.
        episode: Its line of episodes.jsonl.
        label: What the robot was told.
        ascii: Draw with ASCII characters alone.
    """

    DEFAULT_CSS = """
    EpisodeScreen { background: $background; }
    EpisodeScreen PictureView { height: 1fr; }
    EpisodeScreen Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = bindings(EPISODE_KEYS)

    def __init__(self, folder: Path, episode: dict[str, Any], label: str, ascii: bool) -> None:
        super().__init__()
        self._folder = folder
        self._episode = episode
        self._label = label
        self._ascii = ascii
        self._frames: list[npt.NDArray[np.uint8]] = []
        self._note = "reading the video ..."
        self._timer: Timer | None = None
        self.look = 0

    def compose(self) -> ComposeResult:
        """The picture, and what is known under it."""
        yield PictureView(ascii=self._ascii)
        yield Static(id="episode-text")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to read."""
        self._draw()
        self._read()

    @work(thread=True, exit_on_error=False)
    def _read(self) -> None:
        video = self._episode.get("video")
        frames: list[npt.NDArray[np.uint8]] = []
        note = ""
        if not isinstance(video, str):
            note = "This episode was not recorded; logging.episodes says how many of each update are."
        else:
            try:
                frames = read_frames(self._folder, video)
            except RunError as error:
                note = f"{error.message} {error.hint or ''}"
        self.app.call_from_thread(self._loaded, frames, note)

    def _loaded(self, frames: list[npt.NDArray[np.uint8]], note: str) -> None:
        # The last picture is held for a second at the end of a video; once is enough here.
        self._frames = frames[: len(frames) - FRAMES_PER_SECOND] or frames
        self._note = note
        if self.is_attached:  # It may have been closed meanwhile.
            self._draw()

    def _draw(self) -> None:
        count = len(self._frames)
        if count:
            self.query_one(PictureView).show(self._frames[self.look], "")
        self.query_one("#episode-text", Static).update(self._text(count))

    def _text(self, count: int) -> Text:
        episode, result = self._episode, outcome(self._episode)
        text = Text(f"task {episode.get('task', '?')}  {self._label}\n", style="bold")
        text.append(f"{result}", {"success": "green", "failure": "red"}.get(result, "yellow"))
        text.append(f"  update {episode.get(names.STEP, '?')}, state {episode.get('init_state', '?')}")
        text.append(f", {episode.get('length', '?')} steps, reward {_shown(episode.get('reward'))}")
        if episode.get("distance") is not None:
            text.append(f", distance to success {_shown(episode['distance'])}")
        progress = [value for value in episode.get("progress") or [] if isinstance(value, (int, float))]
        if count:
            text.append(f"\nlook {self.look + 1} of {count}")
        if progress:
            now = progress[min(self.look, len(progress) - 1)]
            text.append(f"  progress {now:.2f}  ")
            text.append_text(sparkline(progress, min(40, 2 * len(progress)), self._ascii))
        if self._note:
            text.append(f"\n{self._note}")
        if isinstance(episode.get("video"), str):
            text.append(f"\n{self._folder / episode['video']}", "dim")
        return text

    def action_step(self, by: int) -> None:
        """Show another picture."""
        if self._frames:
            self.look = min(max(self.look + by, 0), len(self._frames) - 1)
            self._draw()

    def action_play(self) -> None:
        """Play from here, or from the beginning at the end; or stop."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        elif self._frames:
            if self.look == len(self._frames) - 1:
                self.look = 0
            self._timer = self.set_interval(1 / FRAMES_PER_SECOND, self._play_on)

    def _play_on(self) -> None:
        self.action_step(1)
        if self.look == len(self._frames) - 1 and self._timer is not None:
            self._timer.stop()
            self._timer = None


def _shown(value: object) -> str:
    return format_value(value) if value is not None else "?"
