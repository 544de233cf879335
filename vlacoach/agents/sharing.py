"""What ranks tell each other of their trajectories: outcomes and averages of pictures, never pictures or features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlacoach.agents.ranks import Ranks
from vlacoach.errors import ConfigError, RankError
from vlacoach.rewards.bank import checked_reference
from vlacoach.rewards.scorers import Scorer
from vlacoach.rewards.self_referential import SelfReferentialDetails
from vlacoach.rewards.siglip import look_features
from vlacoach.rewards.trajectory import RecomputedFeatures, Trajectory


@dataclass(frozen=True)
class StepSizes:
    """Sizes of all trajectories that an optimizer step learns from, on whichever rank they are.

    Attributes:
        actions: (N,) int64 executed actions.
        looks: (N,) int64.
        own: Rows of this rank.
    """

    actions: Tensor
    looks: Tensor
    own: Tensor

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> StepSizes:
        """Those of trajectories that are all there are."""
        actions = torch.tensor([one.length for one in trajectories], dtype=torch.int64)
        looks = torch.tensor([one.num_looks for one in trajectories], dtype=torch.int64)
        return cls(actions, looks, torch.arange(len(actions)))

    def __len__(self) -> int:
        return len(self.actions)


class SharedBatch:
    """Trajectories of all ranks, in the order of their slots, as far as it takes to divide them into steps.

    Args:
        trajectories: Those of this rank.
        ranks: All ranks.
    """

    def __init__(self, trajectories: Sequence[Trajectory], ranks: Ranks) -> None:
        mine = {
            "slot": np.array([one.slot for one in trajectories], dtype=np.int64),
            "actions": np.array([one.length for one in trajectories], dtype=np.int64),
            "looks": np.array([one.num_looks for one in trajectories], dtype=np.int64),
            "rank": np.full(len(trajectories), ranks.rank, dtype=np.int64),
            "row": np.arange(len(trajectories), dtype=np.int64),
        }
        everyone = ranks.gather(mine)
        order = np.arange(len(mine["slot"])) if ranks.size == 1 else np.argsort(everyone["slot"], kind="stable")
        self._columns = {key: column[order] for key, column in everyone.items()}
        self._rank = ranks.rank

    def __len__(self) -> int:
        return len(self._columns["slot"])

    def step(self, rows: npt.NDArray[np.int64]) -> tuple[list[int], StepSizes]:
        """Which of this rank's trajectories are among ``rows`` of all, and the sizes of them all."""
        columns = {key: column[rows] for key, column in self._columns.items()}
        own = np.flatnonzero(columns["rank"] == self._rank)
        actions, looks = (torch.from_numpy(columns[key]) for key in ("actions", "looks"))
        return columns["row"][own].tolist(), StepSizes(actions, looks, torch.from_numpy(own))


@dataclass(frozen=True)
class Outcomes:
    """How the episodes of an update went, a row each, in the order of their slots.

    Attributes:
        columns: (B,) arrays: task, init_state, group, slot, length (int64), success, valid, kept (bool), reward, and
            distance (float64, NaN where there is none).
    """

    columns: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def of(
        cls,
        trajectories: Sequence[Trajectory],
        reward: npt.NDArray[np.float64],
        kept: Sequence[int],
        details: SelfReferentialDetails | None = None,
    ) -> Outcomes:
        """Those of trajectories.

        Args:
            trajectories: B episodes.
            reward: (B,) scores.
            kept: Rows that are learned from.
            details: Has the distances to the successes; None for none.
        """
        whole = ("task", "init_state", "group", "slot", "length")
        columns: dict[str, npt.NDArray[Any]] = {
            key: np.array([getattr(one, key) for one in trajectories], dtype=np.int64) for key in whole
        }
        for key in ("success", "valid"):
            columns[key] = np.array([getattr(one, key) for one in trajectories], dtype=np.bool_)
        columns["kept"] = np.isin(np.arange(len(trajectories)), kept)
        columns["reward"] = np.asarray(reward, dtype=np.float64)
        columns["distance"] = np.full(len(trajectories), np.nan) if details is None else details.distance
        return cls(columns)

    def gathered(self, ranks: Ranks) -> Outcomes:
        """Those of all ranks."""
        if ranks.size == 1:
            return self
        everyone = ranks.gather(self.columns)
        order = np.argsort(everyone["slot"], kind="stable")
        return Outcomes({key: column[order] for key, column in everyone.items()})

    def __getitem__(self, key: str) -> npt.NDArray[Any]:
        return self.columns[key]

    def __len__(self) -> int:
        return len(self.columns["slot"])


def shared_trajectories(trajectories: Sequence[Trajectory], scorer: Scorer, ranks: Ranks) -> list[Trajectory]:
    """Trajectories of all ranks, of which others' hold no more than what the scorer averages of their pictures.

    Every rank trains the scorer on the same numbers, and so comes to the same weights.

    Args:
        trajectories: Those of this rank.
        scorer: About to be trained.
        ranks: All ranks.

    Raises:
        ConfigError: The scorer reads more than averages, which do not leave a rank.
    """
    if ranks.size == 1:
        return list(trajectories)
    kind = scorer.patch_averages
    if kind is None:
        raise ConfigError(
            f"Reward {scorer.name!r} is trained on whole trajectories, which stay with the rank that played them.",
            "Train with one process, or with --reward siglip-t.",
        )
    looks = [look_features(one, *kind) if one.num_looks else torch.empty(0, 0) for one in trajectories]
    facts = {
        key: np.array([getattr(one, key) for one in trajectories], dtype=np.int64)
        for key in ("task", "init_state", "group", "slot", "length", "success", "valid")
    }
    facts["looks"] = np.array([len(one) for one in looks], dtype=np.int64)
    filled = [one.numpy() for one in looks if len(one)]
    flat = np.concatenate(filled) if filled else np.empty((0, 0), dtype=np.float32)
    everyone, averages = ranks.gather(facts), ranks.gather({"averages": flat})["averages"]
    stops = np.cumsum(everyone["looks"])
    light = [
        _light({key: int(column[row]) for key, column in everyone.items()}, averages[stop - count : stop], kind)
        for row, (stop, count) in enumerate(zip(stops, everyone["looks"], strict=True))
    ]
    return sorted(light, key=lambda one: one.slot)


def shared_references(trajectories: Sequence[Trajectory], scorer: Scorer, ranks: Ranks) -> list[tuple[int, Tensor]]:
    """Task of each success of all ranks, and what the scorer keeps of it, in the order of their slots."""
    mine = [(one, checked_reference(scorer, one)) for one in trajectories if one.valid and one.success]
    width = {reference.shape[-1] for _, reference in mine}
    facts = {
        "slot": np.array([one.slot for one, _ in mine], dtype=np.int64),
        "task": np.array([one.task for one, _ in mine], dtype=np.int64),
        # A vector has no rows of its own; 0 says so.
        "rows": np.array([len(kept) if kept.dim() == 2 else 0 for _, kept in mine], dtype=np.int64),
    }
    flat = [kept.reshape(-1, kept.shape[-1]).numpy() for _, kept in mine]
    values = np.concatenate(flat) if flat and len(width) == 1 else np.empty((0, 0), dtype=np.float32)
    everyone, kept = ranks.gather(facts), torch.from_numpy(ranks.gather({"values": values})["values"])
    found, start = [], 0
    for slot, task, rows in zip(everyone["slot"], everyone["task"], everyone["rows"], strict=True):
        part = kept[start : start + max(1, rows)]
        start += len(part)
        found.append((int(slot), int(task), part.clone() if rows else part[0].clone()))
    return [(task, reference) for _, task, reference in sorted(found, key=lambda one: one[0])]


def require_same_weights(parameters: Sequence[Tensor], ranks: Ranks) -> None:
    """Stop if ranks have come to different weights: from then on they would train on one another's noise.

    Raises:
        RankError: Names a rank that differs from the leading one.
    """
    if ranks.size == 1:
        return
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    found = ranks.gather_json(digest.hexdigest())
    other = next((rank for rank, one in enumerate(found) if one != found[0]), None)
    if other is not None:
        raise RankError(
            f"The weights of rank {other} are no longer those of rank 0.",
            "Are versions and kinds of machines the same everywhere? Go on from the last checkpoint: vlacoach train "
            "--resume latest.",
        )


def _light(facts: Mapping[str, int], averages: npt.NDArray[np.float32], kind: tuple[int, int | None]) -> Trajectory:
    """A trajectory of another rank: its terminal frame's average is the last look's, as scorers read them anyway."""
    looks = facts["looks"]
    nothing = torch.empty(looks, 0)
    executed = torch.zeros(looks, dtype=torch.int64)
    executed[:1] = facts["length"]
    features = RecomputedFeatures(nothing, _stays_with_its_rank, averages={kind: torch.from_numpy(averages.copy())})
    return Trajectory(
        task=facts["task"],
        init_state=facts["init_state"],
        group=facts["group"],
        slot=facts["slot"],
        instruction="",
        features=features,
        terminal_features=None,
        proprio=nothing,
        tokens=nothing.long(),
        log_prob=nothing,
        executed=executed,
        success=bool(facts["success"]),
        length=facts["length"] if looks else 0,
        valid=bool(facts["valid"]),
    )


def _stays_with_its_rank(images: Tensor) -> NoReturn:
    raise AssertionError("Features of another rank's trajectory were asked for.")
