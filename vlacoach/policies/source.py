"""Where a policy lies, and what its ``config.json`` makes of it; no weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlacoach.errors import CheckpointError, ConfigError, UnknownNameError
from vlacoach.policies.configuration import VLAConfig
from vlacoach.policies.folders import read_json
from vlacoach.policies.hub import Snapshot, download, is_hub_id
from vlacoach.policies.openvla import CONFIG, MODEL_TYPE, OpenVLAOptions, read_config

BUILT_IN = ("tiny",)
"""Policies that come with the package."""

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class PolicySource:
    """A policy's folder.

    Attributes:
        name: What the user calls it.
        folder: Where its files are.
        revision: Commit of the Hub repository that they come from, or None.
        stored: Content of ``config.json``.
    """

    name: str
    folder: Path
    revision: str | None
    stored: Mapping[str, Any]

    @property
    def is_openvla(self) -> bool:
        """Whether the folder is of OpenVLA's published form."""
        return self.stored.get("model_type") == MODEL_TYPE

    def config(self, options: OpenVLAOptions | None = None) -> VLAConfig:
        """The policy's configuration.

        Args:
            options: How a folder of OpenVLA's is to be used; None is the default.

        Raises:
            CheckpointError: ``config.json`` or a file that belongs to it is malformed.
            ConfigError: Options for a policy that says itself how it is to be used, otherwise.
        """
        if self.is_openvla:
            return read_config(self.stored, self.folder, self.name, options or OpenVLAOptions())
        path = self.folder / CONFIG
        kind = self.stored.get("model_type", self.stored.get("type"))
        if kind is not None:
            raise CheckpointError(
                f"{path} is that of a model of type {str(kind)!r}.",
                hint="Policies of vlacoach's own form and OpenVLA's (model_type openvla) can be loaded.",
            )
        try:
            config = VLAConfig.model_validate(self.stored)
        except ValidationError as error:
            raise CheckpointError(
                f"{path} is not a policy's configuration: {error}", hint="Copy or download the folder again."
            ) from error
        if options is not None and not options.agrees_with(config):
            raise ConfigError(
                f"Policy {self.name!r} says itself how it is to be used: it is a {config.head!r} policy.",
                "Leave head, images, proprioception and center crop to it.",
            )
        return config


def find_source(
    name_or_folder: str | Path,
    revision: str | None = None,
    *,
    fetch: Callable[[str, str | None], Snapshot] = download,
    known: Iterable[str] = BUILT_IN,
) -> PolicySource:
    """Find a policy's folder, and read its ``config.json``.

    Args:
        name_or_folder: One of :data:`BUILT_IN`, a folder, or a Hub id, ``organization/model``.
        revision: Branch, tag or commit of a Hub id.
        fetch: Finds a Hub id's files.
        known: Names that the error for an unknown one lists.

    Raises:
        UnknownNameError: Neither a built-in policy, nor a folder, nor the form of a Hub id.
        CheckpointError: There is no ``config.json``, it is no JSON object, or the Hub has no such model or cannot be
            reached.
    """
    folder, name = Path(name_or_folder), str(name_or_folder)
    commit = None
    if name in BUILT_IN:
        folder = _ASSETS / name
    elif not folder.is_dir():
        if not is_hub_id(name):
            raise UnknownNameError("policy (or folder, or Hub id)", name, known)
        snapshot = fetch(name, revision)
        folder, commit = snapshot.folder, snapshot.revision
    return PolicySource(name, folder, commit, read_json(folder / CONFIG))
