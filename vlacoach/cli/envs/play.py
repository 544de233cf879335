"""``vlacoach envs play``."""

from __future__ import annotations

import locale
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vlacoach.cli.options import complete_suite
from vlacoach.errors import ConfigError

if TYPE_CHECKING:
    from vlacoach.cli.play_world import World


def play_command(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="LIBERO suite.", autocompletion=complete_suite)],
    task: Annotated[int, typer.Argument(metavar="TASK", help="Task of the suite; see: vlacoach envs ls SUITE.")],
    state: Annotated[
        int, typer.Option("--state", help="Initial state: 0 to 49, a fresh one from 1000 on, or -1 for one of --seed.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of a fresh state.")] = 0,
    ascii: Annotated[bool, typer.Option("--ascii", help="Draw in characters instead of colored blocks.")] = False,
) -> None:
    """Play a task by hand: keys move the arm, and its picture is in the terminal. ? shows the keys.

    For example:

      vlacoach envs play libero_goal 8

      vlacoach envs play libero_goal 8 --state -1 --seed 3
    """  # fmt: skip
    from vlacoach.envs.suites import check_init_state, get_suite

    get_suite(suite).task(task)
    check_init_state(state)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        # Without one Textual would write its escape codes anyway, and end as if all were well.
        raise ConfigError("There is no terminal to play in.", "Run it in one; over ssh with: ssh -t")
    from vlacoach.cli.play import PlayApp

    def make() -> World:
        from vlacoach.cli.play_world import SimulatedWorld

        return SimulatedWorld(suite, task, state, seed)

    plain = ascii or bool(os.environ.get("NO_COLOR")) or locale.getpreferredencoding(False).lower() != "utf-8"
    app = PlayApp(make, ascii=plain)
    app.run()
    if app.failure is not None:
        raise app.failure
