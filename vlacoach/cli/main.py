"""The ``vlacoach`` command.

The commands import what they need when they run, so that ``vlacoach --help`` is quick and loads neither torch nor
mujoco nor textual.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler
from typer.core import TyperGroup

from vlacoach import __version__
from vlacoach.cli import config, demos, doctor, envs, reward, runs
from vlacoach.cli.console import Verbosity, narration, show_error
from vlacoach.cli.eval import evaluate_command
from vlacoach.cli.plan import plan_command
from vlacoach.cli.sft import sft_command
from vlacoach.cli.train import train_command
from vlacoach.cli.watch import watch_command
from vlacoach.errors import ConfigError, ExitCode, VlacoachError


class _Group(TyperGroup):
    """Turns the project's own errors into a message and an exit status; all others keep their traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except VlacoachError as error:
            show_error(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            narration().print("Interrupted.")
            raise typer.Exit(ExitCode.INTERRUPTED) from error


app = typer.Typer(
    cls=_Group,
    name="vlacoach",
    help="Improve vision-language-action models in LIBERO by reinforcement learning.",
    epilog="Exit status: 0 done, 1 failure, 2 usage or configuration, 3 simulator, 4 model or checkpoint, "
    "5 run folder, 6 training diverged, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_TRAINING, _INSPECTION = "Train and evaluate", "Look and check"
app.command("train", rich_help_panel=_TRAINING)(train_command)
app.command("watch", rich_help_panel=_TRAINING)(watch_command)
app.command("eval", rich_help_panel=_TRAINING)(evaluate_command)
app.command("sft", rich_help_panel=_TRAINING)(sft_command)
app.add_typer(demos.app, name="demos", rich_help_panel=_TRAINING)
app.command("plan", rich_help_panel=_INSPECTION)(plan_command)
app.add_typer(reward.app, name="reward", rich_help_panel=_INSPECTION)
app.add_typer(runs.app, name="runs", rich_help_panel=_INSPECTION)
app.add_typer(envs.app, name="envs", rich_help_panel=_INSPECTION)
app.add_typer(config.app, name="config", rich_help_panel=_INSPECTION)
app.command("doctor", rich_help_panel=_INSPECTION)(doctor.doctor_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlacoach {__version__}")
        raise typer.Exit()


@app.callback()
def _global_options(
    context: typer.Context,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; -vv says everything.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no narration.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    if verbose and quiet:
        raise ConfigError("-v and -q contradict each other.", "Give one of them.")
    context.obj = Verbosity(verbose, quiet)
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = RichHandler(console=narration(), show_path=False, markup=False)
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)


def run_command(arguments: list[str]) -> int:
    """Run a command line in this process.

    Args:
        arguments: All words after ``vlacoach``.

    Returns:
        Its exit status.
    """
    try:
        app(args=arguments, prog_name="vlacoach")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.OK if end.code is None else ExitCode.FAILURE
    return ExitCode.OK


def main() -> None:
    """Run the command line and exit with its status."""
    app(args=sys.argv[1:], prog_name="vlacoach")
