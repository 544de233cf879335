"""``vlacoach envs``: one subcommand a file."""

from __future__ import annotations

import typer

from vlacoach.cli.envs.check import check_command
from vlacoach.cli.envs.ls import ls_command
from vlacoach.cli.envs.play import play_command

app = typer.Typer(no_args_is_help=True, help="Look at the simulated tasks, check them, and play them by hand.")

app.command("ls")(ls_command)
app.command("check")(check_command)
app.command("play")(play_command)
