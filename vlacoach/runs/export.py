"""Taking things out of a run: its adapter, its metrics as CSV or as TensorBoard's event files."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlacoach.errors import CheckpointError, ConfigError
from vlacoach.runs import constants as names
from vlacoach.runs.files import publish_folder, replace_text
from vlacoach.runs.trackers import TensorBoardWriter, finite

Records = Sequence[Mapping[str, Any]]

_EVENT_FILES = "events.out.tfevents."
_POLICY_FILES = ("adapter_config.json", "config.json")
"""Of these, one is in every folder of an adapter or of a policy."""


def export_adapter(checkpoint: Path, target: Path, force: bool = False) -> Path:
    """Copy what a checkpoint has of the policy: the adapter, or all weights where all were trained.

    Args:
        checkpoint: A checkpoint's folder, already checked.
        target: Folder that is to hold the copy; its parents are made.
        force: Replace an adapter or a policy that is there.

    Returns:
        ``target``.

    Raises:
        CheckpointError: The checkpoint holds neither.
        ConfigError: ``target`` exists and may not be replaced.
        RunError: It cannot be written; ``target`` is then as before.
    """
    source = trained_folder(checkpoint)
    return publish_folder(target, lambda folder: copy_folder(source, folder), is_policy_folder, force)


def trained_folder(checkpoint: Path) -> Path:
    """Folder of a checkpoint's adapter, or of its policy where all weights were trained.

    Raises:
        CheckpointError: The checkpoint holds neither.
    """
    folders = (checkpoint / names.ADAPTER_FOLDER, checkpoint / names.POLICY_FOLDER)
    source = next((folder for folder in folders if folder.is_dir()), None)
    if source is None:
        raise CheckpointError(f"Checkpoint {checkpoint} holds no adapter and no policy.")
    return source


def is_policy_folder(folder: Path) -> bool:
    """Whether a folder is that of an adapter or of a policy."""
    return any((folder / name).is_file() for name in _POLICY_FILES)


def copy_folder(source: Path, target: Path) -> None:
    """Copy everything in a folder into another, which is empty."""
    # shutil.copytree would wrap the operating system's refusal, and its reason, in an error of its own.
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(path, copy)


def metrics_csv(records: Records) -> str:
    """Metrics as CSV text, one row a line of metrics.jsonl.

    Args:
        records: Lines of metrics.jsonl.

    Returns:
        Columns are ``step``, ``time``, and every other key in the order in which it appeared. A value that was not
        finite, like one that a line lacks, is an empty cell.
    """
    keys = dict.fromkeys([names.STEP, names.TIME, *(key for record in records for key in record)])
    keys.pop(names.NONFINITE, None)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(keys)
    table.writerows([_cell(record.get(key)) for key in keys] for record in records)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


def export_csv(records: Records, target: Path, force: bool = False) -> Path:
    """Write :func:`metrics_csv` to a file, whole or not at all.

    Raises:
        ConfigError: The file exists, and ``force`` is false.
        RunError: It cannot be written.
    """
    if target.exists() and not force:
        raise ConfigError(f"{target} exists.", "Say --force to replace it.")
    replace_text(target, metrics_csv(records))
    return target


def export_tensorboard(records: Records, target: Path, force: bool = False) -> Path:
    """Write metrics as event files, each value at the time of its line; what was not finite is left out.

    Args:
        records: Lines of metrics.jsonl.
        target: Folder that is to hold the event files; its parents are made.
        force: Replace event files that are there.

    Returns:
        ``target``.

    Raises:
        ConfigError: TensorBoard is not installed, or ``target`` exists and may not be replaced.
        RunError: It cannot be written; ``target`` is then as before.
    """

    def fill(folder: Path) -> None:
        writer = TensorBoardWriter(folder)
        for record in records:
            step = record.get(names.STEP)
            if isinstance(step, int):
                writer.log(step, finite(record), record.get(names.TIME))
        writer.close()

    return publish_folder(
        target, fill, lambda folder: all(path.name.startswith(_EVENT_FILES) for path in folder.iterdir()), force
    )
