"""``vlacoach watch``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlacoach.cli.console import narration, show, show_json
from vlacoach.cli.options import DEFAULT_RUNS_DIR, OUTPUT, Json, RunReference, RunsDir
from vlacoach.errors import ConfigError

if TYPE_CHECKING:
    from vlacoach.cli.dashboard.view import Options

_SCREEN = "The screen"


def watch_command(
    run: RunReference = "latest",
    over: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="RUN", help="Lay this run over the charts; may be repeated."),
    ] = None,
    readonly: Annotated[bool, typer.Option("--readonly", help="Write nothing into the run folder.")] = False,
    ascii: Annotated[
        bool, typer.Option("--ascii", help="Draw with ASCII characters alone.", rich_help_panel=_SCREEN)
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the overview and leave.", rich_help_panel=OUTPUT)] = False,
    as_json: Json = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
) -> None:
    """Follow a run in the terminal: is it learning, is it healthy, when does it end.

    Everything is read from the run folder, so a finished run, one over ssh and one on a shared disk can be watched too.
    Leaving does not stop the run; ? shows the keys.

    For example:

      vlacoach watch

      vlacoach watch baseline --with latest

      vlacoach watch --once --json
    """  # fmt: skip
    from vlacoach.runs.folder import RunFolder

    if as_json and not once:
        raise ConfigError("--json prints the overview as one document.", "Add --once.")
    found = RunFolder.open(run, runs_dir).path
    if once:
        _print_overview(found, ascii, as_json)
        return
    require_terminal()
    from vlacoach.cli.dashboard.view import Options

    others = [RunFolder.open(reference, runs_dir).path for reference in over or ()]
    run_dashboard(found, Options(runs_dir, readonly, ascii), others)


def require_terminal() -> None:
    """Refuse to start the dashboard without a terminal, which Textual would fill with escape codes.

    Raises:
        ConfigError: Input or output is not a terminal, or it cannot move its cursor.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise ConfigError("The dashboard needs a terminal.", "Without one, print the overview: vlacoach watch --once")


def run_dashboard(run: Path, options: Options, others: list[Path]) -> None:
    """Show the dashboard until the user leaves it."""
    from vlacoach.cli.dashboard.app import DashboardApp
    from vlacoach.cli.dashboard.settings import load_settings, settings_file

    file = settings_file()
    app = DashboardApp(run, options, load_settings(file), file, others)
    app.run()
    if app.return_code:
        raise typer.Exit(app.return_code)


def _print_overview(run: Path, ascii: bool, as_json: bool) -> None:
    from vlacoach.cli.dashboard.summary import overview_text
    from vlacoach.runs.overview import overview
    from vlacoach.runs.watching import RunWatcher

    watcher = RunWatcher(run)
    watcher.poll()
    view = overview(watcher)
    if as_json:
        show_json(view.to_json())
    else:
        show(overview_text(view, narration().width, ascii))
