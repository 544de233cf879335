"""``vlacoach runs``: one subcommand a file."""

from __future__ import annotations

import typer

from vlacoach.cli.runs import export
from vlacoach.cli.runs.diff import diff_command
from vlacoach.cli.runs.ls import ls_command
from vlacoach.cli.runs.report import report_command
from vlacoach.cli.runs.rm import rm_command
from vlacoach.cli.runs.show import show_command

app = typer.Typer(no_args_is_help=True, help="Look at runs, compare them, and take things out of them.")

_LOOK, _TAKE = "Look", "Take out and remove"
app.command("ls", rich_help_panel=_LOOK)(ls_command)
app.command("show", rich_help_panel=_LOOK)(show_command)
app.command("diff", rich_help_panel=_LOOK)(diff_command)
app.command("report", rich_help_panel=_LOOK)(report_command)
app.add_typer(export.app, name="export", rich_help_panel=_TAKE)
app.command("rm", rich_help_panel=_TAKE)(rm_command)
