"""Tensors on disk: safetensors with a checksum, replaced in one step; never pickle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vlacoach.errors import CheckpointError


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """Replace a file by named tensors; without any, there is no file afterwards.

    Returns:
        The checksum that :func:`read_tensors` wants, or None if there are no tensors.

    Raises:
        OSError: The disk refuses; the old contents are then still there.
    """
    if not tensors:
        file.unlink(missing_ok=True)
        return None
    data = save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    replace_file(file, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(file: Path, checksum: str | None) -> dict[str, Tensor]:
    """Read what :func:`write_tensors` wrote; nothing is read if the checksum is None.

    Raises:
        CheckpointError: The file is missing or corrupt.
    """
    if checksum is None:
        return {}
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != checksum:
            raise CheckpointError(f"{file} is corrupt: its checksum is not the one recorded with it.")
        return load_tensors(data)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read {file}: {error}.") from error


def replace_file(file: Path, data: bytes) -> None:
    """Replace a file's contents in one step.

    Raises:
        OSError: The disk refuses; the old contents are then still there.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
