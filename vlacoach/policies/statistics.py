"""Ranges of actions and proprioception in the data a policy was cloned from (``dataset_statistics.json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlacoach.errors import CheckpointError

FILE_NAME = "dataset_statistics.json"


@dataclass(frozen=True)
class DatasetStatistics:
    """What -1 and +1 stand for, dimension by dimension.

    Attributes:
        name: Data set, the key in the file.
        action_low: (A,) float64, 1 % quantile.
        action_high: (A,) float64, 99 % quantile.
        action_mask: (A,) bool; where False the decoded number is used as it is.
        proprio_low: (S,) float64 or None for a policy without proprioception.
        proprio_high: (S,) float64 or None.
    """

    name: str
    action_low: torch.Tensor
    action_high: torch.Tensor
    action_mask: torch.Tensor
    proprio_low: torch.Tensor | None = None
    proprio_high: torch.Tensor | None = None

    def to_json(self) -> str:
        """The file's text, in OpenVLA's layout."""
        entry: dict[str, Any] = {
            "action": {
                "q01": self.action_low.tolist(),
                "q99": self.action_high.tolist(),
                "mask": self.action_mask.tolist(),
            }
        }
        if self.proprio_low is not None and self.proprio_high is not None:
            entry["proprio"] = {"q01": self.proprio_low.tolist(), "q99": self.proprio_high.tolist()}
        return json.dumps({self.name: entry}, indent=2) + "\n"


def load_statistics(
    folder: Path,
    action_dim: int,
    proprio_dim: int | None,
    key: str | None = None,
    norm_stats: Mapping[str, Any] | None = None,
) -> DatasetStatistics:
    """Read the statistics of a policy's folder.

    Args:
        folder: The policy's folder.
        action_dim: Numbers the file must have for an action.
        proprio_dim: Numbers the file must have for proprioception; None if the policy reads none.
        key: Data set; where there is none of this name, ``<key>_no_noops`` is tried, as siiRL and SimpleVLA-RL do. None
            takes the only one.
        norm_stats: What ``config.json`` holds under this name. ``dataset_statistics.json``, where there is one,
            replaces it altogether, as in OpenVLA's evaluation code.

    Returns:
        The statistics of the data set.

    Raises:
        CheckpointError: They are missing, malformed, of other widths, or there is no such data set.
    """
    path = folder / FILE_NAME
    try:
        if path.is_file():
            data = json.loads(path.read_text(encoding="utf-8"))
        elif norm_stats is not None:
            data, path = norm_stats, folder / "config.json"
        else:
            raise CheckpointError(f"{path} is missing.", hint="It says what the actions' -1 and +1 stand for.")
        name = _choose(list(data), key, path)
        action, proprio = data[name]["action"], data[name].get("proprio")
        low, high = _vector(action["q01"], action_dim), _vector(action["q99"], action_dim)
        mask = torch.tensor(action.get("mask") or [True] * action_dim, dtype=torch.bool)
        if mask.shape != (action_dim,):
            raise ValueError(f"the mask has {len(mask)} entries, not {action_dim}")
        if proprio_dim is not None and proprio is None:
            raise ValueError(f"{name} has no statistics of proprioception")
        if proprio_dim is None:
            return DatasetStatistics(name, low, high, mask)
        return DatasetStatistics(
            name, low, high, mask, _vector(proprio["q01"], proprio_dim), _vector(proprio["q99"], proprio_dim)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be used: {error!r}.",
            hint="It holds q01 and q99 of action and proprio of each data set, as OpenVLA writes it.",
        ) from error


def _choose(names: list[str], key: str | None, path: Path) -> str:
    if key is None and len(names) == 1:
        return names[0]
    for name in () if key is None else (key, f"{key}_no_noops"):
        if name in names:
            return name
    wanted = "several data sets" if key is None else f"no data set {key!r}"
    raise CheckpointError(
        f"{path.parent} has statistics of {wanted}: {', '.join(names)}.",
        hint="Name one of them: --unnorm-key (policy.unnorm_key); it says what the actions' -1 and +1 stand for.",
    )


def _vector(values: list[float], width: int) -> torch.Tensor:
    vector = torch.tensor(values, dtype=torch.float64)
    if vector.shape != (width,):
        raise ValueError(f"expected {width} numbers, found {tuple(vector.shape)}")
    if not bool(torch.isfinite(vector).all()):
        raise ValueError(f"a number is not finite: {values}")
    return vector
