"""Where a run comes from: process, machine, packages, command line, settings."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlacoach.runs.config import TrainConfig

VERSIONED = ("vlacoach", "torch", "transformers", "peft", "gymnasium", "mujoco", "robosuite", "numpy")
"""Packages whose versions a run notes."""


def installed_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Version of each installed package, None for those that are missing; imports none of them."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def provenance(
    config: TrainConfig | None, origins: Mapping[str, str] | None, argv: Sequence[str] | None
) -> dict[str, Any]:
    """What run.json says of a new run beside its name, its status, and its times.

    Args:
        config: Its configuration, if it has one.
        origins: Where each value of the configuration came from; defaults are left out.
        argv: The command line; None is this process's.
    """
    from vlacoach.runs.resolve import DEFAULT_ORIGIN, config_hash

    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": installed_versions(VERSIONED),
        "argv": list(sys.argv if argv is None else argv),
        "seed": config.seed if config else None,
        "config_hash": config_hash(config) if config else None,
        "origins": {key: value for key, value in (origins or {}).items() if value != DEFAULT_ORIGIN},
    }
