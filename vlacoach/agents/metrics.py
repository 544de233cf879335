"""What is logged of an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlacoach.agents.sharing import Outcomes
from vlacoach.rewards.metrics import auroc
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


def add_ranks(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Statistics of a whole step from those of each rank's share; empty for a rank that had none."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            merged = max if name == "train/ratio_max" else float.__add__
            total[name] = merged(total[name], value) if name in total else value
    return total


def rollout_metrics(outcomes: Outcomes) -> dict[str, float]:
    """Success, length, and reward of the episodes of an update, and how many groups say something."""
    valid, reward = outcomes["valid"], outcomes["reward"][outcomes["valid"]]
    success, group, task = (outcomes[key][valid] for key in ("success", "group", "task"))
    played = len(success) > 0
    rates = np.array([success[group == number].mean() for number in np.unique(group)])
    metrics = {
        names.ROLLOUT_SUCCESS: float(success.mean()) if played else 0.0,
        names.ROLLOUT_EPISODES: float(len(success)),
        "rollout/invalid": float(len(valid) - len(success)),
        names.ROLLOUT_LENGTH: float(outcomes["length"][valid].mean()) if played else 0.0,
        names.ROLLOUT_ENV_STEPS: float(outcomes["length"].sum()),
        names.ROLLOUT_GROUPS: float(len(rates)),
        names.ROLLOUT_GROUPS_KEPT: float(len(np.unique(outcomes["group"][outcomes["kept"]]))),
        names.ROLLOUT_GROUPS_FAILED: float((rates == 0).sum()),
        names.ROLLOUT_GROUPS_SOLVED: float((rates == 1).sum()),
        names.REWARD_MEAN: float(reward.mean()) if played else 0.0,
    }
    if played and not success.all():
        metrics[names.REWARD_FAILURE_MEAN] = float(reward[~success].mean())
    if 0 < success.sum() < len(success):
        metrics[names.REWARD_AUROC] = auroc(reward, success)
    for number in np.unique(task):
        metrics[f"rollout/success/{number}"] = float(success[task == number].mean())
    return metrics


def episode_fields(outcomes: Outcomes, row: int) -> dict[str, Any]:
    """What is logged of an episode, whatever else is known of it."""
    fields: dict[str, Any] = {key: int(outcomes[key][row]) for key in ("task", "init_state", "group", "slot")}
    fields |= {key: bool(outcomes[key][row]) for key in ("success", "valid")}
    fields["length"] = int(outcomes["length"][row])
    fields["reward"] = round(float(outcomes["reward"][row]), 6)
    if np.isfinite(distance := outcomes["distance"][row]):
        fields["distance"] = float(distance)
    return fields
