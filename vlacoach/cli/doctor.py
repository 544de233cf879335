"""``vlacoach doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from vlacoach.cli.console import show, show_json
from vlacoach.cli.options import Json
from vlacoach.errors import ExitCode

if TYPE_CHECKING:
    from vlacoach.cli.diagnosis import Check

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor_command(as_json: Json = False) -> None:
    """Check that the simulator, the renderer and the packages work here, and say how to mend what does not.

    A scene of LIBERO is drawn for it; the first time, that takes some seconds more. The exit status is 3 if training
    cannot run.

    For example:

      vlacoach doctor

      vlacoach doctor --json
    """  # fmt: skip
    from vlacoach.cli.diagnosis import diagnose

    checks = diagnose()
    healthy = all(check.status != "failed" for check in checks)
    if as_json:
        show_json({"ok": healthy, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks)
    if not healthy:
        raise typer.Exit(ExitCode.SIMULATOR)


def _show(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "state")
    table.add_column("found", overflow="fold")
    for check in checks:
        found = Text(check.found)
        if check.remedy:
            found.append(f"\n{check.remedy}", style="bold")
        table.add_row(check.name, Text(check.status, style=_STYLES[check.status]), found)
    show(table)
