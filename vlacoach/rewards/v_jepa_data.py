"""What a step of V-JEPA's training is shown: clips of episodes, and which of their tokens are hidden.

Hidden are blocks of the picture, over the whole time: multi-block masking, arXiv 2404.08471, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from vlacoach.errors import ConfigError
from vlacoach.rewards.v_jepa import normalize_levels, sample_frames

_ASPECT = (0.75, 1.5)
# Of a random crop: its share of the picture's area, and its aspect ratio relative to the picture's.
_CROP_AREA = (0.6, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)
# Below this share of context, a draw of blocks is repeated: a handful of tokens foretells nothing.
_LEAST_CONTEXT = 1 / 16


@dataclass(frozen=True)
class Blocks:
    """How many blocks are hidden in each clip, and how large they are.

    Attributes:
        count: Blocks a clip; they may overlap.
        scale: Area of each as a share of the picture.
    """

    count: int
    scale: float


SHORT_RANGE = Blocks(count=8, scale=0.15)
"""Many small blocks: what is hidden is near something seen."""

LONG_RANGE = Blocks(count=2, scale=0.7)
"""Few large ones: what is hidden is far from it."""


@dataclass(frozen=True)
class Mask:
    """Which tokens are seen, and which are predicted.

    Attributes:
        context: (B, C) int64 indices of the tokens seen, rising.
        target: (B, P) int64 indices of the tokens to predict, rising; none is in the context.
    """

    context: Tensor
    target: Tensor


def block_masks(grid: tuple[int, int, int], batch: int, blocks: Blocks, rng: np.random.Generator) -> Mask:
    """Hide blocks of each clip through its whole duration, so that nothing can be copied from another moment.

    Blocks of a batch share their shape, of random aspect ratio, and lie anywhere. Clips of a batch must have equally
    many tokens: surplus ones are left out of both, at random, and through the whole duration too.

    Args:
        grid: Tokens along time, rows, and columns.
        batch: Clips, B.
        blocks: How many, and how large.
        rng: Where all randomness comes from.

    Returns:
        Indices into ``N = time * rows * columns`` tokens.

    Raises:
        ConfigError: If the picture is one token, so that a block hides all of it.
    """
    rows, columns = grid[1:]
    if rows * columns < 2:
        raise ConfigError(f"A grid of {rows} x {columns} tokens cannot be masked.", "Use smaller patches.")
    shape = _block_shape(rows, columns, blocks.scale, rng)
    hidden = [_hidden_cells(rows, columns, shape, blocks.count, rng) for _ in range(batch)]
    seen_count = min(int((~one).sum()) for one in hidden)
    target_count = min(int(one.sum()) for one in hidden)
    context = [_through_time(rng.choice(np.flatnonzero(~one), seen_count, replace=False), grid) for one in hidden]
    target = [_through_time(rng.choice(np.flatnonzero(one), target_count, replace=False), grid) for one in hidden]
    return Mask(torch.from_numpy(np.stack(context)), torch.from_numpy(np.stack(target)))


def _block_shape(rows: int, columns: int, scale: float, rng: np.random.Generator) -> tuple[int, int]:
    area, aspect = scale * rows * columns, rng.uniform(*_ASPECT)
    height = min(max(round(math.sqrt(area * aspect)), 1), rows)
    width = min(max(round(math.sqrt(area / aspect)), 1), columns)
    if (height, width) == (rows, columns):
        # Something must be left to see.
        return (height - 1, width) if height > 1 else (height, width - 1)
    return height, width


def _hidden_cells(
    rows: int, columns: int, shape: tuple[int, int], count: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """(rows * columns,) cells under ``count`` blocks, drawn again until enough is left to see."""
    least = max(1, int(_LEAST_CONTEXT * rows * columns))
    while True:
        hidden = np.zeros((rows, columns), dtype=bool)
        for _ in range(count):
            top = rng.integers(rows - shape[0] + 1)
            left = rng.integers(columns - shape[1] + 1)
            hidden[top : top + shape[0], left : left + shape[1]] = True
        if (~hidden).sum() >= least:
            return hidden.reshape(-1)


def _through_time(cells: npt.NDArray[np.int64], grid: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    """Token indices of cells (C,) at every time: (time * C,), rising."""
    time, rows, columns = grid
    return (np.arange(time)[:, None] * rows * columns + np.sort(cells)).reshape(-1)


# ---------------------------------------------------------------- objective


def draw_clip(episode: npt.NDArray[np.uint8], frames: int, crop_size: int, rng: np.random.Generator) -> Tensor:
    """Cut a random clip out of an episode: a stretch of at least half of it, and a crop, the same in all frames.

    Nothing is mirrored: left and right are not the same to a robot.

    Args:
        episode: (T, H, W, 3) uint8.
        frames: Frames to sample from the stretch, F; a short one repeats frames, in order.
        crop_size: Side S of the clip, pixels.
        rng: Where all randomness comes from.

    Returns:
        (F, 3, S, S) float32, normalized.
    """
    total, height, width = episode.shape[:3]
    length = int(rng.integers(-(-total // 2), total + 1))
    first = int(rng.integers(total - length + 1))
    rows = first + sample_frames(length, frames)
    area = rng.uniform(*_CROP_AREA)
    low, high = _CROP_ASPECT
    aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
    tall = min(height, max(1, round(height * math.sqrt(area / aspect))))
    wide = min(width, max(1, round(width * math.sqrt(area * aspect))))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    crop = torch.from_numpy(episode[rows, top : top + tall, left : left + wide]).permute(0, 3, 1, 2).float()
    size = (crop_size, crop_size)
    return normalize_levels(functional.interpolate(crop, size, mode="bilinear", antialias=True, align_corners=False))


def check_clips(clips: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Refuse episodes that are no pictures, with a ``ConfigError``."""
    if not len(clips):
        raise ConfigError("There are no episodes to train a V-JEPA on.", "Give at least one.")
    for number, clip in enumerate(clips):
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
            raise ConfigError(
                f"Episode {number} must be (T, height, width, 3) uint8, not {clip.shape} {clip.dtype}.",
                "Give pictures as the simulator renders them.",
            )


# ---------------------------------------------------------------- training
