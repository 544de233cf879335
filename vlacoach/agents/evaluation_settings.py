"""What decides the result of an evaluation, for the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlacoach.envs.perturbations import Perturbation
from vlacoach.policies.policy import VLAPolicy
from vlacoach.profiles import RenderProfile
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.resolve import flatten
from vlacoach.runs.results import PERTURBATIONS

_NO_MATTER = ("env.num_envs", "env.workers", "env.states", "evaluation.states", "evaluation.every", "evaluation.train")
"""Keys that an episode does not depend on; which states are used is recorded with the episodes."""


def used_settings(
    config: TrainConfig, policy: VLAPolicy, max_steps: int, perturbations: Sequence[Perturbation] = ()
) -> dict[str, Any]:
    """Every setting that decides an evaluation's episodes, by dotted key, with what was left open filled in.

    Args:
        config: The configuration.
        policy: The policy, which decides what the configuration leaves to it.
        max_steps: The suite's own step limit.
        perturbations: What every episode is perturbed by, all at once.
    """
    settings = {
        key: value
        for key, value in flatten(config).items()
        if key.startswith(("env.", "policy.", "evaluation.")) and not key.startswith(_NO_MATTER)
    }
    opened: dict[str, Any] = {
        "env.max_steps": config.env.max_steps or max_steps,
        "env.image_size": policy.image_size if config.env.image_size == "policy" else config.env.image_size,
        "env.render_profile": render_profile(config, policy),
        PERTURBATIONS: sorted(str(each) for each in perturbations),
        "env.cameras": list(policy.cameras if config.env.cameras == "policy" else config.env.cameras),
        "policy.chunk_size": policy.chunk_size,
        "policy.center_crop": policy.config.center_crop,
        "policy.image_processing": policy.config.image_processing,
    }
    return settings | opened


def render_profile(config: TrainConfig, policy: VLAPolicy) -> RenderProfile:
    """How pictures are drawn: as the configuration says, or as the policy learned on them."""
    return policy.config.render_profile if config.env.render_profile == "policy" else config.env.render_profile
