"""Checkpoint folders that are either whole or not there.

A checkpoint is written under another name, synced to the disk, renamed, and only then becomes ``last``. Each
has a manifest with the size and SHA-256 of its files, and a checksum of its own, so that damage is found before
anything is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlacoach.errors import CheckpointError
from vlacoach.runs.constants import BEST_LINK, LAST_LINK, MANIFEST_FILE
from vlacoach.runs.files import replace_link, sync_folder, write_failure, writing

_WORKING_PREFIX = "."
_NAME = "{:06d}"


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        folder: Where they are; made when the first is saved.
        keep: How many of the newest are kept, beside the best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
        """Write a checkpoint.

        Args:
            step: Updates done; names the checkpoint. One of the same step is replaced.
            write: Is given an empty folder and fills it.
            score: What ``best`` is judged by, higher is better; None does not compete.

        Returns:
            The checkpoint's folder.

        Raises:
            RunError: It cannot be written, for instance because the disk is full. What was written of it is
                removed; the checkpoints before it are intact.
        """
        target = self.folder / _NAME.format(step)
        working = self.folder / f"{_WORKING_PREFIX}{target.name}.{os.getpid()}"
        try:
            self._make()
            self.recover()
            working.mkdir()
            write(working)
            _write_manifest(working, step, score)
            _sync_tree(working)
            self._publish(working, target)
        except OSError as error:
            shutil.rmtree(working, ignore_errors=True)
            raise write_failure(target, error) from error
        except BaseException as error:
            shutil.rmtree(working, ignore_errors=True)
            if _ran_out(error):
                # Libraries such as safetensors wrap the operating system's refusal in errors of their own.
                raise write_failure(target, OSError(_ran_out(error), "")) from error
            raise
        replace_link(self.folder / LAST_LINK, target.name)
        self._choose_best()
        with writing(self.folder):
            sync_folder(self.folder)  # Before the old ones go: a link must not outlive what it points at.
        self._prune()
        return target

    def _make(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir()  # Without parents: a run folder that was deleted meanwhile must not come back half.
            sync_folder(self.folder.parent)

    def _publish(self, working: Path, target: Path) -> None:
        retired = target.with_name(f"{_WORKING_PREFIX}{target.name}.old")
        if target.exists():
            os.replace(target, retired)
        try:
            os.replace(working, target)
        except BaseException:
            if retired.exists():
                os.replace(retired, target)
            raise
        sync_folder(self.folder)
        shutil.rmtree(retired, ignore_errors=True)

    def recover(self) -> None:
        """Remove what killed writers left, and bring back a checkpoint that was being replaced.

        Only for the process that has locked the run.

        Raises:
            OSError: The folder is not writable.
        """
        for leftover in self.folder.glob(f"{_WORKING_PREFIX}*"):
            original = self.folder / leftover.name.split(".")[1]
            if leftover.name.endswith(".old") and not original.exists():
                os.replace(leftover, original)
            elif leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def _choose_best(self) -> None:
        scores = {path: score for path in self.entries() if (score := _score(path)) is not None}
        if scores:
            # Of equals the newest: it has seen more.
            best = max(scores, key=lambda path: (scores[path], path.name))
            replace_link(self.folder / BEST_LINK, best.name)

    def relink(self) -> None:
        """Point ``last`` and ``best`` at what is there, as after a copy from where there are no links.

        Raises:
            RunError: The folder is not writable.
        """
        if paths := self.entries():
            replace_link(self.folder / LAST_LINK, paths[-1].name)
            self._choose_best()

    def _prune(self) -> None:
        kept = {path.name for path in self.entries()[-self.keep :]}
        for link in (LAST_LINK, BEST_LINK):
            if (self.folder / link).is_symlink():
                kept.add(os.readlink(self.folder / link))
        for path in self.entries():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def entries(self) -> list[Path]:
        """Checkpoint folders, oldest first; not checked."""
        if not self.folder.is_dir():
            return []
        found = (path for path in self.folder.iterdir() if re.fullmatch(r"[0-9]+", path.name))
        return sorted(path for path in found if path.is_dir() and not path.is_symlink())

    def last(self) -> Path:
        """The newest checkpoint, checked.

        Raises:
            CheckpointError: There is none, or it is damaged; the hint names the newest intact one.
        """
        paths = self.entries()
        if not paths:
            raise CheckpointError(f"There is no checkpoint in {self.folder}.")
        try:
            verify_checkpoint(paths[-1])
        except CheckpointError as error:
            intact = next((path for path in reversed(paths[:-1]) if _is_intact(path)), None)
            hint = f"The checkpoint {intact} is intact." if intact else "No earlier checkpoint is intact."
            raise CheckpointError(error.message, hint) from error
        return paths[-1]

    def newest_intact(self) -> tuple[Path, list[str]]:
        """The newest checkpoint that is intact.

        Returns:
            Its folder, and what is wrong with each newer one (a caller must say so).

        Raises:
            CheckpointError: None is intact.
        """
        problems: list[str] = []
        for path in reversed(self.entries()):
            try:
                verify_checkpoint(path)
            except CheckpointError as error:
                problems.append(error.message)
                continue
            return path, problems
        raise CheckpointError(f"There is no intact checkpoint in {self.folder}.", " ".join(problems) or None)

    def set_aside(self, step: int) -> None:
        """Rename checkpoints after an update to ``<step>.damaged``: out of the way of those that will be written.

        Args:
            step: The update that training goes on after.

        Raises:
            RunError: The folder is not writable.
        """
        with writing(self.folder):
            for path in self.entries():
                if int(path.name) > step:
                    aside = path.with_name(f"{path.name}.damaged")
                    shutil.rmtree(aside, ignore_errors=True)
                    os.replace(path, aside)

    def best(self) -> Path | None:
        """The checkpoint with the highest score, or None if none has a score."""
        link = self.folder / BEST_LINK
        if not link.is_symlink():
            return None
        # Only the name counts: a link that somebody bent must not lead out of the folder.
        name = os.readlink(link)
        return next((path for path in self.entries() if path.name == name), None)

    def named(self, name: str) -> Path:
        """A checkpoint as people name it, checked.

        Args:
            name: ``"last"``, ``"best"``, or a step such as ``"20"`` or ``"000020"``.

        Raises:
            CheckpointError: There is none of this name (the hint lists those there are), or it is damaged.
        """
        if name == LAST_LINK:
            return self.last()
        steps = {str(int(path.name)): path for path in self.entries()}
        found = self.best() if name == BEST_LINK else steps.get(name.lstrip("0") or "0")
        if found is None:
            raise CheckpointError(
                f"There is no checkpoint {name!r} in {self.folder}.", f"There are: last, {', '.join(steps) or 'none'}."
            )
        verify_checkpoint(found)
        return found


def checkpoint_step(path: Path) -> int:
    """Updates that had been done when a checkpoint was written."""
    return int(_manifest(path)["step"])


def verify_checkpoint(path: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: A file is missing, of another size, or of other contents; the message names it.
    """
    for name, expected in _manifest(path)["files"].items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"Checkpoint file {file} is a link out of its checkpoint.")
        if not file.is_file():
            raise CheckpointError(f"Checkpoint file {file} is missing.")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"Checkpoint file {file} has {size} bytes instead of {expected['bytes']}.")
        if _digest(file) != expected["sha256"]:
            raise CheckpointError(f"Checkpoint file {file} is corrupt: its checksum is wrong.")


def _is_intact(path: Path) -> bool:
    with suppress(CheckpointError):
        verify_checkpoint(path)
        return True
    return False


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_FILE
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest.pop("checksum", None) != _checksum(manifest):
            raise ValueError("its checksum is wrong")
        _check_types(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"Checkpoint file {file} is missing or corrupt: {error}.") from error
    if path.name != _NAME.format(manifest["step"]):
        raise CheckpointError(f"Checkpoint file {file} is of update {manifest['step']}, its folder is {path.name}.")
    return dict(manifest)


def _check_types(manifest: dict[str, Any]) -> None:
    score = manifest["score"]
    if type(manifest["step"]) is not int or not (score is None or type(score) in (int, float)):
        raise TypeError("step or score is no number")
    for name, expected in manifest["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} leaves the checkpoint")
        if type(expected["bytes"]) is not int or not isinstance(expected["sha256"], str):
            raise TypeError(f"size or checksum of {name!r} is of the wrong type")


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _score(path: Path) -> float | None:
    with suppress(CheckpointError):
        score = _manifest(path).get("score")
        return float(score) if score is not None else None
    return None


def _write_manifest(folder: Path, step: int, score: float | None) -> None:
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _digest(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    score = score if score is not None and math.isfinite(score) else None
    manifest: dict[str, Any] = {"step": step, "score": score, "files": files}
    manifest["checksum"] = _checksum(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _ran_out(error: BaseException) -> int:
    """The errno hidden in the text of a wrapped error if the disk or a quota was full, else 0."""
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if os.strerror(number) in text or f"os error {number})" in text:
            return number
    return 0
