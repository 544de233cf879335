"""Worse sensors: what blur, noise, dead pixels, and compression make of a picture, and noise on proprioception."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.perturbations import Perturbation

_BLOCK = 8
"""Side of the blocks in which pictures are compressed, as JPEG has it."""

# The orthonormal discrete cosine transform of one block's side.
_ROW, _COLUMN = np.mgrid[:_BLOCK, :_BLOCK]
_COSINES = np.sqrt(np.where(_ROW == 0, 1.0, 2.0) / _BLOCK) * np.cos(np.pi * (2 * _COLUMN + 1) * _ROW / (2 * _BLOCK))
# Fine detail is rounded more coarsely than flat areas.
_COARSENESS = 1.0 + (_ROW + _COLUMN) / 4.0


def disturb_picture(
    picture: NDArray[np.uint8], perturbation: Perturbation, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """The picture that a worse camera takes: out of focus, then noisy, with dead pixels, then compressed.

    Args:
        picture: (H, W, 3) uint8.
        perturbation: Of the axis ``noise``.
        generator: Of this picture.
    """
    values = _blur(picture.astype(np.float64), perturbation.magnitude("blur") * picture.shape[0])
    values += generator.normal(0.0, perturbation.magnitude("gaussian"), values.shape)
    values[generator.random(values.shape[:2]) < perturbation.magnitude("dropout")] = 0.0
    values = _compress(np.clip(values, 0.0, 255.0), perturbation.magnitude("compression"))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def disturb_state(
    state: NDArray[np.float32], perturbation: Perturbation, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Proprioception (8,) with Gaussian noise: position (m), axis-angle (rad), finger positions (m)."""
    deviations = [
        perturbation.magnitude(quantity)
        for quantity, count in (("position_m", 3), ("angle_rad", 3), ("finger_m", 2))
        for _ in range(count)
    ]
    return (state + generator.normal(0.0, deviations)).astype(np.float32)


def _blur(values: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    """Gaussian blur of (H, W, 3) by a standard deviation in pixels; the rim is continued."""
    reach = max(1, int(np.ceil(3.0 * deviation)))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        padding = [(reach, reach) if axis == each else (0, 0) for each in range(3)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, padding, "edge"), len(weights), axis)
        values = windows @ weights
    return values


def _compress(values: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Round the cosine transform of blocks of 8 x 8 to multiples of a step, which grows with the frequency."""
    height, width = values.shape[:2]
    padded = np.pad(values, ((0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0)), "edge")
    rows, columns = (side // _BLOCK for side in padded.shape[:2])
    blocks = padded.reshape(rows, _BLOCK, columns, _BLOCK, 3).transpose(0, 2, 4, 1, 3)
    steps = step * _COARSENESS
    blocks = _COSINES.T @ (np.rint(_COSINES @ blocks @ _COSINES.T / steps) * steps) @ _COSINES
    result: NDArray[np.float64] = blocks.transpose(0, 3, 1, 4, 2).reshape(padded.shape)[:height, :width]
    return result
