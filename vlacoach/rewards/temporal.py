"""How looks become one vector: a sinusoidal time code, its fusion with image features, and pooling over time.

The time of a look is its index in the episode: 0, 1, 2, ..., one unit per chunk of actions, and the frame
after the last action takes the next index. It is absolute, so that "the drawer is open" means something else
at look 3 than at look 30, and it needs no knowledge of how long the episode will be.

Pooling erases order unless the fusion is multiplicative: for ``add``,
``mean_t(s_t + g(t)) = mean_t(s_t) + mean_t(g(t))``, and only the number of looks survives. ``film``
(feature-wise linear modulation, arXiv 1709.07871) weights each feature by time before pooling, so that what
was seen late counts differently from what was seen early.

Notation: N trajectories, L looks (padded), D features, S pooled segments.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from vlacoach.errors import ConfigError, UnknownNameError

TIME_WIDTH = 256
"""Width of the sinusoidal code."""

Fusion: TypeAlias = Literal["film", "add"]
"""How the time code meets the features: ``s (1 + gamma(t)) + beta(t)``, or ``s + g(t)``."""

Pooling: TypeAlias = Literal["mean", "last-k", "segments"]
"""How looks become one vector; see :func:`pooling_weights`."""

# Fills the budget of 200 thousand parameters at SigLIP so400m's width.
_BOTTLENECKS: dict[Fusion, int] = {"film": 77, "add": 141}
_FULL_WIDTH = 1152
_LEAST_BOTTLENECK = 16


def sinusoidal(time: Tensor, width: int = TIME_WIDTH, max_period: float = 10_000.0) -> Tensor:
    """Encode times by sines and cosines of geometrically spaced periods; no parameters.

    Args:
        time: (...) times, any real dtype; see the module's docstring for the unit.
        width: Even number of features.
        max_period: The longest period is about ``2 pi`` times this; the shortest is ``2 pi``.

    Returns:
        (..., width) float32 in [-1, 1]: all sines, then all cosines.

    Raises:
        ConfigError: If the width is odd.
    """
    if width % 2 or width < 2:
        raise ConfigError(f"The width of a sinusoidal code must be even and positive, got {width}.")
    half = width // 2
    frequency = torch.exp(-math.log(max_period) * torch.arange(half, device=time.device) / half)
    angle: Tensor = time.float()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def default_bottleneck(fusion: Fusion, feature_dim: int) -> int:
    """Hidden width that gives about 200 thousand parameters at D = 1152, in proportion for smaller towers."""
    return max(_LEAST_BOTTLENECK, round(_BOTTLENECKS[fusion] * feature_dim / _FULL_WIDTH))


class TemporalFusion(nn.Module):
    """Modulate features by their time: an MLP of the sinusoidal code, ``256 -> bottleneck -> D`` or ``2 D``.

    The last layer starts at zero, so that an untrained module passes features through unchanged.

    Args:
        feature_dim: Width D of the features.
        fusion: ``"film"`` (order survives pooling) or ``"add"`` (it does not; for the ablation).
        bottleneck: Hidden width, or None for :func:`default_bottleneck`.
        generator: Source of the initial weights; the global one if None.

    Raises:
        UnknownNameError: If the fusion is neither.
    """

    def __init__(
        self,
        feature_dim: int,
        fusion: Fusion = "film",
        bottleneck: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if fusion not in get_args(Fusion):
            raise UnknownNameError("fusion", fusion, get_args(Fusion))
        self.fusion = fusion
        self.feature_dim = feature_dim
        self.bottleneck = default_bottleneck(fusion, feature_dim) if bottleneck is None else bottleneck
        self.inner = nn.Linear(TIME_WIDTH, self.bottleneck)
        self.outer = nn.Linear(self.bottleneck, feature_dim * (2 if fusion == "film" else 1))
        self.reset(generator)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew; the module is the identity afterwards."""
        nn.init.xavier_uniform_(self.inner.weight, generator=generator)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """Fuse features with their times.

        Args:
            features: (..., L, D) float32.
            time: (..., L), broadcast against the features.

        Returns:
            (..., L, D) float32.
        """
        code: Tensor = self.outer(nn.functional.silu(self.inner(sinusoidal(time))))
        if self.fusion == "add":
            return features + code
        scale, shift = code.chunk(2, dim=-1)
        fused: Tensor = features * (1.0 + scale) + shift
        return fused


def check_pooling(pooling: Pooling, segments: int) -> None:
    """Refuse a pooling that does not exist.

    Raises:
        UnknownNameError: If the name is unknown.
        ConfigError: If ``segments`` is not positive.
    """
    if pooling not in get_args(Pooling):
        raise UnknownNameError("pooling", pooling, get_args(Pooling))
    if segments < 1:
        raise ConfigError(f"Pooling needs k >= 1, got {segments}.")


def pooling_weights(lengths: Tensor, looks: int, pooling: Pooling = "mean", k: int = 4) -> Tensor:
    """Weights that average looks over time; apply them with :func:`pool`.

    Args:
        lengths: (N,) int64 looks of each trajectory, 1 to ``looks``.
        looks: Padded number of looks, L.
        pooling: ``"mean"``: over all looks (S = 1). ``"last-k"``: over the last k, or all if there are fewer
            (S = 1). ``"segments"``: over each of k stretches of equal duration (S = k), which share a look
            where the number of looks is not a multiple of k, so that none is ever empty.
        k: See ``pooling``.

    Returns:
        (N, S, L) float32; each row sums to 1 and is zero on padding.
    """
    check_pooling(pooling, k)
    count = lengths[:, None]
    if pooling == "segments":
        part = torch.arange(k, device=lengths.device)
        first, end = part * count // k, -(-(part + 1) * count // k)
    else:
        end = count
        first = (count - k).clamp(min=0) if pooling == "last-k" else torch.zeros_like(count)
    position = torch.arange(looks, device=lengths.device)
    inside = (position >= first[..., None]) & (position < end[..., None])
    weights: Tensor = inside / (end - first)[..., None]
    return weights


def pool(features: Tensor, weights: Tensor) -> Tensor:
    """Pool looks into one vector a trajectory: (N, L, D) with weights (N, S, L) gives (N, S * D)."""
    return torch.bmm(weights, features).flatten(1)
