"""Small synthetic trajectories for the tests of this room."""

from __future__ import annotations

import math

import torch

from vlacoach.rewards import Trajectory

PATCHES = 3


def make_trajectory(
    looks: torch.Tensor,
    success: bool,
    *,
    slot: int = 0,
    task: int = 0,
    init_state: int = 0,
    terminal: torch.Tensor | None = None,
    valid: bool = True,
) -> Trajectory:
    """An episode whose patches, averaged, are ``looks`` (T, D)."""
    # Patches differ, but their mean is the look.
    spread = torch.linspace(-1, 1, PATCHES)[None, :, None]
    count = len(looks)
    return Trajectory(
        task=task,
        init_state=init_state,
        group=0,
        slot=slot,
        instruction="open the middle drawer of the cabinet",
        features=looks[:, None, :] + spread,
        terminal_features=None if terminal is None else terminal[None] + spread[0],
        proprio=torch.zeros(count, 8),
        tokens=torch.zeros(count, 56, dtype=torch.int64),
        log_prob=torch.zeros(count, 56),
        executed=torch.full((count,), 8),
        success=success,
        length=8 * count,
        valid=valid,
    )


def _axes(dim: int) -> torch.Tensor:
    axes = torch.linalg.qr(torch.randn(dim, 2, generator=torch.Generator().manual_seed(0)))[0]
    return axes.T


def _path(dim: int, noise: float, generator: torch.Generator) -> torch.Tensor:
    """From a start to a goal by a detour, shifted as a whole: (T, D) with T between 10 and 13."""
    looks = 10 + int(torch.randint(0, 4, (1,), generator=generator))
    phase = torch.linspace(0, 1, looks)[:, None]
    first, second = _axes(dim)
    shift = noise * torch.randn(1, dim, generator=generator)
    return 3 * (phase * first + torch.sin(math.pi * phase) * second) + shift


def paths_and_reversals(dim: int, pairs: int, seed: int) -> list[Trajectory]:
    """Successes, each with a failure that shows exactly the same looks in reverse order."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for pair in range(pairs):
        path = _path(dim, 0.1, generator)
        batch += [make_trajectory(path, True, slot=2 * pair), make_trajectory(path.flip(0), False, slot=2 * pair + 1)]
    return batch


def graded_failures(dim: int, count: int, seed: int, limit: int = 24) -> tuple[list[Trajectory], list[float]]:
    """Successes and failures in turn; a failure gets stuck and idles until the limit. Also the progress of each."""
    generator = torch.Generator().manual_seed(seed)
    batch, progress = [], []
    for slot in range(count):
        path = _path(dim, 0.3, generator)
        last = len(path) - 1
        stop = last if slot % 2 else int(torch.randint(0, last, (1,), generator=generator))
        rows = torch.arange(len(path) if slot % 2 else limit).clamp(max=stop)
        idle = 0.2 * torch.randn(len(rows), dim, generator=generator)
        batch.append(make_trajectory(path[rows] + idle, bool(slot % 2), slot=slot))
        progress.append(stop / last)
    return batch, progress
