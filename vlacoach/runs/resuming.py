"""What a run that goes on must have in common with the run that was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlacoach.errors import ConfigError
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.constants import CONFIG_FILE
from vlacoach.runs.resolve import flatten

CHANGEABLE = (
    "grpo.updates",
    "grpo.minutes",
    "checkpoint.",
    "logging.",
    "guards.",
    "env.workers",
    "grpo.micro_batch",
    "grpo.feature_budget",
    "policy.gradient_checkpointing",
)
"""Keys (or beginnings of keys) that may differ when a run is resumed: they do not change its numbers."""


def changed_settings(
    before: TrainConfig, after: TrainConfig, origins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What differs, where that may differ.

    Args:
        before: Configuration of the run that was stopped.
        after: Configuration to go on with.
        origins: Where values of ``after`` came from, for the message.

    Returns:
        Dotted key to new value.

    Raises:
        ConfigError: Something differs that would make it another run; the message names every such key.
    """
    old, new = flatten(before), flatten(after)
    changed = {key: value for key, value in new.items() if value != old[key]}
    refused = [key for key in changed if not key.startswith(CHANGEABLE)]
    if refused:
        described = [f"{key} from {old[key]!r} to {new[key]!r}{_place(key, origins)}" for key in refused]
        raise ConfigError(
            f"A resumed run cannot change {', '.join(described)}.",
            f"It may change {', '.join(CHANGEABLE)}; start a new run for anything else.",
        )
    return changed


def require_same_config(checkpoint: Path, config: TrainConfig) -> None:
    """Refuse to go on from a checkpoint that was trained with other settings.

    Args:
        checkpoint: Its folder, which has the configuration that it was written with.
        config: Configuration to go on with.

    Raises:
        ConfigError: They differ in what decides the numbers, as when config.yaml was edited meanwhile; the message
            names the keys.
    """
    try:
        changed_settings(TrainConfig.load(checkpoint / CONFIG_FILE), config)
    except ConfigError as error:
        raise ConfigError(
            f"Checkpoint {checkpoint} was written with another configuration. {error.message}",
            f"Put the settings of {checkpoint / CONFIG_FILE} back, or start a new run.",
        ) from error


def _place(key: str, origins: Mapping[str, str] | None) -> str:
    return "" if origins is None else f" ({origins[key]})"
