"""The machine: memory, processors, and what is installed."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Grid, VerticalScroll
from textual.widgets import Static

from vlacoach.cli.dashboard.chart import MetricChart
from vlacoach.cli.dashboard.curves import system_series
from vlacoach.cli.dashboard.labels import text, title
from vlacoach.cli.dashboard.panes.base import Pane
from vlacoach.cli.dashboard.view import View
from vlacoach.runs import constants as names

CHARTED = (names.SYSTEM_RSS, names.SYSTEM_CPU, names.SYSTEM_VRAM, names.SYSTEM_FREE_MEMORY)


class SystemPane(Pane):
    """Charts over the seconds since the run began, and facts of run.json."""

    DEFAULT_CSS = """
    SystemPane VerticalScroll { height: 1fr; }
    SystemPane Grid { height: auto; grid-size: 2; grid-rows: 8; grid-gutter: 0 1; }
    SystemPane #system-text { height: auto; margin: 1 0 0 0; }
    """

    files: ClassVar[frozenset[str]] = frozenset({names.SYSTEM_FILE, names.RUN_FILE})

    def __init__(self, ascii: bool, id: str) -> None:
        super().__init__(id=id)
        self._ascii = ascii

    def compose(self) -> ComposeResult:
        """The charts, and the facts under them."""
        with VerticalScroll():
            with Grid():
                for metric in CHARTED:
                    yield MetricChart(title(metric), ascii=self._ascii, name=metric)
            yield Static(id="system-text")

    def show(self, view: View) -> None:
        """Draw and write everything anew."""
        system, info = view.watcher.system, view.watcher.info
        created = info.get("created")
        began = float(created) if isinstance(created, (int, float)) else 0.0
        for chart in self.charts():
            metric = str(chart.name)
            chart.display = metric in system
            chart.set_series(system_series(metric, system[metric], began) if metric in system else [])
        rows = [(title(key).split(" (")[0], text(key, value)) for key, value in view.overview.system.items()]
        rows += [(key, str(info[key])) for key in ("host", "pid", "platform", "python", "seed") if info.get(key)]
        versions = info.get("versions")
        if isinstance(versions, dict):
            rows += [(name, str(version)) for name, version in versions.items() if version]
        if isinstance(info.get("argv"), list):
            rows.append(("command", " ".join(str(part) for part in info["argv"])))
        lines = [Text.assemble((f"{label:<16}", "dim"), value) for label, value in rows]
        self.query_one("#system-text", Static).update(Text("\n").join(lines) if lines else "Nothing is known yet.")
