"""``vlacoach envs ls``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vlacoach.cli.console import show, show_json
from vlacoach.cli.options import Json, complete_suite


def ls_command(
    suite: Annotated[
        str | None,
        typer.Argument(
            metavar="[SUITE]", help="Suite whose tasks to list; left out, all suites.", autocompletion=complete_suite
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the suites, or the tasks of one.

    For example:

      vlacoach envs ls

      vlacoach envs ls libero_goal --json
    """  # fmt: skip
    from rich.table import Table

    rows = _suites() if suite is None else _tasks(suite)
    if as_json:
        show_json(rows)
        return
    headings = [key for key in rows[0] if key != "name"]  # A task's instruction with underscores, for programs.
    table = Table()
    for heading in headings:
        table.add_column(heading.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(str(row[heading]) for heading in headings))
    show(table)


def _suites() -> list[dict[str, Any]]:
    from vlacoach.envs.registration import ENV_IDS
    from vlacoach.envs.suites import NUM_INITIAL_STATES, SUITES, get_suite

    return [
        {
            "suite": name,
            "tasks": len(get_suite(name).tasks),
            "step_limit": limit,
            "initial_states": NUM_INITIAL_STATES,
            "id": ENV_IDS[name],
        }
        for name, limit in SUITES.items()
    ]


def _tasks(name: str) -> list[dict[str, Any]]:
    from vlacoach.envs.suites import get_suite

    suite = get_suite(name)
    return [
        {
            "task": task.index,
            "instruction": task.instruction,
            "initial_states": len(suite.initial_states(task.index)),
            "name": task.name,
        }
        for task in suite.tasks
    ]
