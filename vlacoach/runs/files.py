"""Small file operations that leave either the old contents or the new, never a mixture."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlacoach.errors import ConfigError, RunError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_failure(path: Path, error: OSError) -> RunError:
    """The error to raise when writing ``path`` failed, with a hint that fits the cause."""
    if error.errno in _FULL:
        hint = "The disk or the quota is full. Free some space, then go on with --resume."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "The folder is not writable. Check its owner, or choose another with --runs-dir."
    else:
        hint = "Check that the folder still exists and that its disk is healthy."
    return RunError(f"Cannot write {path}: {os.strerror(error.errno or 0)}.", hint)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a :class:`RunError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise write_failure(path, error) from error


def lock_file(path: Path) -> int:
    """Lock a file, made if missing, for this process and none of its children.

    Returns:
        Descriptor; closing it gives the lock back, and so does the end of the process.

    Raises:
        BlockingIOError: Another process has locked it.
        RunError: It cannot be made.
    """
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; ``os.write`` may stop in the middle, for instance when the disk fills up."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make renames within ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str, sync: bool = True) -> None:
    """Replace a file's contents by text, as :func:`replace_bytes` does."""
    replace_bytes(path, text.encode("utf-8"), sync)


def replace_bytes(path: Path, data: bytes, sync: bool = True) -> None:
    """Replace a file's contents in one step.

    Args:
        path: File to write; its folder must exist.
        data: New contents.
        sync: Whether to wait until the disk has them.

    Raises:
        RunError: It cannot be written; the old contents are then still there.
    """
    with writing(path):
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            try:
                os.fchmod(descriptor, 0o644)
                write_all(descriptor, data)
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        if sync:
            sync_folder(path.parent)


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link at ``target`` (relative to the link's folder) in one step.

    Raises:
        RunError: It cannot be written.
    """
    with writing(link):
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            temporary.unlink()
        temporary.symlink_to(target)
        os.replace(temporary, link)


def publish_folder(
    target: Path, fill: Callable[[Path], object], replaceable: Callable[[Path], bool], force: bool
) -> Path:
    """Fill a folder under another name, and rename it: it is there as a whole or not at all.

    Args:
        target: Where it is to be; its parents are made.
        fill: Writes into the folder that it is given.
        replaceable: Whether the folder that is there may be replaced, which holds something already.
        force: Replace it then; otherwise a folder with something in it is refused.

    Returns:
        ``target``.

    Raises:
        ConfigError: ``target`` may not be replaced.
        RunError: It cannot be written; ``target`` is then as before, as it is after any error of ``fill``.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(f"{target} is no folder.", "Choose another.")
    occupied = target.is_dir() and any(target.iterdir())
    if occupied and not force:
        raise ConfigError(f"{target} is not empty.", "Choose another folder, or say --force to replace it.")
    if occupied and not replaceable(target):
        raise ConfigError(f"{target} holds other things than such an export.", "Choose another folder.")
    working = target.with_name(f".{target.name}.{os.getpid()}")
    retired = target.with_name(f".{target.name}.old")
    try:
        with writing(target):
            working.mkdir(parents=True)
            fill(working)
            if target.is_dir():
                os.replace(target, retired)
            os.replace(working, target)
    except RunError:
        if retired.is_dir() and not target.exists():
            os.replace(retired, target)
        raise
    finally:
        shutil.rmtree(working, ignore_errors=True)
    shutil.rmtree(retired, ignore_errors=True)
    return target


def to_json(value: object) -> str:
    """One line of strict JSON; NaN and infinity are refused.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a record into JSON types, with NaN and infinity as null.

    Args:
        record: Text keys; values may be numbers (Python's or NumPy's), text, arrays, lists, mappings, paths.

    Returns:
        The record with JSON types only. Where numbers were not finite, ``"nonfinite"`` lists their keys.
    """
    nonfinite: list[str] = []
    clean = {str(key): _plain_value(value, str(key), nonfinite) for key, value in record.items()}
    if nonfinite:
        clean["nonfinite"] = nonfinite
    return clean


def _plain_value(value: Any, key: str, nonfinite: list[str]) -> Any:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors.
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain_value(item, f"{key}.{name}", nonfinite) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item, f"{key}.{index}", nonfinite) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite.append(key)
        return None
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    raise TypeError(f"{key!r} holds a {type(value).__name__}, which JSON cannot express")
