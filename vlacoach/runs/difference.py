"""What two runs differ in, read from their folders alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.indices import format_indices
from vlacoach.runs.statistics import Interval, wilson_interval
from vlacoach.runs.yaml_io import read_settings

RESUMED_ORIGIN = "changed on resuming"


@dataclass(frozen=True)
class Setting:
    """A setting of one run.

    Attributes:
        value: Its value, as YAML reads it.
        origin: Where it came from, for example ``"--seed"`` or ``"default"``.
    """

    value: Any
    origin: str

    @property
    def text(self) -> str:
        """The value for people: text as it is, long lists of indices as ranges, anything else as JSON."""
        value = self.value
        if isinstance(value, list) and value and all(type(item) is int for item in value):
            return format_indices(value)
        return value if isinstance(value, str) else json.dumps(value, default=str)


@dataclass(frozen=True)
class Measurement:
    """One evaluation, as a line of metrics.jsonl has it.

    Attributes:
        step: Updates done before it.
        successes: Episodes that succeeded.
        episodes: Episodes in all; at least 1.
    """

    step: int
    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        """Success rate, in [0, 1]."""
        return self.successes / self.episodes

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of :attr:`rate`."""
        return wilson_interval(self.successes, self.episodes)


def settings(folder: RunFolder) -> dict[str, Setting]:
    """Every setting of a run with its origin, as its configuration file has it.

    The file is not held against today's settings: runs of other versions, with other keys, are to be compared too.

    Raises:
        RunError: The run has no configuration.
        ConfigError: Its configuration cannot be read.
    """
    file = folder.path / names.CONFIG_FILE
    if not file.is_file():
        raise RunError(f"Run {folder.path} has no {names.CONFIG_FILE}.")
    origins = dict(folder.info().get("origins", {}))
    for event in folder.events():
        if event.get("event") == "config":
            origins |= dict.fromkeys(event.get("changed", {}), RESUMED_ORIGIN)
    return {
        key: Setting(value, str(origins.get(key, names.DEFAULT_ORIGIN))) for key, value in read_settings(file).items()
    }


def different_settings(first: RunFolder, second: RunFolder) -> dict[str, tuple[Setting | None, Setting | None]]:
    """Settings whose values differ, in the order of the files; None where a run's version had no such setting.

    An origin alone is no difference.
    """
    ours, theirs = settings(first), settings(second)
    keys = dict.fromkeys([*ours, *theirs])
    pairs = {key: (ours.get(key), theirs.get(key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a is None or b is None or a.value != b.value}


def different_versions(first: RunFolder, second: RunFolder) -> dict[str, tuple[str | None, str | None]]:
    """Python, platform and packages whose versions differ; None where a package was missing."""
    ours, theirs = (_versions(folder.info()) for folder in (first, second))
    keys = dict.fromkeys([*ours, *theirs])
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def _versions(info: Mapping[str, Any]) -> dict[str, str | None]:
    return {"python": info.get("python"), "platform": info.get("platform"), **info.get("versions", {})}


def last_values(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The newest value of each metric.

    Args:
        records: Lines of metrics.jsonl.

    Returns:
        Metric to value, None if the newest was not finite; in the order in which metrics appeared.
    """
    values: dict[str, float | None] = {}
    for record in records:
        for key, value in record.items():
            if "/" in key and (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))):
                values[key] = value
    return values


def measurements(records: Sequence[Mapping[str, Any]], prefix: str = "eval") -> list[Measurement]:
    """Evaluations in the order in which they were made.

    Args:
        records: Lines of metrics.jsonl; those that are no whole evaluation are passed over.
        prefix: ``"eval"`` for held-out states, ``"eval_train"`` for training states.
    """
    found = []
    for record in records:
        counts = [record.get(key) for key in (names.STEP, f"{prefix}/successes", f"{prefix}/episodes")]
        if all(isinstance(count, (int, float)) and not isinstance(count, bool) for count in counts):
            step, successes, episodes = (int(count) for count in counts if count is not None)
            if episodes > 0 and 0 <= successes <= episodes:
                found.append(Measurement(step, successes, episodes))
    return found
