"""Where things are written: data to standard output, narration to standard error."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from vlacoach.errors import VlacoachError


@dataclass(frozen=True)
class Verbosity:
    """How much narration the user asked for.

    Attributes:
        verbose: Times ``-v`` was given.
        quiet: Whether ``-q`` was given.
    """

    verbose: int = 0
    quiet: bool = False


def verbosity(context: typer.Context) -> Verbosity:
    """The verbosity chosen on the command line."""
    found = context.find_object(Verbosity)
    return found if found is not None else Verbosity()


def narration() -> Console:
    """Console on standard error, for whatever is not data."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def show(renderable: RenderableType) -> None:
    """Print a table or text, as data, on standard output."""
    # Without markup: names and paths may have brackets and colons of their own.
    Console(highlight=False, markup=False, emoji=False).print(renderable)


def show_json(document: Any) -> None:
    """Print one JSON document, and nothing else, on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def show_error(error: VlacoachError) -> None:
    """Print an error in red, and under it what to do about it."""
    console = narration()
    console.print(Text(f"Error: {error.message}", style="bold red"), soft_wrap=True)
    if error.hint:
        console.print(Text(error.hint), soft_wrap=True)
