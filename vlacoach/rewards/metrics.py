"""How good a reward is: does it rank successes above failures, and does it follow progress?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from vlacoach.errors import NonFiniteError, VlacoachError


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counting half.

    Computed in closed form from ranks (Mann-Whitney U).

    Args:
        scores: (B,) finite numbers, higher for what should be positive.
        labels: (B,) bool.

    Returns:
        0 to 1; 0.5 is chance.

    Raises:
        NonFiniteError: If a score is NaN or infinite.
        VlacoachError: If shapes differ, or only one class is present, for which the area is undefined.
    """
    values, positive = _column("scores", scores), np.asarray(labels, dtype=bool)
    if values.shape != positive.shape:
        raise VlacoachError(f"Scores {values.shape} and labels {positive.shape} differ in shape.")
    wins, losses = int(positive.sum()), int((~positive).sum())
    if not wins or not losses:
        raise VlacoachError(f"AUROC needs both classes, got {wins} positive and {losses} negative labels.")
    ranks = rankdata(values)[positive].sum()
    return float((ranks - wins * (wins + 1) / 2) / (wins * losses))


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman's rank correlation, with average ranks for ties.

    Args:
        first: (B,) finite numbers.
        second: (B,) finite numbers.

    Returns:
        -1 to 1.

    Raises:
        NonFiniteError: If a number is NaN or infinite.
        VlacoachError: If shapes differ, or either column is constant, for which it is undefined.
    """
    left, right = _column("first", first), _column("second", second)
    if left.shape != right.shape:
        raise VlacoachError(f"Columns {left.shape} and {right.shape} differ in shape.")
    ranks = rankdata(left), rankdata(right)
    if any(len(rank) < 2 or np.ptp(rank) == 0 for rank in ranks):
        raise VlacoachError("A rank correlation needs two columns that vary.")
    return float(np.corrcoef(*ranks)[0, 1])


def _column(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise VlacoachError(f"Expected {name} of shape (B,), got {column.shape}.")
    if not np.isfinite(column).all():
        raise NonFiniteError(f"{name} is not finite: {int((~np.isfinite(column)).sum())} of {len(column)}.")
    return column
