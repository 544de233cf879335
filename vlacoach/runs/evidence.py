"""What a guard that stopped the training has kept: a folder for each time, with JSON and safetensors in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlacoach.errors import RunError
from vlacoach.runs.constants import EVIDENCE_FOLDER, STATE_META_FILE, STATE_TENSORS_FILE


@contextmanager
def new_evidence(run: Path, update: int, what: str) -> Iterator[tuple[Path, Path]]:
    """Give a folder to fill, which appears under its name when it is whole.

    Args:
        run: The run folder.
        update: Number of the update that did not come to its end, from 1.
        what: Kind of trouble.

    Yields:
        The folder to fill, and what it will be called.

    Raises:
        OSError: The disk refuses.
    """
    root = run / EVIDENCE_FOLDER
    name, number = f"{update:06d}_{what}", 1
    while (root / name).exists():  # A resumed run can come to grief in the same place again.
        number += 1
        name = f"{update:06d}_{what}_{number}"
    working = root / f".{name}.{os.getpid()}"
    try:
        working.mkdir(parents=True)
        yield working, root / name
        os.replace(working, root / name)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


def list_evidence(run: Path) -> list[Path]:
    """Folders of evidence in a run, oldest first."""
    root = run / EVIDENCE_FOLDER
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def read_evidence(folder: Path) -> dict[str, Any]:
    """What the JSON file of evidence says, with the paths of its files.

    Raises:
        RunError: It is missing, or does not hold what it should.
    """
    file = folder / STATE_META_FILE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"Evidence {file} cannot be read: {error}.") from error
    lists = [facts.get("episodes"), facts.get("parameters")] if isinstance(facts, dict) else [None]
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in lists):
        raise RunError(f"Evidence {file} does not list episodes and parameters; it was not written by vlacoach.")
    return {**facts, "path": str(folder), "tensor_file": str(folder / STATE_TENSORS_FILE)}
