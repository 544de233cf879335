"""SigLIP: the patch features that the policy computed in the rollout, averaged; and pixels, as a control.

Neither runs a vision tower: features and pictures are the rollout's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlacoach.errors import ConfigError, NonFiniteError, VlacoachError
from vlacoach.rewards.scorers import HasFeatures, Scorer, finite_embedding
from vlacoach.rewards.temporal import Pooling, check_pooling, pool, pooling_weights
from vlacoach.rewards.trajectory import PatchAverages, RecomputedFeatures, Trajectory

_CONTROL_SIZE = 16


class SiglipScorer(Scorer):
    """Mean of the policy's own patch features over patches, then pooled over looks; nothing is trained.

    Args:
        pooling: How looks become one vector; see :func:`vlacoach.rewards.temporal.pooling_weights`.
        pooling_k: The k of ``"last-k"`` and ``"segments"``.
        grid: Cells a side that patches are averaged in: 1 is the mean over all, which does not say where anything is.
        channels: SigLIP's share of a patch feature, its last channels, where a policy has another tower beside it; None
            reads all.
        rule: See :class:`Scorer`.

    Raises:
        UnknownNameError: If there is no such pooling.
        ConfigError: If ``pooling_k`` or ``grid`` is not positive.
    """

    name = "siglip"

    def __init__(
        self,
        pooling: Pooling = "mean",
        pooling_k: int = 4,
        grid: int = 1,
        channels: int | None = None,
        rule: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(rule)
        check_pooling(pooling, pooling_k)
        if grid < 1:
            raise ConfigError(
                f"The grid has {grid} cells a side.", "Use at least 1, which is the mean over all patches."
            )
        self.grid = grid
        self.channels = channels
        self.pooling = pooling
        self.pooling_k = pooling_k

    @property
    def patch_averages(self) -> PatchAverages:
        """Grid and channels."""
        return self.grid, self.channels

    def embed(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """Embed a trajectory; (grid^2 * D,), or k times that with pooling by segments."""
        looks = look_features(trajectory, self.grid, self.channels)
        return finite_embedding(self.pool(looks[None], torch.tensor([len(looks)]))[0], trajectory)

    def pool(self, looks: Tensor, lengths: Tensor) -> Tensor:
        """Pool (N, L, D) padded looks of the given (N,) lengths into (N, S * D)."""
        return pool(looks, pooling_weights(lengths, looks.shape[1], self.pooling, self.pooling_k))

    def config(self) -> dict[str, Any]:
        """Options; see :meth:`Scorer.config`."""
        options = {"pooling": self.pooling, "pooling_k": self.pooling_k, "grid": self.grid, "channels": self.channels}
        return {**super().config(), **options}


def siglip_channels(policy: HasFeatures | None) -> int | None:
    """Channels of a policy's features that are SigLIP's, or None if all are."""
    if policy is None or policy.siglip_dim == policy.feature_dim:
        return None
    return policy.siglip_dim


class PixelScorer(Scorer):
    """Pictures themselves, shrunk to 16 x 16 and averaged over looks: what features must beat to be worth anything.

    Its embedding is (768,).
    """

    name = "pixels"

    @property
    def needs_frames(self) -> bool:
        """Always."""
        return True

    def embed(self, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """Embed a trajectory's frames.

        Raises:
            VlacoachError: If the rollout kept no frames.
        """
        frames = kept_frames(trajectory).permute(0, 3, 1, 2).float() / 255.0
        small = torch.nn.functional.adaptive_avg_pool2d(frames, _CONTROL_SIZE)
        return finite_embedding(small.mean(dim=0).flatten(), trajectory)


def kept_frames(trajectory: Trajectory) -> Tensor:
    """Frames of a trajectory, (T + 1, H, W, 3) uint8.

    Raises:
        VlacoachError: If the rollout kept none; names the slot.
    """
    if trajectory.frames is None or not len(trajectory.frames):
        raise VlacoachError(
            f"The trajectory of {trajectory} has no frames.",
            "Roll out with keep_frames=True; agents do where the scorer's needs_frames says so.",
        )
    return trajectory.frames


def look_features(trajectory: Trajectory, grid: int = 1, channels: int | None = None) -> Tensor:
    """Average the patches of each look, the terminal frame last where it was encoded.

    The terminal frame shows the outcome; the policy itself never sees it.

    Args:
        trajectory: Its features are (T, P, D).
        grid: Cells a side that patches are averaged in; more than 1 needs patches that form a square, P = side^2, and
            a side that it divides.
        channels: Last channels of a feature to read, D of them; None is all.

    Returns:
        (T, grid^2 * D) or (T + 1, grid^2 * D) float32 on the CPU, cell by cell, row by row.

    Raises:
        ConfigError: If the patches cannot be divided so.
        NonFiniteError: If a feature is NaN or infinite; names the rollout slot.
        VlacoachError: If the trajectory has no looks.
    """
    features, kind = trajectory.features, (grid, channels)
    if isinstance(features, RecomputedFeatures) and kind in features.averages:
        looks = features.averages[kind]
    else:
        looks = average_patches(trajectory.patch_features().detach(), kind)
    if trajectory.terminal_features is not None:
        last = average_patches(trajectory.terminal_features.detach()[None], kind)
        looks = torch.cat([looks, last.to(looks.device)])
    if not len(looks):
        raise VlacoachError(f"The trajectory of {trajectory} has no looks.")
    looks = looks.cpu()
    if not bool(torch.isfinite(looks).all()):
        raise NonFiniteError(f"The vision features of {trajectory} are not finite.")
    return looks


def average_patches(features: Tensor, kind: PatchAverages) -> Tensor:
    """(T, P, D) features to (T, grid^2 * channels) float32; see :func:`look_features`."""
    grid, channels = kind
    first = 0 if channels is None else -channels
    return cell_means(features[..., first:].float(), grid)


def cell_means(patches: Tensor, grid: int) -> Tensor:
    """(T, P, D) patches to (T, grid^2 * D); see :func:`look_features`."""
    if grid == 1:
        return patches.mean(dim=1)
    looks, count, dim = patches.shape
    side = math.isqrt(count)
    if side * side != count or side % grid:
        raise ConfigError(
            f"{count} patches cannot be averaged in {grid} x {grid} cells.",
            f"The grid must divide the side of a square of patches{f', {side}' if side * side == count else ''}.",
        )
    cells = patches.reshape(looks, grid, side // grid, grid, side // grid, dim)
    return cells.mean(dim=(2, 4)).flatten(1)
