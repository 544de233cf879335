"""What scores a trajectory: the interface, the SigLIP scorer and the plain success flag.

A scorer turns each trajectory into one vector (:meth:`Scorer.embed`) and compares the vectors of a batch by
the self-referential rule (:meth:`Scorer.rewards`). Features come from the rollout's own forward pass: no
scorer here runs a vision tower.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vlacoach.errors import CheckpointError, NonFiniteError, UnknownNameError, VlacoachError
from vlacoach.rewards.self_referential import (
    NOT_CLUSTERED,
    RewardRule,
    SelfReferentialDetails,
    self_referential_details,
)
from vlacoach.rewards.temporal import Pooling, check_pooling, pool, pooling_weights
from vlacoach.rewards.trajectory import Trajectory

FORMAT = 1
DESCRIPTION_FILE = "scorer.json"
WEIGHTS_FILE = "scorer.safetensors"


class HasFeatures(Protocol):
    """What a scorer needs to know of a policy."""

    @property
    def feature_dim(self) -> int:
        """Width of the vision tower's patch features."""
        ...


class Scorer(ABC):
    """Scores whole trajectories.

    Args:
        rule: Constants of the self-referential rule that differ from SRPO's; see :class:`RewardRule`.

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

    def details(self, trajectories: Sequence[Trajectory]) -> SelfReferentialDetails:
        """Score a batch and keep distances and clusters for the log.

        Only tasks with both outcomes are embedded: elsewhere the rule asks for nothing but the success flag.
        Invalid trajectories score 0.

        Returns:
            Rows in the order of the trajectories.
        """
        rows = len(trajectories)
        success = np.array([trajectory.success for trajectory in trajectories], dtype=bool)
        valid = np.array([trajectory.valid for trajectory in trajectories], dtype=bool)
        nan = np.full(rows, np.nan)
        result = SelfReferentialDetails(
            score=np.where(success & valid, self.rule.success_reward, 0.0),
            distance=nan,
            normalized_distance=nan.copy(),
            cluster=np.full(rows, NOT_CLUSTERED, dtype=np.int64),
            cluster_count=0,
            usable=valid,
        )
        graded = _rows_of_mixed_tasks(trajectories)
        if not len(graded):
            return result
        part = self_referential_details(
            np.stack([self.embed(trajectories[row]) for row in graded]),
            success[graded],
            [trajectories[row].task for row in graded],
            **asdict(self.rule),
        )
        result.score[graded] = part.score
        result.distance[graded] = part.distance
        result.normalized_distance[graded] = part.normalized_distance
        result.cluster[graded] = part.cluster
        result.usable[graded] = part.usable
        return SelfReferentialDetails(**{**vars(result), "cluster_count": part.cluster_count})

    def rewards(self, trajectories: Sequence[Trajectory]) -> npt.NDArray[np.float64]:
        """Score a batch.

        Returns:
            (B,) float64 in the order of the trajectories, 0 to 1 with SRPO's constants.
        """
        return self.details(trajectories).score

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
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.tensors().items()}
        weights = save_tensors(tensors) if tensors else None
        description = {
            "format": FORMAT,
            "name": self.name,
            "config": self.config(),
            "weights_sha256": None if weights is None else hashlib.sha256(weights).hexdigest(),
        }
        try:
            target.mkdir(parents=True, exist_ok=True)
            if weights is not None:
                _replace(target / WEIGHTS_FILE, weights)
            _replace(target / DESCRIPTION_FILE, (json.dumps(description, indent=2) + "\n").encode())
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
        other = {key for key in mine if description["config"].get(key) != mine[key]}
        if other:
            raise CheckpointError(
                f"The scorer in {folder} was built with other options: {', '.join(sorted(other))}.",
                "Build the scorer with vlacoach.rewards.load_scorer, which reads the options from the folder.",
            )
        checksum = description["weights_sha256"]
        self.restore({} if checksum is None else _read_weights(Path(folder) / WEIGHTS_FILE, checksum))


class SuccessScorer(Scorer):
    """The plain outcome: 1 for a success, 0 for a failure; the baseline of GRPO without a reward model.

    Its embedding is the success flag itself, (1,).
    """

    name = "success"

    def embed(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """Return the success flag, (1,) float32."""
        return np.array([trajectory.success], dtype=np.float32)

    def details(self, trajectories: Sequence[Trajectory]) -> SelfReferentialDetails:
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


class SiglipScorer(Scorer):
    """Mean of the policy's own patch features over patches, then pooled over looks; nothing is trained.

    Args:
        pooling: How looks become one vector; see :func:`vlacoach.rewards.temporal.pooling_weights`.
        pooling_k: The k of ``"last-k"`` and ``"segments"``.
        rule: See :class:`Scorer`.
    """

    name = "siglip"

    def __init__(self, pooling: Pooling = "mean", pooling_k: int = 4, rule: Mapping[str, Any] | None = None) -> None:
        super().__init__(rule)
        check_pooling(pooling, pooling_k)
        self.pooling = pooling
        self.pooling_k = pooling_k

    def embed(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """Embed a trajectory; (D,), or (k * D,) with pooling by segments."""
        looks = look_features(trajectory)
        return finite_embedding(self.pool(looks[None], torch.tensor([len(looks)]))[0], trajectory)

    def pool(self, looks: Tensor, lengths: Tensor) -> Tensor:
        """Pool (N, L, D) padded looks of the given (N,) lengths into (N, S * D)."""
        return pool(looks, pooling_weights(lengths, looks.shape[1], self.pooling, self.pooling_k))

    def config(self) -> dict[str, Any]:
        """Options; see :meth:`Scorer.config`."""
        return {**super().config(), "pooling": self.pooling, "pooling_k": self.pooling_k}


def look_features(trajectory: Trajectory) -> Tensor:
    """Average the patches of each look, the terminal frame last where it was encoded.

    The terminal frame shows the outcome; the policy itself never sees it.

    Returns:
        (T, D) or (T + 1, D) float32 on the CPU.

    Raises:
        NonFiniteError: If a feature is NaN or infinite; names the rollout slot.
        VlacoachError: If the trajectory has no looks.
    """
    looks = trajectory.features.detach().float().mean(dim=1)
    if trajectory.terminal_features is not None:
        last = trajectory.terminal_features.detach().float().mean(dim=0)
        looks = torch.cat([looks, last[None].to(looks.device)])
    if not len(looks):
        raise VlacoachError(f"The trajectory of {trajectory} has no looks.")
    looks = looks.cpu()
    if not bool(torch.isfinite(looks).all()):
        raise NonFiniteError(f"The vision features of {trajectory} are not finite.")
    return looks


def finite_embedding(embedding: Tensor, trajectory: Trajectory) -> npt.NDArray[np.float32]:
    """Return an embedding as an array, or stop if it is not finite (invariant 5).

    Raises:
        NonFiniteError: Naming the rollout slot.
    """
    array: npt.NDArray[np.float32] = embedding.detach().numpy().astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"The embedding of {trajectory} is not finite.")
    return array


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


def _rows_of_mixed_tasks(trajectories: Sequence[Trajectory]) -> npt.NDArray[np.int64]:
    outcomes: dict[int, set[bool]] = defaultdict(set)
    for trajectory in trajectories:
        if trajectory.valid:
            outcomes[trajectory.task].add(bool(trajectory.success))
    return np.array(
        [row for row, one in enumerate(trajectories) if one.valid and len(outcomes[one.task]) == 2],
        dtype=np.int64,
    )


def _read_weights(file: Path, checksum: str) -> dict[str, Tensor]:
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != checksum:
            raise CheckpointError(f"{file} is corrupt: its checksum is not the one recorded with it.")
        return load_tensors(data)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read {file}: {error}.") from error


def _replace(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
