"""What the panes are shown: the run that is watched, runs to compare it with, and how to draw."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlacoach.cli.dashboard.series import SERIES_COLORS
from vlacoach.runs.finding import list_runs
from vlacoach.runs.overview import Overview, overview
from vlacoach.runs.watching import RunWatcher


@dataclass(frozen=True)
class Options:
    """How the dashboard was started.

    Attributes:
        runs_dir: Folder of all runs.
        readonly: Write nothing: no wishes to the run, no sign of a watcher.
        ascii: Draw with ASCII characters alone.
        poll_seconds: Time between two looks at the files.
    """

    runs_dir: Path
    readonly: bool = False
    ascii: bool = False
    poll_seconds: float = 0.5


@dataclass
class View:
    """The runs on screen.

    Attributes:
        watcher: The run that is watched.
        others: Runs laid over its charts.
        overview: The run on one page, as of the last look.
        options: How to draw.
        lock: Held while files are read, and while a pane reads what they held.
    """

    watcher: RunWatcher
    options: Options
    overview: Overview
    others: list[RunWatcher] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, path: Path, options: Options) -> View:
        """A view of a run that has not been read yet."""
        watcher = RunWatcher(path)
        return cls(watcher, options, overview(watcher))

    def poll(self) -> frozenset[str]:
        """Read what is new of every run; returns what has changed of any."""
        with self.lock:
            changed = self.watcher.poll()
            for other in self.others:
                changed |= other.poll()
            if changed:
                self.overview = overview(self.watcher)
        return changed

    def select(self, path: Path, others: Sequence[Path]) -> None:
        """Watch another run, and lay others over it; runs that are known already are not read again."""
        with self.lock:
            known = {watcher.path: watcher for watcher in (self.watcher, *self.others)}
            self.watcher = known.get(path) or RunWatcher(path)
            self.others = [known.get(other) or RunWatcher(other) for other in others if other != path]
            self.overview = overview(self.watcher)

    def colors(self) -> dict[Path, str]:
        """A color for each run on screen: the same today and tomorrow, unless two on screen would share it."""
        colors: dict[Path, str] = {}
        for watcher in (self.watcher, *self.others):
            free = [color for color in SERIES_COLORS if color not in colors.values()] or list(SERIES_COLORS)
            first = zlib.crc32(watcher.path.name.encode()) % len(SERIES_COLORS)
            wished = SERIES_COLORS[first]
            colors[watcher.path] = wished if wished in free else free[first % len(free)]
        return colors

    def candidates(self) -> list[Path]:
        """Run folders beside the one that is watched, newest first."""
        found = {path.resolve(): path for path in list_runs(self.options.runs_dir)}
        found.setdefault(self.watcher.path.resolve(), self.watcher.path)
        return sorted(found.values(), key=lambda path: path.name, reverse=True)
