"""Metrics of runs as curves of a chart."""

from __future__ import annotations

import numpy as np

from vlacoach.cli.dashboard.labels import IN_BYTES
from vlacoach.cli.dashboard.series import SERIES_COLORS, ChartSeries
from vlacoach.cli.dashboard.view import View
from vlacoach.runs import constants as names
from vlacoach.runs.series import Series, SeriesTable
from vlacoach.runs.statistics import wilson_interval

SPARSE = ("eval/", "eval_train/")
"""Metrics of evaluations, of which there are few: each is a point of its own."""


def run_series(view: View, metric: str) -> list[ChartSeries]:
    """A metric of every run on screen, in the run's color."""
    colors = view.colors()
    found = []
    for watcher in (view.watcher, *view.others):
        if metric in watcher.metrics:
            column = watcher.metrics[metric]
            name = watcher.path.resolve().name
            found.append(
                ChartSeries(
                    name if view.others else metric,
                    colors[watcher.path],
                    column.steps,
                    column.values,
                    markers=metric.startswith(SPARSE),
                    band=_band(watcher.metrics, metric) if metric in _COUNTS else None,
                )
            )
    return found


_COUNTS = {
    names.EVAL_SUCCESS: names.EVAL_EPISODES,
    names.EVAL_TRAIN_SUCCESS: names.EVAL_TRAIN_EPISODES,
    names.ROLLOUT_SUCCESS: names.ROLLOUT_EPISODES,
}


def success_series(view: View) -> list[ChartSeries]:
    """Success of rollouts, and of evaluations on held-out and on training states, with Wilson's intervals.

    With other runs on screen, only what they can be compared by: rollouts.
    """
    if view.others:
        return run_series(view, names.ROLLOUT_SUCCESS)
    metrics = view.watcher.metrics
    found = []
    for index, (label, metric) in enumerate(
        (("rollouts", names.ROLLOUT_SUCCESS), ("held-out", names.EVAL_SUCCESS), ("training", names.EVAL_TRAIN_SUCCESS))
    ):
        if metric in metrics:
            column = metrics[metric]
            sparse = metric.startswith(SPARSE)
            band = _band(metrics, metric) if sparse else None
            found.append(ChartSeries(label, SERIES_COLORS[index], column.steps, column.values, sparse, band))
    return found


def _band(metrics: SeriesTable, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    rates = metrics[metric].values
    counts = metrics[_COUNTS[metric]].values if _COUNTS[metric] in metrics else np.array([])
    if len(counts) != len(rates):
        return None
    ends = np.full((len(rates), 2), np.nan)
    for row, (rate, count) in enumerate(zip(rates, counts, strict=True)):
        if 0 <= rate <= 1 and 1 <= count < np.inf:
            interval = wilson_interval(round(rate * count), int(count))
            ends[row] = interval.low, interval.high
    return ends[:, 0], ends[:, 1]


def system_series(metric: str, column: Series, began: float) -> list[ChartSeries]:
    """A column of system.jsonl over the seconds since the run began; bytes become GiB."""
    scale = 2**30 if metric in IN_BYTES else 1
    return [ChartSeries(metric, SERIES_COLORS[0], column.times - began, column.values / scale)]
