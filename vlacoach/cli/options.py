"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CONFIGURATION = "Configuration"
OUTPUT = "Output"

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with settings.", rich_help_panel=CONFIGURATION),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Set one value, for example --set grpo.clip_high=0.3; may be repeated.",
        rich_help_panel=CONFIGURATION,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of every random number.", rich_help_panel=CONFIGURATION)]
RunsDir = Annotated[
    Path,
    typer.Option("--runs-dir", envvar="VLACOACH_RUNS_DIR", help="Folder of all runs.", rich_help_panel=OUTPUT),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document instead of tables.", rich_help_panel=OUTPUT),
]
RunReference = Annotated[
    str, typer.Argument(metavar="RUN", help="Path, name or id of a run, or 'latest'.", show_default=True)
]
DEFAULT_RUNS_DIR = Path("runs")
