"""Statistics of a LeRobot data set, for each feature: what its policies are normalized by.

LeRobot estimates quantiles from histograms and averages them over episodes; here numbers and 8-bit levels are counted
out, so that they are those of the frames. All else is as ``lerobot.datasets.compute_stats`` defines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Stats = dict[str, Any]
"""``min``, ``max``, ``mean``, ``std``, ``count``, and quantiles, as nested lists."""

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_LEVELS = np.arange(256) / 255.0


def vector_stats(values: NDArray[Any]) -> Stats:
    """Statistics of numbers.

    Args:
        values: (N, D), N at least 1; of whatever number type, bool included.

    Returns:
        Lists of D numbers; ``count`` is ``[N]``.
    """
    numbers = values.astype(np.float64)
    stats = {"min": numbers.min(axis=0), "max": numbers.max(axis=0), "mean": numbers.mean(axis=0)}
    stats["std"] = numbers.std(axis=0)
    quantiles = np.quantile(numbers, list(_QUANTILES.values()), axis=0)
    stats |= dict(zip(_QUANTILES, quantiles, strict=True))
    return {"count": [len(values)], **{name: value.tolist() for name, value in stats.items()}}


def picture_histogram(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(3, 256) how often each level of red, green and blue occurs in (T, H, W, 3) pictures."""
    return np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])


def picture_stats(histogram: NDArray[np.int64], frames: int) -> Stats:
    """Statistics of pictures.

    Args:
        histogram: (3, 256), as :func:`picture_histogram` counts; those of several episodes may be added up.
        frames: Pictures that were counted, 1 or more.

    Returns:
        Nested lists of shape (3, 1, 1), in [0, 1]; ``count`` is ``[frames]``.
    """
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ _LEVELS
    columns: dict[str, Sequence[float] | NDArray[np.float64]] = {
        "min": [_LEVELS[np.flatnonzero(row)[0]] for row in histogram],
        "max": [_LEVELS[np.flatnonzero(row)[-1]] for row in histogram],
        "mean": mean,
        "std": [np.sqrt(row @ (_LEVELS - center) ** 2) for row, center in zip(share, mean, strict=True)],
    }
    for name, quantile in _QUANTILES.items():
        columns[name] = [_LEVELS[np.searchsorted(np.cumsum(row), np.ceil(quantile * row.sum()))] for row in histogram]
    return {"count": [frames], **{name: [[[float(value)]] for value in row] for name, row in columns.items()}}
