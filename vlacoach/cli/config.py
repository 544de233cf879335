"""``vlacoach config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlacoach.cli.console import narration, show, show_json
from vlacoach.cli.options import ConfigFile, Json, Sets

app = typer.Typer(no_args_is_help=True, help="Look at settings and check files of settings.")


@app.command("show")
def show_command(config: ConfigFile = None, sets: Sets = None, as_json: Json = False) -> None:
    """Show every setting with its value and where that came from.

    For example:

      vlacoach config show --config configs/train.yaml --set grpo.updates=80
    """  # fmt: skip
    from rich.table import Table

    from vlacoach.runs.resolve import DEFAULT_ORIGIN, config_hash, flatten, resolve_config

    resolved = resolve_config(config, sets or ())
    values = flatten(resolved.config)
    if as_json:
        entries = {key: {"value": value, "origin": resolved.origins[key]} for key, value in values.items()}
        show_json({"hash": config_hash(resolved.config), "settings": entries})
        return
    table = Table("setting", "value", "from")
    for key, value in values.items():
        origin = resolved.origins[key]
        table.add_row(key, _short(value), origin, style=None if origin == DEFAULT_ORIGIN else "bold")
    show(table)


def _short(value: object) -> str:
    from vlacoach.runs.indices import format_indices

    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return format_indices(value)
    return "" if value is None else str(value)


@app.command("validate")
def validate_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files to check.")],
) -> None:
    """Check files of settings; the exit status is 2 if one is wrong.

    For example:

      vlacoach config validate configs/train.yaml configs/openvla-oft.yaml
    """  # fmt: skip
    from vlacoach.cli.checks import check_names
    from vlacoach.runs.config import TrainConfig

    for file in files:
        check_names(TrainConfig.load(file))
        narration().print(f"{file}: valid")


@app.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of a file of settings, for editors.

    For example:

      vlacoach config schema > vlacoach.schema.json
    """  # fmt: skip
    from vlacoach.runs.config import TrainConfig

    show_json(TrainConfig.model_json_schema())


@app.command("init")
def init_command() -> None:
    """Print a file of all defaults, each with its explanation.

    For example:

      vlacoach config init > train.yaml
    """  # fmt: skip
    from vlacoach.runs.config import TrainConfig
    from vlacoach.runs.yaml_io import dump_config

    typer.echo(dump_config(TrainConfig()), nl=False)
