"""``vlacoach envs check``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vlacoach.cli.console import narration, show, show_json, verbosity
from vlacoach.cli.options import Json, complete_suite
from vlacoach.errors import ExitCode

if TYPE_CHECKING:
    from vlacoach.envs.checking import EnvCheck


def check_command(
    context: typer.Context,
    suite: Annotated[
        str, typer.Argument(metavar="[SUITE]", help="Suite to check.", autocompletion=complete_suite)
    ] = "libero_goal",
    tasks: Annotated[
        str | None, typer.Option("--tasks", help='Tasks, such as "1,4,8" or "0-3"; left out, all.')
    ] = None,
    as_json: Json = False,
) -> None:
    """Reset, step and draw each task of a suite in the simulator, and run Gymnasium's own checks.

    A scene that was never used here is compiled first, which takes some seconds. The exit status is 3 if one check
    fails.

    For example:

      vlacoach envs check

      vlacoach envs check libero_10 --tasks 0,1
    """  # fmt: skip
    from vlacoach.cli.progress import reporting
    from vlacoach.envs.suites import get_suite
    from vlacoach.runs.indices import parse_indices

    chosen = [task.index for task in get_suite(suite).select(None if tasks is None else parse_indices(tasks))]
    from vlacoach.envs.checking import check_suite

    checks = []
    with reporting(narration(), verbosity(context).quiet) as reporter:
        reporter.stage(f"check {suite}", total=len(chosen) + 1)
        for check in check_suite(suite, chosen):
            checks.append(check)
            reporter.advance(1)
            if not check.ok:
                reporter.message(f"{check.name}: {'; '.join(check.problems)}", "error")
    healthy = all(check.ok for check in checks)
    if as_json:
        show_json({"suite": suite, "ok": healthy, "checks": [{**asdict(check), "ok": check.ok} for check in checks]})
    else:
        _show(checks)
    if not healthy:
        raise typer.Exit(ExitCode.SIMULATOR)


def _show(checks: list[EnvCheck]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("task", "what", "state", "seconds")
    for check in checks:
        state = Text("ok", style="green") if check.ok else Text("\n".join(check.problems), style="red")
        table.add_row("" if check.task is None else str(check.task), check.name, state, f"{check.seconds:.1f}")
    show(table)
