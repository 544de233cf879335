"""Which initial states a run trains on and which it is measured on: the manifest of a run.

It is written once, before the first update, with its hash in run.json. Whoever evaluates the run takes the states from
it, and not from a configuration that somebody may have changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlacoach.errors import ConfigError, RunError
from vlacoach.runs.constants import SPLITS_FILE, SPLITS_HASH
from vlacoach.runs.files import replace_text
from vlacoach.runs.indices import format_indices

if TYPE_CHECKING:
    from vlacoach.runs.config import TrainConfig
    from vlacoach.runs.folder import RunFolder

HELD_OUT, TRAIN, ALL = "held-out", "train", "all"

_ADVICE = "Its figures would not say what they seem to; take the original file back, or train again."


@dataclass(frozen=True)
class Splits:
    """Initial states of each task.

    Attributes:
        suite: Name of the suite.
        train: Task to the states that training may use.
        evaluation: Task to the states that are held out; none is also in ``train``.
    """

    suite: str
    train: Mapping[int, tuple[int, ...]]
    evaluation: Mapping[int, tuple[int, ...]]

    def __post_init__(self) -> None:
        for task in self.train:
            if shared := sorted(set(self.train[task]) & set(self.evaluation.get(task, ()))):
                raise ConfigError(
                    f"Task {task} would be trained on the initial states {format_indices(shared)} of its evaluation.",
                    "Change env.states or evaluation.states.",
                )

    @classmethod
    def of_config(cls, config: TrainConfig, tasks: Iterable[int]) -> Splits:
        """The splits that a configuration asks for.

        Raises:
            ConfigError: A state is in both.
        """
        indices = tuple(tasks)
        return cls(
            config.env.suite,
            dict.fromkeys(indices, config.env.states),
            dict.fromkeys(indices, config.evaluation.states),
        )

    def states(self, split: str) -> dict[int, tuple[int, ...]]:
        """Task to the states of ``"held-out"``, ``"train"``, or ``"all"``, which is both."""
        if split == TRAIN:
            return dict(self.train)
        if split == HELD_OUT:
            return dict(self.evaluation)
        return {task: tuple(sorted({*self.train[task], *self.evaluation[task]})) for task in self.train}

    def trained_on(self, suite: str, states: Mapping[int, Iterable[int]]) -> int:
        """How many of some initial states (task to states) of a suite training may have used."""
        if suite != self.suite:
            return 0
        return sum(len(set(chosen) & set(self.train.get(task, ()))) for task, chosen in states.items())

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "suite": self.suite,
            "tasks": {
                str(task): {"train": list(self.train[task]), "evaluation": list(self.evaluation[task])}
                for task in sorted(self.train)
            },
        }

    @property
    def digest(self) -> str:
        """SHA-256 of its contents, in hexadecimal."""
        return _digest(self.to_json())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Splits:
        """Inverse of :meth:`to_json`."""
        tasks = {int(task): entry for task, entry in data["tasks"].items()}
        return cls(
            str(data["suite"]),
            {task: tuple(int(state) for state in entry["train"]) for task, entry in tasks.items()},
            {task: tuple(int(state) for state in entry["evaluation"]) for task, entry in tasks.items()},
        )


def _digest(data: Mapping[str, Any]) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_splits(folder: RunFolder, splits: Splits) -> Path:
    """Write the manifest of a new run, and its hash into run.json.

    Raises:
        RunError: It cannot be written.
    """
    file = folder.path / SPLITS_FILE
    replace_text(file, json.dumps(splits.to_json(), indent=2) + "\n")
    folder.update_info(**{SPLITS_HASH: splits.digest})
    return file


def read_splits(folder: RunFolder) -> Splits:
    """Read the manifest of a run.

    Raises:
        RunError: It is missing, broken, or not the one that the run was trained with.
    """
    file = folder.path / SPLITS_FILE
    expected = folder.info().get(SPLITS_HASH)
    if expected is None:
        raise RunError(
            f"Run {folder.path} does not say which initial states it was trained on.",
            "It ended before its first update, or is of an earlier version. Evaluate its policy with --policy.",
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        found = _digest(data)
        splits = Splits.from_json(data) if found == expected else None
    except FileNotFoundError:
        raise RunError(f"{file} is gone: nothing says which states the run was trained on.", _ADVICE) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{file} cannot be read: {type(error).__name__} {error}.", _ADVICE) from error
    if splits is None:
        raise RunError(
            f"{file} was changed after the run began: its hash is {found[:12]}, and run.json says "
            f"{str(expected)[:12]}.",
            _ADVICE,
        )
    return splits


def require_same_splits(folder: RunFolder, wanted: Splits) -> None:
    """Refuse to go on with a run on other states than those it began with.

    Raises:
        RunError: The manifest is missing or was changed.
        ConfigError: The configuration asks for other states.
    """
    begun = read_splits(folder)
    if begun != wanted:
        raise ConfigError(
            f"The configuration asks for other tasks or initial states than {folder.path / SPLITS_FILE}, which the "
            "run began with.",
            "A state that was trained on cannot be held out any more; take env.states, evaluation.states and "
            "env.tasks back, or start a new run.",
        )
