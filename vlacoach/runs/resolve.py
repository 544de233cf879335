"""From a file, the environment, ``--set`` and flags to one configuration, with the origin of each value.

Precedence, strongest first: a flag that was typed, an environment variable ``VLACOACH_SECTION__KEY``, ``--set
section.key=value``, a preset that a flag names, the file, the defaults. Every complaint names the place the value came
from, its key, the value, and for an unknown key the nearest spelling.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from vlacoach.errors import ConfigError
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.constants import DEFAULT_ORIGIN as DEFAULT_ORIGIN
from vlacoach.runs.yaml_io import parse_yaml, read_yaml

ENV_PREFIX = "VLACOACH_"


@dataclass(frozen=True)
class Flag:
    """A command-line option that stands for one key of the configuration.

    Attributes:
        option: The option as typed, for example ``"--updates"``.
        key: Dotted key it sets, for example ``"grpo.updates"``.
        value: Its value; None if the option was not typed.
    """

    option: str
    key: str
    value: object


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration and where each of its values came from.

    Attributes:
        config: The validated configuration.
        origins: Dotted key of every value to its origin, ``"default"`` for those that nobody set.
    """

    config: TrainConfig
    origins: dict[str, str]


class _Layers:
    """Nested values with the origin of each leaf; later layers win."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def set(self, key: str, value: object, origin: str) -> None:
        *parents, leaf = key.split(".")
        node = self.values
        for depth, name in enumerate(parents):
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                path = ".".join(parents[: depth + 1])
                raise ConfigError(f"{origin}: {key!r} cannot be set, because {path!r} is {child!r}.")
            node = child
        node[leaf] = value
        # A whole section that is replaced takes the origins of its parts with it.
        for stale in [known for known in self.origins if known.startswith(f"{key}.")]:
            del self.origins[stale]
        self.origins[key] = origin

    def merge(self, tree: Mapping[str, Any], origin: str, prefix: str = "") -> None:
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if key in _SECTIONS and value is None:
                continue  # A section whose lines are all commented out.
            if isinstance(value, Mapping) and (key in _SECTIONS or not value):
                if value:
                    self.merge(value, origin, f"{key}.")
                continue
            self.set(key, value, origin)

    def origin(self, key: str) -> str | None:
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return None


def _section_names() -> frozenset[str]:
    return frozenset(
        name
        for name, field in TrainConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    )


_SECTIONS = _section_names()


def config_keys() -> tuple[str, ...]:
    """Dotted name of every setting, in the order of the file."""
    keys: list[str] = []
    for name, field in TrainConfig.model_fields.items():
        if name in _SECTIONS and isinstance(field.annotation, type):
            section: type[BaseModel] = field.annotation
            keys += [f"{name}.{inner}" for inner in section.model_fields]
        else:
            keys.append(name)
    return tuple(keys)


def resolve_config(
    file: str | Path | None = None,
    sets: Sequence[str] = (),
    flags: Iterable[Flag] = (),
    environ: Mapping[str, str] | None = None,
    preset: Iterable[Flag] = (),
) -> ResolvedConfig:
    """Bring all sources together and validate the result.

    Args:
        file: YAML file; None for none.
        sets: Assignments ``"section.key=value"``; the value is read as YAML.
        flags: Command-line options; those whose value is None were not typed and count for nothing.
        environ: Environment to read ``VLACOACH_SECTION__KEY`` from; None is the process's own. Variables
            without a double underscore are read only if they name a top-level key, because other parts of the
            program have variables of their own.
        preset: What a flag sets that stands for several values; all that was set one by one wins over it.

    Returns:
        The configuration with the origin of each value.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value is not valid.
    """
    layers = _Layers()
    if file is not None:
        layers.merge(read_yaml(file), str(file))
    for value in preset:
        layers.set(value.key, value.value, value.option)
    for assignment in sets:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {assignment!r} has no value.", "Write --set section.key=value.")
        layers.set(key.strip(), parse_yaml(text, f"--set {key.strip()}"), f"--set {assignment}")
    for variable, text in sorted((os.environ if environ is None else environ).items()):
        variable_key = environment_key(variable)
        if variable_key is not None:
            layers.set(variable_key, parse_yaml(text, variable), f"environment {variable}")
    for flag in flags:
        if flag.value is not None:
            layers.set(flag.key, flag.value, flag.option)
    config = _validate(layers)
    return ResolvedConfig(config, {key: layers.origin(key) or DEFAULT_ORIGIN for key in config_keys()})


def environment_key(variable: str) -> str | None:
    """The dotted key that an environment variable sets, known or not; None for one that sets none."""
    if not variable.startswith(ENV_PREFIX):
        return None
    name = variable[len(ENV_PREFIX) :].lower()
    if "__" in name:
        return name.replace("__", ".")
    return name if name in TrainConfig.model_fields and name not in _SECTIONS else None


def _validate(layers: _Layers) -> TrainConfig:
    try:
        return TrainConfig.model_validate(layers.values)
    except ValidationError as error:
        problems = [_describe(key, problem, layers) for key, problem in _by_key(error).items()]
    messages = "\n".join(message for message, _ in problems)
    hints = dict.fromkeys(hint for _, hint in problems if hint)
    raise ConfigError(messages, " ".join(hints) or None)


def _by_key(error: ValidationError) -> dict[str, dict[str, Any]]:
    """Complaints by dotted key: of a setting that may be of several types, pydantic has one for each type."""
    problems: dict[str, dict[str, Any]] = {}
    for problem in error.errors():
        depth = 2 if problem["loc"][:1] and problem["loc"][0] in _SECTIONS else 1
        location = [part for at, part in enumerate(problem["loc"]) if at < depth or isinstance(part, int)]
        key = ".".join(map(str, location))
        if key in problems:
            problems[key]["msg"] += ", or " + problem["msg"].removeprefix("Input should be ")
        else:
            problems[key] = dict(problem)
    return problems


def _describe(key: str, problem: dict[str, Any], layers: _Layers) -> tuple[str, str | None]:
    origin = layers.origin(key)
    if origin is None:
        origins = dict.fromkeys(value for known, value in layers.origins.items() if known.startswith(key))
        origin = ", ".join(origins) or DEFAULT_ORIGIN
    value = problem["input"]
    if problem["type"] == "extra_forbidden":
        near = nearest_key(key)
        hint = f"Did you mean {near!r}?" if near else f"Keys are: {', '.join(config_keys())}."
        return f"{origin}: unknown key {key!r} (value {value!r}).", hint
    reason = str(problem["msg"]).removeprefix("Value error, ").replace("\n", " ").rstrip(".")
    if isinstance(value, BaseModel) or (isinstance(value, dict) and key in ("", *_SECTIONS)):
        return f"{origin}: {key + ': ' if key else ''}{reason}.", None
    return f"{origin}: {key} = {value!r} is not valid: {reason}.", None


def nearest_key(key: str) -> str | None:
    """The setting that an unknown key was probably meant to be, or None if nothing is near."""
    known = config_keys()
    near = difflib.get_close_matches(key, [*known, *_SECTIONS], n=1, cutoff=0.75)
    if near:
        return near[0]
    # The right name in the wrong section, or without one.
    leaves: dict[str, str] = {}
    for candidate in known:
        leaves.setdefault(candidate.rpartition(".")[2], candidate)
    near = difflib.get_close_matches(key.rpartition(".")[2], leaves, n=1, cutoff=0.75)
    return leaves[near[0]] if near else None


def config_hash(config: TrainConfig) -> str:
    """Twelve hexadecimal digits, equal for equal configurations; the run's name and its trackers do not count."""
    canonical = json.dumps(config.model_dump(mode="json", exclude={"name", "logging"}), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Dotted key to value (JSON types), for every setting."""
    tree = config.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for key in config_keys():
        section, _, leaf = key.rpartition(".")
        flat[key] = tree[section][leaf] if section else tree[leaf]
    return flat
