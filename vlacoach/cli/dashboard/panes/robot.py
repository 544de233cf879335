"""The robot, while it works."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.timer import Timer
from textual.widgets import Static

from vlacoach.cli.dashboard.panes.base import Pane
from vlacoach.cli.dashboard.picture import PictureView
from vlacoach.cli.dashboard.view import View
from vlacoach.errors import RunError
from vlacoach.runs.live import LivePicture, keep_watching, read_live, stop_watching
from vlacoach.runs.overview import ACTIVE

PICTURE_SECONDS = 0.3
CELLS_PER_SECOND = 2000.0
"""How much is drawn at the most: a large picture comes less often, and takes no more of a core than a small one."""
SIGN_SECONDS = 2.0


class RobotPane(Pane):
    """The newest picture of one world. The trainer writes it only while this pane is on screen."""

    DEFAULT_CSS = """
    RobotPane { layout: vertical; }
    RobotPane PictureView { height: 1fr; }
    RobotPane #robot-note { height: auto; color: $text-muted; }
    """

    files: ClassVar[frozenset[str]] = frozenset({"status"})

    def __init__(self, ascii: bool, id: str) -> None:
        super().__init__(id=id)
        self._ascii = ascii
        self._folder: Path | None = None
        self._readonly = False
        self._active = False
        self._labels: dict[str, str] = {}
        self._timer: Timer | None = None
        self._signed = 0.0
        self._stamp: tuple[int, int] | None = None
        self._next_picture = 0.0
        self._problem: str | None = None

    def compose(self) -> ComposeResult:
        """The picture, and a line under it."""
        yield PictureView(ascii=self._ascii)
        yield Static(id="robot-note")

    def show(self, view: View) -> None:
        """Note which run is watched."""
        if view.watcher.path != self._folder:
            self._leave()
            self._folder, self._stamp = view.watcher.path, None
            self.query_one(PictureView).show(None, "")
        self._readonly = view.options.readonly
        self._active = view.watcher.status in ACTIVE
        labels = view.watcher.info.get("tasks")
        self._labels = labels if isinstance(labels, dict) else {}
        self._tell()

    def shown(self) -> None:
        """Begin to look."""
        self._timer = self.set_interval(PICTURE_SECONDS, self._look)

    def hidden(self) -> None:
        """Stop looking; the trainer stops drawing."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self._leave()

    def on_unmount(self) -> None:
        """Leave no sign behind."""
        self._leave()

    def _leave(self) -> None:
        if self._folder is not None and self._signed:
            self._signed = 0.0
            try:
                stop_watching(self._folder)
            except RunError:
                return  # The run is gone, and its sign with it; else the sign ages within seconds.

    @work(thread=True, exclusive=True, group="robot", exit_on_error=False)
    def _look(self) -> None:
        folder = self._folder
        if folder is None:
            return
        try:
            if self._active and not self._readonly and time.monotonic() - self._signed > SIGN_SECONDS:
                keep_watching(folder)
                self._signed = time.monotonic()
            picture = self._read(folder)
            problem = None
        except RunError as error:
            picture, problem = None, error.message
        self.app.call_from_thread(self._draw, picture, problem)

    def _read(self, folder: Path) -> LivePicture | None:
        from vlacoach.runs.constants import LIVE_FILE

        try:
            status = (folder / LIVE_FILE).stat()
        except OSError:
            return None
        stamp = (status.st_ino, status.st_mtime_ns)
        if stamp == self._stamp or time.monotonic() < self._next_picture:
            return None
        picture = read_live(folder)
        self._stamp = stamp
        return picture

    def _draw(self, picture: LivePicture | None, problem: str | None) -> None:
        if not self.is_attached:
            return  # The dashboard was left meanwhile.
        if picture is not None:
            view = self.query_one(PictureView)
            # The picture is square, and a cell is half as wide as it is high.
            side = min(view.size.width, 2 * view.size.height)
            self._next_picture = time.monotonic() + side * side / 2 / CELLS_PER_SECOND
            view.show(picture.pixels, self._caption(picture))
        self._problem = problem
        self._tell()

    def _caption(self, picture: LivePicture) -> str:
        facts = picture.facts
        task = facts.get("task")
        label = self._labels.get(str(task), "")
        what = "evaluation" if facts.get("evaluation") else f"update {facts.get('update', '?')}"
        return f"{what}, episode {facts.get('episode', '?')}, state {facts.get('init_state', '?')}: {task} {label}"

    def _tell(self) -> None:
        if self._problem is not None:
            note = self._problem
        elif not self._active:
            note = "The run is not at work; this is the last picture that was watched."
        elif self._readonly:
            note = "With --readonly the trainer is not asked for pictures."
        elif self._stamp is None:
            note = "Waiting for the next picture: they are drawn during rollouts and evaluations."
        else:
            note = ""
        self.query_one("#robot-note", Static).update(note)
