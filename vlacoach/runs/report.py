"""Figures of a run, drawn from its run folder alone."""

from __future__ import annotations

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
    axes.plot(steps, values, color=_HELD_OUT)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


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
    figure = learning_curve(records, title)
    with writing(file):
        temporary = file.with_name(f".{file.name}")
        figure.savefig(temporary, dpi=120, format="png")
        temporary.replace(file)
    return file
