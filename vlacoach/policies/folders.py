"""Files of a policy's folder: replaced as a whole or not at all, JSON that is there, tensors that fit or do not."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from vlacoach.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]


@contextmanager
def replaced_folder(target: Path, what: str) -> Iterator[Path]:
    """Give an empty folder to write to, and put it in the place of ``target`` once everything is written.

    Args:
        target: The destination; may exist.
        what: Named in the error, for example ``"policy"``.

    Yields:
        A folder beside ``target``. If the body or the exchange fails it is removed, and ``target`` is what it was.

    Raises:
        CheckpointError: Writing failed (disk full, no permission).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            fresh, aside = Path(scratch) / "new", Path(scratch) / "old"
            fresh.mkdir()
            yield fresh
            _exchange(target, fresh, aside)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The {what} could not be written to {target}: {error}.",
            hint="Check free disk space and permissions; what was there before is unchanged.",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a policy's folder.

    Raises:
        CheckpointError: The file is missing, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Is this a policy's folder?") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.", "Copy or download it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object.", "Copy or download it again.")
    return data


def differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """What keeps the tensors of ``found`` from being loaded in the place of those of ``expected``.

    Args:
        expected: Shapes of the model's tensors, by key.
        found: Shapes of the file's tensors, by key.

    Returns:
        A sentence for each missing, surplus, or differently shaped tensor, sorted; empty if nothing is wrong.
    """
    problems = [f"{key} is missing" for key in expected.keys() - found.keys()]
    problems += [f"{key} belongs to no part of the model" for key in found.keys() - expected.keys()]
    problems += [
        f"{key} has shape {tuple(found[key])}, expected {tuple(expected[key])}"
        for key in expected.keys() & found.keys()
        if tuple(found[key]) != tuple(expected[key])
    ]
    return sorted(problems)


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    """Shape of each tensor."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _exchange(target: Path, fresh: Path, aside: Path) -> None:
    if target.exists():
        os.rename(target, aside)
    try:
        os.rename(fresh, target)
    except OSError:
        if aside.exists():
            os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
