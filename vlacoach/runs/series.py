"""Metrics as columns: what was logged line by line, by the name of the metric."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vlacoach.runs.constants import NONFINITE, STEP, TIME

_META = (STEP, TIME, NONFINITE)


class Series:
    """Values of one metric, in the order in which they were logged.

    Attributes:
        gaps: Values that were NaN or infinite; they are NaN here.
    """

    def __init__(self) -> None:
        self.gaps = 0
        self._steps = array("d")
        self._times = array("d")
        self._values = array("d")

    def append(self, step: float, time: float, value: float) -> None:
        """Add a value; what is not finite counts as a gap."""
        if not math.isfinite(value):
            self.gaps += 1
            value = math.nan
        self._steps.append(step)
        self._times.append(time)
        self._values.append(value)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def steps(self) -> npt.NDArray[np.float64]:
        """(N,) updates done when each value was logged."""
        return np.array(self._steps)

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """(N,) seconds since the epoch; NaN where a line had none."""
        return np.array(self._times)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """(N,) values, NaN where they were not finite."""
        return np.array(self._values)

    def last(self) -> float | None:
        """The newest finite value, or None."""
        return next((value for value in reversed(self._values) if not math.isnan(value)), None)

    def first(self) -> float | None:
        """The oldest finite value, or None."""
        return next((value for value in self._values if not math.isnan(value)), None)

    def recent(self, count: int) -> list[float]:
        """The newest finite values, at most ``count``, oldest first."""
        found: list[float] = []
        for value in reversed(self._values):
            if len(found) == count:
                break
            if not math.isnan(value):
                found.append(value)
        return found[::-1]


class SeriesTable:
    """All metrics of a file, in the order in which they first appeared."""

    def __init__(self) -> None:
        self._columns: dict[str, Series] = {}

    def extend(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add lines of metrics.jsonl or system.jsonl; what is not a number is passed over."""
        for record in records:
            step = _number(record.get(STEP), math.nan)
            time = _number(record.get(TIME), math.nan)
            for key, value in record.items():
                if key in _META:
                    continue
                number = math.nan if value is None else _number(value, None)
                if number is not None:
                    self._columns.setdefault(key, Series()).append(step, time, number)

    def __getitem__(self, key: str) -> Series:
        return self._columns[key]

    def __contains__(self, key: object) -> bool:
        return key in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def last(self, key: str) -> float | None:
        """The newest finite value of a metric, or None."""
        return self._columns[key].last() if key in self._columns else None

    def first(self, key: str) -> float | None:
        """The oldest finite value of a metric, or None."""
        return self._columns[key].first() if key in self._columns else None

    @property
    def gaps(self) -> dict[str, int]:
        """Metrics that were ever not finite, and how often."""
        return {key: column.gaps for key, column in self._columns.items() if column.gaps}


def _number(value: object, default: float | None) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    return float(value)
