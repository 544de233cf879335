"""What is logged of an update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlacoach.rewards.metrics import auroc
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs import constants as names


def add_statistics(total: dict[str, float], stats: dict[str, float], tokens: float) -> None:
    """Add those of a micro-batch, given its share of the tokens; losses are shares of the whole already."""
    for key, value in stats.items():
        name = f"train/{key}"
        if key == "ratio_max":
            total[name] = max(total.get(name, value), value)
        else:
            share = 1.0 if key in ("loss", "reference_kl") else tokens
            total[name] = total.get(name, 0.0) + share * value


def episode_fields(trajectory: Trajectory, reward: float) -> dict[str, Any]:
    """Identity, outcome, and reward of an episode of training, as they are logged."""
    return {
        "task": trajectory.task,
        "init_state": trajectory.init_state,
        "group": trajectory.group,
        "slot": trajectory.slot,
        "success": trajectory.success,
        "valid": trajectory.valid,
        "length": trajectory.length,
        "reward": round(float(reward), 6),
    }


def rollout_metrics(
    trajectories: Sequence[Trajectory], reward: NDArray[np.float64], kept: Sequence[int]
) -> dict[str, float]:
    """Success, length, and reward of the episodes of an update, and how many groups say something.

    Args:
        trajectories: B episodes.
        reward: (B,) scores.
        kept: Rows that are learned from.
    """
    valid = [i for i, trajectory in enumerate(trajectories) if trajectory.valid]
    success = np.array([trajectories[i].success for i in valid], dtype=np.bool_)
    groups: dict[int, list[bool]] = {}
    for i in valid:
        groups.setdefault(trajectories[i].group, []).append(trajectories[i].success)
    metrics = {
        names.ROLLOUT_SUCCESS: float(success.mean()) if valid else 0.0,
        names.ROLLOUT_EPISODES: float(len(valid)),
        "rollout/invalid": float(len(trajectories) - len(valid)),
        names.ROLLOUT_LENGTH: float(np.mean([trajectories[i].length for i in valid])) if valid else 0.0,
        names.ROLLOUT_ENV_STEPS: float(sum(trajectory.length for trajectory in trajectories)),
        names.ROLLOUT_GROUPS: float(len(groups)),
        names.ROLLOUT_GROUPS_KEPT: float(len({trajectories[i].group for i in kept})),
        names.ROLLOUT_GROUPS_FAILED: float(sum(not any(group) for group in groups.values())),
        names.ROLLOUT_GROUPS_SOLVED: float(sum(all(group) for group in groups.values())),
        names.REWARD_MEAN: float(reward[valid].mean()) if valid else 0.0,
    }
    if valid and not success.all():
        metrics[names.REWARD_FAILURE_MEAN] = float(reward[valid][~success].mean())
    if valid and 0 < success.sum() < len(success):
        metrics[names.REWARD_AUROC] = auroc(reward[valid], success)
    for task in sorted({trajectories[i].task for i in valid}):
        outcomes = [trajectories[i].success for i in valid if trajectories[i].task == task]
        metrics[f"rollout/success/{task}"] = float(np.mean(outcomes))
    return metrics
