"""``vlacoach runs export``: one subcommand a file."""

from __future__ import annotations

import typer

from vlacoach.cli.runs.export.adapter import adapter_command
from vlacoach.cli.runs.export.hub import hub_command
from vlacoach.cli.runs.export.metrics import csv_command, tensorboard_command
from vlacoach.cli.runs.export.rollouts import rollouts_command

app = typer.Typer(
    no_args_is_help=True,
    help="Take things out of a run, or to the Hub. What is there already is not touched without --force.",
)
app.command("adapter")(adapter_command)
app.command("hub")(hub_command)
app.command("rollouts")(rollouts_command)
app.command("csv")(csv_command)
app.command("tensorboard")(tensorboard_command)
