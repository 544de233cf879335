"""Figures of a run, drawn from its run folder alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.files import writing
from vlacoach.runs.statistics import moving_average, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

_ROLLOUT, _HELD_OUT, _TRAINING = "#7f7f7f", "#1f77b4", "#ff7f0e"

_HEALTH = {
    names.TRAIN_KL: "KL (nats)",
    names.TRAIN_ENTROPY: "entropy (nats)",
    names.TRAIN_CLIP_FRACTION: "clip fraction",
    names.TRAIN_GRADIENT_NORM: "gradient norm",
}
_SUMS = ("total", "elapsed")
"""Times that are no stage's."""


def series(records: Records, key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steps and values of one metric.

    Args:
        records: Lines of metrics.jsonl.
        key: Metric.

    Returns:
        ``(N,)`` steps and ``(N,)`` values, NaN where the value was not finite; lines without the key are left
        out.
    """
    pairs = [(record.get(names.STEP), record[key]) for record in records if key in record]
    pairs = [(step, value) for step, value in pairs if _is_number(step) and (value is None or _is_number(value))]
    steps = np.array([step for step, _ in pairs], dtype=np.float64)
    values = np.array([np.nan if value is None else value for _, value in pairs], dtype=np.float64)
    return steps, values


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def learning_curve(records: Records, title: str) -> Figure:
    """Draw success, KL divergence and entropy over the updates.

    Args:
        records: Lines of metrics.jsonl.
        title: Heading.

    Returns:
        The figure, not shown and not saved.

    Raises:
        RunError: There is no metric to draw.
    """
    # Figure directly, not pyplot: pyplot would keep every figure alive and choose a window system.
    from matplotlib.figure import Figure

    keys = (names.ROLLOUT_SUCCESS, names.EVAL_SUCCESS, names.EVAL_TRAIN_SUCCESS, names.TRAIN_KL)
    if not any(len(series(records, key)[0]) for key in keys):
        raise RunError("There are no metrics to draw yet.", "Wait until the first update is done.")
    figure = Figure(figsize=(9, 7), layout="constrained")
    success, divergence, entropy = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
    figure.suptitle(title)
    _draw_success(success, records)
    _draw_line(divergence, records, names.TRAIN_KL, "KL (nats)")
    _draw_line(entropy, records, names.TRAIN_ENTROPY, "entropy (nats)")
    entropy.set_xlabel("updates")
    return figure


def _draw_success(axes: Axes, records: Records) -> None:
    steps, rates = series(records, names.ROLLOUT_SUCCESS)
    if len(steps):
        axes.plot(steps, rates, ".", color=_ROLLOUT, alpha=0.5, label="rollouts (sampled)")
        axes.plot(steps, moving_average(rates), color=_ROLLOUT, label="rollouts, moving average")
    _draw_evaluations(axes, records, "eval", _HELD_OUT, "held-out states")
    _draw_evaluations(axes, records, "eval_train", _TRAINING, "training states")
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("success rate")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize="small")


def _draw_evaluations(axes: Axes, records: Records, prefix: str, color: str, label: str) -> None:
    steps, rates, low, high = [], [], [], []
    for record in records:
        successes, episodes = record.get(f"{prefix}/successes"), record.get(f"{prefix}/episodes")
        if _is_number(successes) and _is_number(episodes) and _is_number(record.get(names.STEP)) and episodes:
            interval = wilson_interval(int(successes or 0), int(episodes or 0))
            rate = (successes or 0) / (episodes or 1)
            steps.append(record[names.STEP])
            rates.append(rate)
            low.append(rate - interval.low)
            high.append(interval.high - rate)
    if steps:
        axes.errorbar(steps, rates, yerr=[low, high], fmt="o-", capsize=4, color=color, label=f"{label} (95 % Wilson)")


def _draw_line(axes: Axes, records: Records, key: str, label: str) -> None:
    steps, values = series(records, key)
    axes.plot(steps, values, color=_HELD_OUT, marker="." if len(steps) == 1 else None)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


def figures(records: Records) -> dict[str, Figure]:
    """Every figure for which there are metrics.

    Args:
        records: Lines of metrics.jsonl.

    Returns:
        ``"success"``, ``"health"`` (KL, entropy, clip fraction, gradient norm) and ``"time"`` (seconds by stage), those
        without metrics left out.
    """
    drawn = {
        "success": _success_figure(records),
        "health": _health_figure(records),
        "time": _time_figure(records),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _success_figure(records: Records) -> Figure | None:
    from matplotlib.figure import Figure

    keys = (names.ROLLOUT_SUCCESS, names.EVAL_SUCCESS, names.EVAL_TRAIN_SUCCESS)
    if not any(len(series(records, key)[0]) for key in keys):
        return None
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    _draw_success(axes, records)
    axes.set_xlabel("updates")
    return figure


def _health_figure(records: Records) -> Figure | None:
    from matplotlib.figure import Figure

    panels = {key: label for key, label in _HEALTH.items() if len(series(records, key)[0])}
    if not panels:
        return None
    figure = Figure(figsize=(9, 5), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(2, 2, sharex=True).flat, panels.items(), strict=False):
        _draw_line(axes, records, key, label)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("updates", fontsize="medium")
    return figure


def _time_figure(records: Records) -> Figure | None:
    from matplotlib.figure import Figure

    seconds = stage_seconds(records)
    if not seconds:
        return None
    steps = sorted({step for stage in seconds.values() for step in stage})
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    # Each update's seconds from half an update before it to half an update after.
    edges = [step + side for step in steps for side in (-0.5, 0.5)]
    heights = [[stage.get(step, 0.0) for step in steps for _ in range(2)] for stage in seconds.values()]
    axes.stackplot(edges, heights, labels=list(seconds))
    axes.set_xlabel("updates")
    axes.set_ylabel("seconds")
    axes.legend(loc="lower left", fontsize="small")
    return figure


def stage_seconds(records: Records) -> dict[str, dict[int, float]]:
    """Seconds that each stage took, by stage and update, in the order in which stages appeared.

    Args:
        records: Lines of metrics.jsonl.
    """
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for key, value in record.items():
            stage = key.removeprefix(names.TIME_PREFIX)
            if stage != key and stage not in _SUMS and _is_number(value) and isinstance(record.get(names.STEP), int):
                found.setdefault(stage, {})[record[names.STEP]] = float(value)
    return found


def as_data_uri(figure: Figure) -> str:
    """A figure as an SVG picture within an address, for pages that need no other file."""
    from matplotlib import rc_context

    content = io.BytesIO()
    # The same picture for the same run: no date, and no random names within.
    with rc_context({"svg.hashsalt": "vlacoach"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def write_png(figure: Figure, file: Path) -> Path:
    """Save a figure as PNG, whole or not at all.

    Raises:
        RunError: The file cannot be written.
    """
    with writing(file):
        temporary = file.with_name(f".{file.name}")
        figure.savefig(temporary, dpi=120, format="png")
        temporary.replace(file)
    return file


def write_learning_curve(records: Records, file: Path, title: str) -> Path:
    """Save :func:`learning_curve` as PNG.

    Args:
        records: Lines of metrics.jsonl.
        file: Where to.
        title: Heading.

    Returns:
        ``file``.

    Raises:
        RunError: There is nothing to draw, or the file cannot be written.
    """
    return write_png(learning_curve(records, title), file)
