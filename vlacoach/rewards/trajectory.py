"""One episode as the rollout recorded it: what the policy saw, what it sampled, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vlacoach.errors import VlacoachError

if TYPE_CHECKING:
    from torch import Tensor


PatchAverages = tuple[int, int | None]
"""Cells a side in which the patches of a look are averaged, and the last channels that are read (None: all)."""


@dataclass(frozen=True)
class RecomputedFeatures:
    """Patch features that are computed again whenever they are asked for: pictures take less memory.

    Attributes:
        images: (T, H, W, 3) or (T, I, H, W, 3) uint8, one look a row.
        encode: Features (n, P, D) of n rows; the policy's frozen vision tower.
        batch: Rows that are encoded at once.
        averages: (T, E) float32 averages of the features, a row a look, that were taken when they were there: they are
            small, and scorers need not encode the pictures again for them.
    """

    images: Tensor
    encode: Callable[[Tensor], Tensor]
    batch: int = 16
    averages: Mapping[PatchAverages, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> RecomputedFeatures:
        """Those of some looks."""
        averages = {kind: values[rows] for kind, values in self.averages.items()}
        return replace(self, images=self.images[rows], averages=averages)

    def __call__(self) -> Tensor:
        """(T, P, D), on the CPU."""
        import torch

        parts = [self.images[at : at + self.batch] for at in range(0, len(self.images), self.batch)]
        return torch.cat([self.encode(rows).cpu() for rows in parts])


@dataclass
class Trajectory:
    """An episode of T looks; the policy looks once per chunk of actions.

    Identity is the rollout slot, never the task: siblings of a group share task and initial state and still
    are different episodes (invariant 6).

    Attributes:
        task: Index of the task in its suite.
        init_state: Index of the initial state: 0 to 49 for official ones, 1000 and up for fresh ones.
        group: Which prompt (task and initial state) of the batch this is a sample of.
        slot: Row in the rollout.
        instruction: What the policy was told.
        features: (T, P, D) patch features of the frozen vision tower, one row a look, in rollout order; or what
            computes them again. :meth:`patch_features` reads them either way.
        terminal_features: (P, D) features of the frame after the last action, or None if it was not encoded.
        proprio: (T, 8) proprioception at each look, raw units.
        tokens: (T, K * A) int64 tokens that acted (K actions a chunk, A tokens an action), as the policy numbers them.
        log_prob: (T, K * A) float32 log-probabilities recorded when the tokens were sampled.
        executed: (T,) int64 actions executed of each chunk, 1 to K.
        success: Whether the goal was reached.
        length: Executed actions in all.
        valid: False if the episode broke down (a simulator error); it is then neither scored nor trained on.
        frames: (T + 1, H, W, 3) uint8 pictures of the first camera: one a look, the terminal frame last. None unless a
            scorer asks for them (``Scorer.needs_frames``).
    """

    task: int
    init_state: int
    group: int
    slot: int
    instruction: str
    features: Tensor | RecomputedFeatures
    terminal_features: Tensor | None
    proprio: Tensor
    tokens: Tensor
    log_prob: Tensor
    executed: Tensor
    success: bool
    length: int
    valid: bool = True
    frames: Tensor | None = None

    def __post_init__(self) -> None:
        fields = ("features", "proprio", "tokens", "log_prob", "executed")
        looks = {name: len(getattr(self, name)) for name in fields}
        if len(set(looks.values())) != 1:
            raise VlacoachError(f"{self}: columns differ in the number of looks: {looks}.")
        if self.frames is not None and len(self.frames) != len(self.features) + 1:
            raise VlacoachError(f"{self}: {len(self.frames)} frames do not fit {len(self.features)} looks and the end.")
        executed = int(self.executed.sum())
        if executed != self.length:
            raise VlacoachError(f"{self}: length is {self.length}, but {executed} actions were executed.")

    @property
    def num_looks(self) -> int:
        """Times the policy looked, T."""
        return len(self.features)

    def patch_features(self) -> Tensor:
        """(T, P, D) patch features, computed again if they were not kept."""
        return self.features() if isinstance(self.features, RecomputedFeatures) else self.features

    def __str__(self) -> str:
        return f"slot {self.slot} (task {self.task}, initial state {self.init_state})"
