"""The folder of an evaluation: its settings, each episode as it ends, and the results; what is there is not redone.

Files: ``evaluation.json`` (settings), ``episodes.jsonl`` (one line an episode), ``results.json``, and ``videos``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlacoach.errors import ConfigError, RunError
from vlacoach.runs.constants import EPISODES_FILE, LOCK_FILE, RESULTS_FILE, SCHEMA_VERSION, VIDEOS_FOLDER
from vlacoach.runs.files import plain, replace_text, writing
from vlacoach.runs.jsonl import JsonlReader, JsonlWriter
from vlacoach.runs.results import Result, write_results

EVALUATION_FILE = "evaluation.json"

_SHOWN = 3


@dataclass(frozen=True)
class Played:
    """An episode that is over.

    Attributes:
        success: Whether it succeeded.
        length: Control steps.
    """

    success: bool
    length: int


class EvaluationFolder:
    """Keeps the episodes of one evaluation, locked for this process until :meth:`close`.

    Args:
        path: The folder; made if missing.
        settings: Everything that decides the episodes, as JSON types.
        fresh: Throw away what an earlier evaluation left there.

    Attributes:
        path: The folder.

    Raises:
        ConfigError: An evaluation with other settings is there, or something that is no evaluation.
        RunError: Another process writes to it, or it cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], fresh: bool = False) -> None:
        self.path = path
        self._seconds: dict[str, float] = {}
        wanted = json.loads(json.dumps(plain(settings)))
        _require_evaluation(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        try:
            if fresh:
                self._clear()
            file = path / EVALUATION_FILE
            if file.is_file():
                _require_same(path, _stored(file), wanted)
            else:
                document = {"schema_version": SCHEMA_VERSION, "settings": wanted}
                replace_text(file, json.dumps(document, indent=2) + "\n")
            self._played = self._read()
            self._writer = JsonlWriter(path / EPISODES_FILE)
        except BaseException:
            self._unlock()
            raise

    def _clear(self) -> None:
        with writing(self.path):
            for name in (EVALUATION_FILE, EPISODES_FILE, RESULTS_FILE):
                (self.path / name).unlink(missing_ok=True)
            if (self.path / VIDEOS_FOLDER).is_dir():
                shutil.rmtree(self.path / VIDEOS_FOLDER)

    def _read(self) -> dict[tuple[str, int, int], dict[str, Any]]:
        played: dict[tuple[str, int, int], dict[str, Any]] = {}
        file = self.path / EPISODES_FILE
        for line in JsonlReader(file).read():
            try:
                perturbation = str(line["perturbation"])
                played[perturbation, int(line["seed"]), int(line["number"])] = line
                self._seconds[perturbation] = max(self.seconds(perturbation), float(line["elapsed"]))
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(
                    f"{file} has a line that is no episode: {line}.", "Measure anew with --fresh."
                ) from error
        return played

    @property
    def count(self) -> int:
        """Episodes that an earlier call left there."""
        return len(self._played)

    def seconds(self, perturbation: str = "") -> float:
        """Time that earlier calls spent on the episodes of a perturbation that are there."""
        return self._seconds.get(perturbation, 0.0)

    def played(self, seed: int, number: int, task: int, init_state: int, perturbation: str = "") -> Played | None:
        """An episode that is there already, or None.

        Args:
            seed: Seed of the plan.
            number: Number in the plan.
            task: Its task.
            init_state: Its initial state.
            perturbation: What it is perturbed by, for folders that hold several plans; see :meth:`record`.

        Raises:
            RunError: The line is of another task or initial state.
        """
        line = self._played.get((perturbation, seed, number))
        if line is None:
            return None
        if (line.get("task"), line.get("init_state")) != (task, init_state):
            raise RunError(
                f"{self.path / EPISODES_FILE} has task {line.get('task')}, initial state {line.get('init_state')} as "
                f"episode {number}; it should be task {task}, initial state {init_state}.",
                "Measure anew with --fresh.",
            )
        return Played(bool(line["success"]), int(line["length"]))

    def record(self, seed: int, number: int, perturbation: str = "", **fields: Any) -> None:
        """Append an episode.

        Args:
            seed: Seed of the plan.
            number: Number in the plan.
            perturbation: What it was perturbed by, for example ``"camera:3,light:2"``; empty for nothing.
            **fields: task, init_state, instruction, success, length, and elapsed.

        Raises:
            RunError: It cannot be written.
        """
        self._writer.write({"seed": seed, "number": number, "perturbation": perturbation, **fields})

    def finish(self, result: Result) -> Path:
        """Write results.json; returns the file."""
        write_results(result, self.path / RESULTS_FILE)
        return self.path / RESULTS_FILE

    def close(self) -> None:
        """Close the files and give the lock back."""
        self._writer.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> EvaluationFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_evaluation(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file.", "Give --out a folder.")
    if (
        path.is_dir()
        and not (path / EVALUATION_FILE).is_file()
        and any(entry.name != LOCK_FILE for entry in path.iterdir())
    ):
        raise ConfigError(f"{path} holds other things than an evaluation.", "Give --out a folder of its own.")


def _locked(path: Path) -> int:
    with writing(path / LOCK_FILE):
        descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(f"Another evaluation writes to {path}.", "Wait for it, or give another --out.") from None
    return descriptor


def _stored(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file} cannot be read: {type(error).__name__} {error}.", "Measure anew with --fresh."
        ) from error


def _require_same(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    changed = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    if changed:
        listing = "; ".join(f"{key} was {stored.get(key)!r}, is {wanted.get(key)!r}" for key in changed[:_SHOWN])
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ConfigError(
            f"{path} holds an evaluation with other settings: {listing}{more}.",
            "Give another --out, or throw the episodes there away with --fresh.",
        )


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits, equal for equal settings."""
    return hashlib.sha256(json.dumps(plain(settings), sort_keys=True).encode()).hexdigest()[:8]


def fingerprint(folder: Path) -> str:
    """Twelve hexadecimal digits that change when a file of a folder is written again; nothing is read but names."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = file.stat()
        digest.update(f"{file.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
