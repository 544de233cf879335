"""Words and units of metrics, for titles and tables."""

from __future__ import annotations

from vlacoach.runs import constants as names
from vlacoach.runs.formatting import format_bytes, format_value

TITLES: dict[str, str] = {
    names.ROLLOUT_SUCCESS: "success of rollouts",
    names.EVAL_SUCCESS: "success, held-out states",
    names.EVAL_TRAIN_SUCCESS: "success, training states",
    names.ROLLOUT_LENGTH: "episode length (steps)",
    names.REWARD_MEAN: "reward",
    names.REWARD_FAILURE_MEAN: "reward of failures",
    names.REWARD_AUROC: "AUROC of the reward",
    names.TRAIN_LOSS: "loss",
    names.TRAIN_KL: "KL to the old policy (nats)",
    names.TRAIN_REFERENCE_KL: "KL to the reference (nats)",
    names.TRAIN_ENTROPY: "entropy (nats a token)",
    names.TRAIN_CLIP_FRACTION: "clip fraction",
    names.TRAIN_RATIO_FIRST: "first ratio",
    names.TRAIN_GRADIENT_NORM: "gradient norm",
    names.TRAIN_LEARNING_RATE: "learning rate",
    names.ROLLOUT_GROUPS_KEPT: "groups kept",
    names.ROLLOUT_GROUPS_FAILED: "groups that failed throughout",
    names.ROLLOUT_GROUPS_SOLVED: "groups that succeeded throughout",
    names.SYSTEM_RSS: "memory (GiB)",
    names.SYSTEM_CPU: "processor (% of a core)",
    names.SYSTEM_VRAM: "GPU memory (GiB)",
    names.SYSTEM_PROCESSES: "processes",
    names.SYSTEM_FREE_MEMORY: "free memory (GiB)",
    names.SYSTEM_FREE_DISK: "free disk (GiB)",
}

IN_BYTES = (names.SYSTEM_RSS, names.SYSTEM_VRAM, names.SYSTEM_FREE_MEMORY, names.SYSTEM_FREE_DISK)
"""Metrics counted in bytes; charts show them in GiB."""


def title(metric: str) -> str:
    """What a chart of a metric is called."""
    return TITLES.get(metric, metric)


def text(metric: str, value: float) -> str:
    """A value with its unit."""
    return format_bytes(value) if metric in IN_BYTES else format_value(value)
