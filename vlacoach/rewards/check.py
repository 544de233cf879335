"""A look at the scorer while a run is young, before it has decided much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlacoach.rewards.bench import auroc_within, closeness, estimate
from vlacoach.rewards.metrics import Estimate
from vlacoach.rewards.scorers import Scorer
from vlacoach.rewards.trajectory import Trajectory

FloatArray = npt.NDArray[np.float64]


class ScorerCheck:
    """AUROC of a scorer over the first batches of a training run, each measured before the scorer is fitted on it.

    Args:
        batches: Batches to gather.
        seed: Of the bootstrap.
    """

    def __init__(self, batches: int = 3, seed: int = 0) -> None:
        self._left = batches
        self._rng = np.random.default_rng(seed)
        self._scores: list[FloatArray] = []
        self._success: list[npt.NDArray[np.bool_]] = []
        self._task: list[npt.NDArray[np.int64]] = []

    def observe(self, scorer: Scorer, trajectories: Sequence[Trajectory]) -> Estimate | None:
        """Take in a batch; the AUROC of all batches so far once there are enough, at that time only.

        A pair is compared only if both are of the same task and the same batch, as training does.

        Returns:
            None before and after, and if there is no such pair.
        """
        valid = [trajectory for trajectory in trajectories if trajectory.valid and trajectory.length > 0]
        if not self._left or not scorer.fitted or not valid:
            return None
        success = np.array([trajectory.success for trajectory in valid])
        task = np.array([trajectory.task for trajectory in valid])
        mixed = np.isin(task, np.intersect1d(task[success], task[~success]))
        self._left -= 1
        if mixed.any():
            points = np.stack([scorer.embed(valid[row]) for row in np.flatnonzero(mixed)])
            score = closeness(points, success[mixed], task[mixed])
            known = np.isfinite(score)
            self._scores.append(score[known])
            self._success.append(success[mixed][known])
            self._task.append(task[mixed][known] + 10_000 * self._left)
        if self._left or not self._scores:
            return None
        columns = (np.concatenate(column) for column in (self._scores, self._success, self._task))
        scores, won, key = columns
        return estimate(lambda rows: auroc_within(scores[rows], won[rows], key[rows]), len(scores), self._rng, 1000)
