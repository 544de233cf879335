"""Random numbers by address: a generator depends on what it is for, never on when it is asked for.

So a run that is resumed, or whose episodes are dealt to other worlds, draws the numbers it would have drawn anyway
(invariant 8).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What random numbers are drawn for."""

    PROMPTS = 0
    ROLLOUT = 1
    EVALUATION = 2
    MINIBATCHES = 3
    SCORER = 4
    CLONING = 5
    ADAPTER = 6
    LAB = 7


def numpy_generator(seed: int, stream: Stream, *address: int) -> np.random.Generator:
    """A NumPy generator for one purpose, for example ``(seed, ROLLOUT, update, group, sample)``."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(stream), *address]))


def torch_generator(seed: int, stream: Stream, *address: int) -> torch.Generator:
    """A torch CPU generator for one purpose; see :func:`numpy_generator`."""
    sequence = np.random.SeedSequence([seed, int(stream), *address])
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def derived_seed(seed: int, stream: Stream, *address: int) -> int:
    """A 32-bit seed for code that takes one."""
    return int(np.random.SeedSequence([seed, int(stream), *address]).generate_state(1)[0])
