"""Progress curves of scorers, drawn from their reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlacoach.errors import VlacoachError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vlacoach.rewards.bench import ScorerReport


def progress_curves(reports: Sequence[ScorerReport]) -> Figure:
    """Closeness over the course of a success, one panel a scorer: median and quartiles over episodes.

    Each episode's closeness is scaled to run from 0, its least, to 1, its most. A reward that follows progress rises
    steadily from the lower left to the upper right.

    Raises:
        VlacoachError: No report has a curve.
    """
    # Figure directly, not pyplot: pyplot would keep every figure alive and choose a window system.
    from matplotlib.figure import Figure

    drawn = [report for report in reports if report.curves]
    if not drawn:
        raise VlacoachError("There is no progress curve to draw.", "Rollouts need successes of several looks.")
    columns = min(4, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(3 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, report in zip(panels, drawn, strict=False):
        stage = report.curves["stage"]
        panel.fill_between(stage, report.curves["lower"], report.curves["upper"], color="#1f77b4", alpha=0.25)
        panel.plot(stage, report.curves["median"], color="#1f77b4")
        panel.plot([0, 1], [0, 1], color="#7f7f7f", linewidth=0.8, linestyle="--")
        panel.set_title(report.name, fontsize=9)
        panel.grid(alpha=0.3)
    for panel in panels[len(drawn) :]:
        panel.set_visible(False)
    figure.supxlabel("share of the episode", fontsize=9)
    figure.supylabel("closeness", fontsize=9)
    return figure


def write_progress_curves(reports: Sequence[ScorerReport], file: Path) -> Path:
    """Save :func:`progress_curves` as PNG; returns ``file``.

    Raises:
        VlacoachError: There is nothing to draw, or the file cannot be written.
    """
    figure = progress_curves(reports)
    temporary = file.with_name(f".{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=120, format="png")
        temporary.replace(file)
    except OSError as error:
        raise VlacoachError(f"Cannot write {file}: {error}.", "Check free space and permissions.") from error
    return file
