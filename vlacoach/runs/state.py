"""Training state on disk: tensors as safetensors, everything else as JSON, nothing pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlacoach.errors import CheckpointError
from vlacoach.runs.constants import STATE_META_FILE, STATE_TENSORS_FILE


def save_state(folder: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write named tensors and JSON values.

    Args:
        folder: Where to; made if missing.
        tensors: Names to NumPy arrays or torch tensors (any shape and type; moved to the CPU).
        meta: JSON values. Tuples come back as lists and number keys as text; see :func:`save_tree` for more.

    Raises:
        CheckpointError: ``meta`` holds something JSON cannot express, or NaN or infinity.
        OSError: The disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        text = json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"Training state for {folder} cannot be written as JSON: {error}.") from error
    file = str(folder / STATE_TENSORS_FILE)
    if all(isinstance(value, (np.ndarray, np.generic)) for value in tensors.values()):
        from safetensors.numpy import save_file as save_numpy

        # np.ascontiguousarray would turn a scalar into a vector of one.
        save_numpy({name: np.asarray(value, order="C") for name, value in tensors.items()}, file)
    else:
        import torch
        from safetensors.torch import save_file as save_torch

        # Cloned, because safetensors refuses tensors that share memory.
        save_torch(
            {name: torch.as_tensor(value).detach().cpu().clone().contiguous() for name, value in tensors.items()},
            file,
        )
    (folder / STATE_META_FILE).write_text(text + "\n", encoding="utf-8")


def load_state(folder: Path, framework: Literal["torch", "numpy"] = "torch") -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`save_state` wrote.

    Args:
        folder: Where from.
        framework: Whether the tensors come as torch tensors (on the CPU) or NumPy arrays.

    Returns:
        The tensors and the JSON values.

    Raises:
        CheckpointError: A file is missing or corrupt; the message names it.
    """
    tensor_file, meta_file = folder / STATE_TENSORS_FILE, folder / STATE_META_FILE
    try:
        meta = json.loads(meta_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Checkpoint file {meta_file} is missing or corrupt: {error}.") from error
    try:
        if framework == "numpy":
            from safetensors.numpy import load_file as load_numpy

            return dict(load_numpy(str(tensor_file))), meta
        from safetensors.torch import load_file as load_torch

        return dict(load_torch(str(tensor_file))), meta
    except Exception as error:  # safetensors has errors of its own kind for each way a file can be broken.
        raise CheckpointError(f"Checkpoint file {tensor_file} is missing or corrupt: {error}.") from error


def save_tree(folder: Path, tree: Any) -> None:
    """Write a nested structure, such as the ``state_dict`` of an optimizer or a random state, exactly.

    Args:
        folder: Where to; made if missing.
        tree: Dicts (text or int keys), lists, tuples, None, booleans, ints of any size, floats (NaN and
            infinity too), text, NumPy arrays, torch tensors.

    Raises:
        CheckpointError: Something else is in it; the message says where.
        OSError: The disk refuses.
    """
    tensors: dict[str, Any] = {}
    encoded = _encode(tree, "state", tensors)
    save_state(folder, tensors, {"tree": encoded})


def load_tree(folder: Path) -> Any:
    """Read what :func:`save_tree` wrote: equal to what was saved, types included.

    Raises:
        CheckpointError: A file is missing or corrupt.
    """
    file = folder / STATE_META_FILE
    try:
        kinds = json.loads(file.read_text(encoding="utf-8"))["tree"]
        needs_torch = '"torch"' in json.dumps(kinds)
        tensors, meta = load_state(folder, "torch" if needs_torch else "numpy")
        return _decode(meta["tree"], tensors)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"Checkpoint file {file} is missing or corrupt: {error}.") from error


def _encode(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    """Leaves stay as they are; whatever JSON would change is wrapped as ``[kind, contents]``."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else ["float", repr(value)]
    if isinstance(value, dict):
        items = []
        for key, item in value.items():
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise CheckpointError(f"{path} has the key {key!r}; only text and integers can be saved.")
            items.append([key, _encode(item, f"{path}.{key}", tensors)])
        return ["dict", items]
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]]
    if isinstance(value, (np.ndarray, np.generic)):
        # Numbered, because the keys 1 and "1" of a dict give the same path.
        name = f"{len(tensors)}.{path}"
        tensors[name] = np.asarray(value)
        return ["numpy", name]
    if hasattr(value, "detach"):
        name = f"{len(tensors)}.{path}"
        tensors[name] = value
        return ["torch", name]
    raise CheckpointError(f"{path} is a {type(value).__name__}, which cannot be saved.")


def _decode(value: Any, tensors: Mapping[str, Any]) -> Any:
    if not isinstance(value, list):
        return value
    kind, contents = value
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in contents}
    if kind in ("list", "tuple"):
        items = [_decode(item, tensors) for item in contents]
        return tuple(items) if kind == "tuple" else items
    if kind == "float":
        return float(contents)
    if kind == "numpy":
        return np.asarray(tensors[contents])
    if kind == "torch":
        return tensors[contents]
    raise ValueError(f"unknown kind {kind!r}")
