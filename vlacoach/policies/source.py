"""Where a policy lies, and what its ``config.json`` makes of it; no weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
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

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_USE = "vlacoach.json"
"""Beside an adapter: how its base is used, where the base leaves that open."""

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class PolicySource:
    """A policy's folder.

    Attributes:
        name: What the user calls it.
        folder: Where its files are.
        revision: Commit of the Hub repository that they come from, or None.
        stored: Content of ``config.json``.
        adapter: Folder of the LoRA adapter that belongs on it, where an adapter was named and not its base; or None.
        options: How the base is to be used, where the adapter says so.
        unnorm_key: Data set whose statistics the adapter was trained with, where it says so.
    """

    name: str
    folder: Path
    revision: str | None
    stored: Mapping[str, Any]
    adapter: Path | None = None
    options: OpenVLAOptions | None = None
    unnorm_key: str | None = None

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
            config = read_config(self.stored, self.folder, self.name, self.options or options or OpenVLAOptions())
            if self.options is not None and options is not None and options.head not in ("auto", config.head):
                raise ConfigError(
                    f"The adapter {self.adapter} was trained with the head {config.head!r}, not {options.head!r}.",
                    "Leave the head to it.",
                )
            return config
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
        name_or_folder: One of :data:`BUILT_IN`, a folder, or a Hub id, ``organization/model``. Of an adapter, the
            base that it names is found.
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
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).exists():
        return _with_adapter(folder, find_base(folder, fetch=fetch, known=known))
    return PolicySource(name, folder, commit, read_json(folder / CONFIG))


def find_base(
    adapter: Path,
    *,
    fetch: Callable[[str, str | None], Snapshot] = download,
    known: Iterable[str] = BUILT_IN,
) -> PolicySource:
    """Find the policy that an adapter names as its base; see :func:`find_source`.

    Raises:
        CheckpointError: The adapter names none, or one that is not to be found.
    """
    stored = read_json(adapter / ADAPTER_CONFIG)
    base = stored.get("base_model_name_or_path")
    advice = "Load the base, and the adapter onto it: --policy BASE --set policy.adapter=FOLDER."
    if not isinstance(base, str) or (Path(base).is_dir() and Path(base).samefile(adapter)):
        raise CheckpointError(f"The adapter {adapter} does not say which policy it belongs on.", advice)
    try:
        return find_source(base, stored.get("revision"), fetch=fetch, known=known)
    except UnknownNameError as error:
        raise CheckpointError(f"The adapter {adapter} belongs on {base!r}, which is not here.", advice) from error


def _with_adapter(folder: Path, base: PolicySource) -> PolicySource:
    used = read_json(folder / ADAPTER_USE) if (folder / ADAPTER_USE).is_file() else {}
    options = None
    if base.is_openvla and "head" in used:
        fields = ("head", "num_images", "proprio", "center_crop")
        try:
            options = OpenVLAOptions(**{key: used[key] for key in fields}, tokens_only=True)
        except KeyError as error:
            raise CheckpointError(f"{folder / ADAPTER_USE} does not say {error}.", "Download it again.") from error
    key = used.get("unnorm_key")
    return replace(base, adapter=folder, options=options, unnorm_key=key if isinstance(key, str) else None)
