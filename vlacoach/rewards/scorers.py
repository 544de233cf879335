"""What scores a trajectory: the interface, and the plain success flag.

A scorer turns each trajectory into one vector (:meth:`Scorer.embed`) and compares the vectors of a batch by
the self-referential rule (:meth:`Scorer.rewards`).
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlacoach.errors import CheckpointError, NonFiniteError, UnknownNameError, VlacoachError
from vlacoach.rewards.peers import Columns, Peers
from vlacoach.rewards.self_referential import (
    NOT_CLUSTERED,
    RewardRule,
    SelfReferentialDetails,
    self_referential_details,
)
from vlacoach.rewards.tensor_files import read_tensors, replace_file, write_tensors
from vlacoach.rewards.trajectory import PatchAverages, Trajectory

if TYPE_CHECKING:
    from vlacoach.rewards.bank import ReferenceBank

FORMAT = 1
DESCRIPTION_FILE = "scorer.json"
WEIGHTS_FILE = "scorer.safetensors"


class HasFeatures(Protocol):
    """What a scorer needs to know of a policy."""

    @property
    def feature_dim(self) -> int:
        """Width of the vision towers' patch features."""
        ...

    @property
    def siglip_dim(self) -> int:
        """Width of SigLIP's share of them: the last channels."""
        ...


class Scorer(ABC):
    """Scores whole trajectories.

    Args:
        rule: Constants of the self-referential rule that differ from SRPO's; see :class:`RewardRule`.

    Attributes:
        last_details: What the last call of :meth:`rewards` computed on the way, for logs; None before the first.
        peers: The processes that share a batch; their episodes are compared with one another.

    Raises:
        UnknownNameError: If ``rule`` names a constant that does not exist.
    """

    name: ClassVar[str]

    def __init__(self, rule: Mapping[str, Any] | None = None) -> None:
        known = [field.name for field in fields(RewardRule)]
        for key in rule or {}:
            if key not in known:
                raise UnknownNameError("constant of the reward rule", key, known)
        self.rule = RewardRule(**(rule or {}))
        self.last_details: SelfReferentialDetails | None = None
        self.peers = Peers()

    @abstractmethod
    def embed(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """Embed a trajectory.

        Returns:
            (D,) float32, finite.

        Raises:
            NonFiniteError: If its features are not finite; names the rollout slot.
        """

    @property
    def fitted(self) -> bool:
        """Whether :meth:`embed` may be called; a scorer that has nothing to train always is."""
        return True

    @property
    def compares(self) -> bool:
        """Whether rewards come from comparing embeddings; False for a scorer whose :meth:`details` does without."""
        return True

    @property
    def needs_frames(self) -> bool:
        """Whether :meth:`embed` reads ``Trajectory.frames``, which rollouts keep on demand only."""
        return False

    @property
    def patch_averages(self) -> PatchAverages | None:
        """The averages that are all this scorer reads of patch features; None for one that reads more, or nothing."""
        return None

    def can_fit(self, trajectories: Sequence[Trajectory]) -> bool:
        """Whether :meth:`fit` would find what it needs; False for a scorer that has nothing to train."""
        return False

    def fit(self, trajectories: Sequence[Trajectory], *, seed: int = 0) -> dict[str, float]:
        """Train on rollouts; a scorer that has nothing to train returns no statistics.

        Args:
            trajectories: Rollouts with features.
            seed: Everything random comes from it.

        Returns:
            Statistics for the log.
        """
        return {}

    def embed_all(self, trajectories: Sequence[Trajectory]) -> npt.NDArray[np.float32]:
        """Embed trajectories, and stop at the first whose embedding says nothing.

        Returns:
            (B, D) float32, finite, no row all zeros.

        Raises:
            NonFiniteError: An embedding is NaN or infinite; names the rollout slot.
            VlacoachError: An embedding is missing or all zeros; names the rollout slot.
        """
        rows = [self.embed(trajectory) for trajectory in trajectories]
        for row, trajectory in zip(rows, trajectories, strict=True):
            if np.ndim(row) != 1 or not np.size(row):
                raise VlacoachError(
                    f"The embedding of {trajectory} is missing: scorer {self.name!r} gave shape {np.shape(row)}, "
                    "not (D,)."
                )
            check_says_something("embedding", row, trajectory)
        return np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)

    def reference(self, trajectory: Trajectory) -> Tensor:
        """What to keep of a success so that :meth:`embed_reference` can embed it in later updates.

        The embedding itself, unless a scorer's embedding changes from one :meth:`fit` to the next: then whatever it
        takes to compute it anew.

        Returns:
            Floating point, any shape; (D,) here.
        """
        return torch.from_numpy(np.asarray(self.embed(trajectory)))

    def embed_reference(self, reference: Tensor) -> npt.NDArray[np.float32]:
        """Embed what :meth:`reference` kept, (D,) float32: the number that :meth:`embed` would give now."""
        embedding: npt.NDArray[np.float32] = reference.numpy()
        return embedding

    def details(self, trajectories: Sequence[Trajectory], bank: ReferenceBank | None = None) -> SelfReferentialDetails:
        """Score a batch and keep distances and clusters for the log.

        Only tasks with a failure and something to compare it with are embedded: elsewhere the rule asks for nothing but
        the success flag. Invalid trajectories score 0.

        Args:
            trajectories: The batch.
            bank: Successes of earlier batches, which are references too; None for the batch's own alone.

        Returns:
            Rows in the order of the trajectories.

        Raises:
            NonFiniteError: An embedding is NaN or infinite; names the rollout slot.
            VlacoachError: An embedding is missing or all zeros; names the rollout slot.
        """
        rows = len(trajectories)
        outcomes = {
            "success": np.array([trajectory.success for trajectory in trajectories], dtype=bool),
            "valid": np.array([trajectory.valid for trajectory in trajectories], dtype=bool),
            "task": np.array([trajectory.task for trajectory in trajectories], dtype=np.int64),
            "slot": np.array([trajectory.slot for trajectory in trajectories], dtype=np.int64),
            "rank": np.full(rows, self.peers.rank, dtype=np.int64),
        }
        nan = np.full(rows, np.nan)
        result = SelfReferentialDetails(
            score=np.where(outcomes["success"] & outcomes["valid"], self.rule.success_reward, 0.0),
            distance=nan,
            normalized_distance=nan.copy(),
            cluster=np.full(rows, NOT_CLUSTERED, dtype=np.int64),
            cluster_count=0,
            usable=outcomes["valid"],
        )
        compared = _tasks_to_compare(self.peers.gather(outcomes), () if bank is None else bank.tasks)
        if not compared:
            return result
        graded = np.flatnonzero(outcomes["valid"] & np.isin(outcomes["task"], sorted(compared)))
        mine = {key: column[graded] for key, column in outcomes.items()}
        batch = self.peers.gather({"embedding": self.embed_all([trajectories[row] for row in graded.tolist()]), **mine})
        if self.peers.size > 1:
            # As one process would have them, so that sums are rounded alike.
            order = np.argsort(batch["slot"], kind="stable")
            batch = {key: column[order] for key, column in batch.items()}
        references, reference_task = (None, None) if bank is None else bank.embeddings(self, compared)
        part = self_referential_details(
            batch["embedding"],
            batch["success"],
            batch["task"],
            **asdict(self.rule),
            references=references,
            reference_task=reference_task,
        )
        own = np.flatnonzero(batch["rank"] == self.peers.rank)
        if self.peers.size > 1:
            graded = graded[np.argsort(mine["slot"], kind="stable")]
        result.score[graded] = part.score[own]
        result.distance[graded] = part.distance[own]
        result.normalized_distance[graded] = part.normalized_distance[own]
        result.cluster[graded] = part.cluster[own]
        result.usable[graded] = part.usable[own]
        return SelfReferentialDetails(**{**vars(result), "cluster_count": part.cluster_count})

    def rewards(self, trajectories: Sequence[Trajectory], bank: ReferenceBank | None = None) -> npt.NDArray[np.float64]:
        """Score a batch; arguments and errors of :meth:`details`.

        Returns:
            (B,) float64 in the order of the trajectories, 0 to 1 with SRPO's constants.
        """
        self.last_details = self.details(trajectories, bank)
        return self.last_details.score

    def parameters(self) -> list[Tensor]:
        """Weights that the scorer needs beside the policy's, trained or not; empty if none."""
        return []

    def config(self) -> dict[str, Any]:
        """Options that, given to :func:`vlacoach.rewards.make_scorer`, build this scorer again; JSON types."""
        return {"rule": asdict(self.rule)}

    def tensors(self) -> dict[str, Tensor]:
        """What training changed; empty if nothing."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave.

        Raises:
            CheckpointError: If names or shapes do not fit.
        """
        if tensors:
            raise CheckpointError(f"Scorer {self.name!r} has no weights, but got {sorted(tensors)}.")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the scorer to a folder, as JSON and safetensors.

        Each file is replaced in one step, and the description holds the checksum of the weights, so that an
        interrupted save is noticed by :meth:`load`.

        Raises:
            CheckpointError: If it cannot be written.
        """
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            description = {
                "format": FORMAT,
                "name": self.name,
                "config": self.config(),
                "weights_sha256": write_tensors(target / WEIGHTS_FILE, self.tensors()),
            }
            replace_file(target / DESCRIPTION_FILE, (json.dumps(description, indent=2) + "\n").encode())
        except OSError as error:
            raise CheckpointError(
                f"Cannot save the scorer to {target}: {error}.", "Check free space and permissions."
            ) from error

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Take over what :meth:`save` wrote; this scorer must have been built with the same options.

        Raises:
            CheckpointError: If the folder is missing, corrupt, or of another scorer or other options.
        """
        description = read_description(folder)
        if description["name"] != self.name:
            raise CheckpointError(f"{folder} holds scorer {description['name']!r}, not {self.name!r}.")
        mine = self.config()
        stored = description["config"]
        # An option that an older version did not know was at what is now its default.
        other = {key for key in mine if key in stored and stored[key] != mine[key]}
        if other:
            raise CheckpointError(
                f"The scorer in {folder} was built with other options: {', '.join(sorted(other))}.",
                "Build the scorer with vlacoach.rewards.load_scorer, which reads the options from the folder.",
            )
        self.restore(read_tensors(Path(folder) / WEIGHTS_FILE, description["weights_sha256"]))


class SuccessScorer(Scorer):
    """The plain outcome: 1 for a success, 0 for a failure; the baseline of GRPO without a reward model.

    Its embedding is the success flag itself, (1,).
    """

    name = "success"

    def embed(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """Return the success flag, (1,) float32."""
        return np.array([trajectory.success], dtype=np.float32)

    @property
    def compares(self) -> bool:
        """Never: the outcome is the reward."""
        return False

    def details(self, trajectories: Sequence[Trajectory], bank: ReferenceBank | None = None) -> SelfReferentialDetails:
        """Score by outcome; there are no distances."""
        rows = len(trajectories)
        valid = np.array([trajectory.valid for trajectory in trajectories], dtype=bool)
        success = np.array([trajectory.success for trajectory in trajectories], dtype=bool)
        return SelfReferentialDetails(
            score=np.where(success & valid, self.rule.success_reward, 0.0),
            distance=np.full(rows, np.nan),
            normalized_distance=np.full(rows, np.nan),
            cluster=np.full(rows, NOT_CLUSTERED, dtype=np.int64),
            cluster_count=0,
            usable=valid,
        )


def finite_embedding(embedding: Tensor, trajectory: Trajectory) -> npt.NDArray[np.float32]:
    """Return an embedding as an array, or stop if it is not finite (invariant 5).

    Raises:
        NonFiniteError: Naming the rollout slot.
    """
    array: npt.NDArray[np.float32] = embedding.detach().numpy().astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"The embedding of {trajectory} is not finite.")
    return array


def check_says_something(what: str, values: npt.ArrayLike, trajectory: Trajectory) -> None:
    """Refuse numbers of a trajectory that nothing can be compared with.

    Raises:
        NonFiniteError: One is NaN or infinite; names the rollout slot.
        VlacoachError: All are zero; names the rollout slot.
    """
    array = np.asarray(values)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"The {what} of {trajectory} is not finite.")
    if not array.any():
        raise VlacoachError(
            f"The {what} of {trajectory} is all zeros.",
            "Nothing can be compared with it: look at the features or frames that the scorer was given.",
        )


def read_description(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a folder says about the scorer in it.

    Raises:
        CheckpointError: If it is missing or corrupt, or of a format that this version does not know.
    """
    file = Path(folder) / DESCRIPTION_FILE
    try:
        description = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"No scorer in {folder}: {DESCRIPTION_FILE} is missing.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {file}: {error}.") from error
    keys = {"format", "name", "config", "weights_sha256"}
    if not isinstance(description, dict) or not keys <= description.keys():
        raise CheckpointError(f"{file} does not describe a scorer.")
    if description["format"] != FORMAT or not isinstance(description["config"], dict):
        raise CheckpointError(f"{file} has format {description['format']!r}; this version reads {FORMAT}.")
    return description


def _tasks_to_compare(outcomes: Columns, known: Container[int]) -> set[int]:
    """Tasks with a failure, and a success to compare it with, of this batch or known from before."""
    seen: dict[int, set[bool]] = defaultdict(set)
    valid = outcomes["valid"]
    for task, success in zip(outcomes["task"][valid], outcomes["success"][valid], strict=True):
        seen[int(task)].add(bool(success))
    return {task for task, found in seen.items() if False in found and (True in found or task in known)}
