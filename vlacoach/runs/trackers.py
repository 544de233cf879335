"""Where metrics go beside the run folder: TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vlacoach.errors import ConfigError


class MetricWriter(Protocol):
    """Takes the metrics of a run, one call a line of metrics.jsonl."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take some metrics.

        Args:
            step: Updates done.
            metrics: Finite numbers by name.
        """

    def close(self) -> None:
        """Write what is left, and end."""


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among a record's values that are finite numbers; trackers refuse or misdraw the others."""
    numbers = {key: value for key, value in values.items() if "/" in key and not isinstance(value, bool)}
    return {key: float(value) for key, value in numbers.items() if _is_finite(value)}


def _is_finite(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]  # Python's numbers, NumPy's, torch's.
    except (TypeError, ValueError):
        return False


class TensorBoardWriter:
    """Event files for TensorBoard.

    Args:
        folder: Where they go; made if missing.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise not_installed("tensorboard", error) from error
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, metrics: Mapping[str, float], time: float | None = None) -> None:
        """Take some metrics.

        Args:
            step: Updates done.
            metrics: Finite numbers by name.
            time: Seconds since the epoch; None is now.
        """
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step, walltime=time)

    def close(self) -> None:
        """Write what is left, and end."""
        self._writer.close()


def not_installed(extra: str, error: ImportError) -> ConfigError:
    """The error to raise where a tracker's package is missing."""
    return ConfigError(f"{extra} cannot be used: {error}.", f'Install it with: pip install "vlacoach[{extra}]"')
