"""Prefixes of successful trajectories, and the objectives that SigLIP-T can be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Objective: TypeAlias = Literal["progress", "triplet", "time-contrastive", "displacement", "regression"]
"""What the temporal MLP is trained for; see :func:`stage_loss`."""

# A correlation needs a handful of prefixes.
_PREFIXES_PER_TASK = 16
_FAILURES_PER_TASK = 16
_TINY = 1e-8
_SHARPNESS = 10.0
_MARGIN = 0.5


@dataclass(frozen=True)
class Looks:
    """Standardized looks of many trajectories, end to end.

    Attributes:
        flat: (sum of T_i, D).
        start: (N,) first row of each trajectory.
        length: (N,) looks of each.
        success: (N,) bool.
        tasks: For each task that can be trained on, the numbers of its successes and of its failures.
    """

    flat: Tensor
    start: Tensor
    length: Tensor
    success: Tensor
    tasks: tuple[tuple[Tensor, Tensor], ...]

    def gather(self, which: Tensor, stop: Tensor, length: Tensor) -> Tensor:
        """Take trajectories up to look ``stop`` and hold it; (n, max(length), D)."""
        position = torch.arange(int(length.max()))
        row = self.start[which, None] + torch.minimum(position[None], stop[:, None])
        return self.flat[row]


@dataclass(frozen=True)
class Draw:
    """Prefixes of one task's successes, and its failures.

    Attributes:
        successes: Numbers of all its successes.
        failures: Numbers of some of its failures.
        which: (n,) the success each prefix stems from.
        stop: (n,) the look it is held at.
        length: (n,) its looks in all, with the hold.
        remaining: (n,) float, the fraction of the success that is missing, 0 to 1.
    """

    successes: Tensor
    failures: Tensor
    which: Tensor
    stop: Tensor
    length: Tensor
    remaining: Tensor


def draw_prefixes(looks: Looks, won: Tensor, lost: Tensor, generator: torch.Generator) -> Draw:
    """Draw prefixes of a task's successes, spread over all stages, held for a random time; and some failures.

    Args:
        looks: All looks.
        won: Numbers of the task's successes, each of at least two looks.
        lost: Numbers of its failures.
        generator: Everything random comes from it.
    """
    which = won[torch.randint(len(won), (_PREFIXES_PER_TASK,), generator=generator)]
    last = looks.length[which] - 1
    # Spread over the whole episode, one draw in each of equal strata: few prefixes then cover all of it.
    strata = torch.arange(_PREFIXES_PER_TASK) + torch.rand(_PREFIXES_PER_TASK, generator=generator)
    stop = (strata / _PREFIXES_PER_TASK * (last + 1)).long().clamp(max=last)
    longest = int(looks.length.max())
    hold = torch.rand(_PREFIXES_PER_TASK, generator=generator) * (longest - stop)
    length = (stop + 1 + hold.long()).clamp(max=longest)
    some = torch.randperm(len(lost), generator=generator)[:_FAILURES_PER_TASK]
    return Draw(won, lost[some], which, stop, length, remaining=1.0 - stop / last)


def centers_without(complete: Tensor, own: Tensor) -> Tensor:
    """Mean of the other successes, for each row; a task's only success is its own reference.

    Args:
        complete: (S, D) embeddings of complete successes.
        own: (n, S) bool, True where a row stems from that success.

    Returns:
        (n, D).
    """
    others = (~own).float()
    others = torch.where(others.sum(dim=1, keepdim=True) > 0, others, torch.ones_like(others))
    return others @ complete / others.sum(dim=1, keepdim=True)


def distances(points: Tensor, centers: Tensor) -> Tensor:
    """Euclidean distance of each of (n, D) points to its center, (n,)."""
    # The gradient of a norm at zero is NaN.
    return ((points - centers).square().sum(dim=1) + _TINY).sqrt()


def correlation_of(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of two (n,) columns; 0 if one is constant."""
    left, right = first - first.mean(), second - second.mean()
    scale: Tensor = left.square().sum().sqrt() * right.square().sum().sqrt()
    correlation: Tensor = (left * right).sum() / (scale + _TINY)
    return correlation


def stage_loss(objective: Objective, prefix: Tensor, center: Tensor, remaining: Tensor) -> Tensor:
    """How badly the embeddings of prefixes of successes tell how far these have come.

    ``"progress"``: one minus the correlation of the distance to the center with the remaining share; like the reward,
    it does not depend on scale or shift. ``"regression"``: mean squared error of the distance, in units of its mean,
    from the remaining share, in units of its mean. ``"displacement"``: the vector to the center should be the
    remaining share of the one vector that points from start to goal, the mean over prefixes of such vectors over shares
    (after the goal-displacement rewards of reward-learning work). ``"time-contrastive"``: each prefix should be more
    like the one nearest in remaining share than like all others (InfoNCE, after time-contrastive networks, Sermanet et
    al., arXiv 1704.06888). ``"triplet"``: the later of two prefixes should be closer to the center than the earlier one
    by a margin (a ranking loss).

    Args:
        objective: One of the five.
        prefix: (n, D) embeddings of prefixes.
        center: (n, D) embedding of the goal reached, for each.
        remaining: (n,) share of the success that is missing, 0 to 1.

    Returns:
        Scalar.
    """
    distance = distances(prefix, center)
    if objective == "progress":
        return 1.0 - correlation_of(distance, remaining)
    if objective == "regression":
        return (distance / (distance.mean() + _TINY) - remaining / (remaining.mean() + _TINY)).square().mean()
    if objective == "displacement":
        # Least squares of one direction: the displacement per share that explains all prefixes best.
        toward = prefix - center
        direction = (remaining[:, None] * toward).sum(dim=0) / (remaining.square().sum() + _TINY)
        error = (toward - remaining[:, None] * direction).square().sum(dim=1)
        return error.mean() / (toward.square().sum(dim=1).mean() + _TINY)
    if objective == "time-contrastive":
        apart = torch.cdist(prefix, prefix)
        gap = (remaining[:, None] - remaining[None]).abs()
        own = torch.eye(len(prefix), dtype=torch.bool)
        similarity = -apart / (apart.detach()[~own].mean() + _TINY) * _SHARPNESS
        return nn.functional.cross_entropy(
            similarity.masked_fill(own, -torch.inf), gap.masked_fill(own, torch.inf).argmin(dim=1)
        )
    later = remaining[:, None] < remaining[None]
    scale = distance.detach().std() + _TINY
    behind = (distance[:, None] - distance[None]) / scale + _MARGIN
    return nn.functional.relu(behind)[later].mean() if bool(later.any()) else behind.sum() * 0.0
