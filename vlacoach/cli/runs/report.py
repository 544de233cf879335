"""``vlacoach runs report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlacoach.cli.console import show, show_json
from vlacoach.cli.options import DEFAULT_RUNS_DIR, OUTPUT, Json, RunReference, RunsDir
from vlacoach.errors import ConfigError

if TYPE_CHECKING:
    from vlacoach.runs.folder import RunFolder


def report_command(
    run: RunReference = "latest",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Page (.html) or learning curve alone (.png); left out, report.html in the run folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FOLDER", help="Also save each figure here as PNG.", rich_help_panel=OUTPUT),
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Write a run's report: one HTML file with its curves, tables, alerts, videos and settings.

    The page needs no other file and no network; only videos of more than 8 MB together are linked.

    For example:

      vlacoach runs report

      vlacoach runs report 7f3a --out report.html --png figures

      vlacoach runs report 7f3a --out curve.png
    """  # fmt: skip
    from vlacoach.runs.constants import REPORT_FILE
    from vlacoach.runs.folder import RunFolder

    folder = RunFolder.open(run, runs_dir)
    file = out or folder.path / REPORT_FILE
    written = _write(folder, file)
    if png is not None:
        written |= _write_figures(folder, png)
    if as_json:
        show_json(written)
        return
    for what, path in written.items():
        show(f"{what.replace('_', ' ')}: {path}")


def _write(folder: RunFolder, file: Path) -> dict[str, str]:
    from vlacoach.runs.report import write_learning_curve
    from vlacoach.runs.report_html import write_report

    if file.suffix in (".html", ".htm"):
        return {"report": str(write_report(folder, file))}
    if file.suffix == ".png":
        return {"learning_curve": str(write_learning_curve(folder.metrics(), file, folder.path.resolve().name))}
    raise ConfigError(f"--out {file} is neither a page nor a picture.", "Its name must end in .html or .png.")


def _write_figures(folder: RunFolder, target: Path) -> dict[str, str]:
    from vlacoach.runs.files import writing
    from vlacoach.runs.report import figures, write_png

    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    return {name: str(write_png(figure, target / f"{name}.png")) for name, figure in figures(folder.metrics()).items()}
