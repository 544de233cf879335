"""A copy of a run folder that lies in a volume elsewhere, so that ``vlacoach watch`` and the rest can read it here."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from vlacoach.runs import constants as names
from vlacoach.runs.files import replace_link, writing

LOCAL_FILES = (names.LOCK_FILE, names.CONTROL_FILE, names.WATCHING_FILE)
"""What belongs to the machine that it is on."""

FILE = 1
"""``modal.types.FileEntryType.FILE``: neither a folder nor a link."""


class Entry(Protocol):
    """A file or folder in a volume, as ``modal.volume.FileEntry`` describes it."""

    @property
    def path(self) -> str:
        """Path in the volume."""

    @property
    def type(self) -> int:
        """Kind of entry."""

    @property
    def mtime(self) -> int:
        """Seconds since the epoch when it was changed last."""

    @property
    def size(self) -> int:
        """Bytes."""


class Volume(Protocol):
    """What is used of ``modal.Volume``."""

    def listdir(self, path: str, *, recursive: bool = False) -> Sequence[Entry]:
        """Entries of a folder."""

    def read_file(self, path: str) -> Iterable[bytes]:
        """Contents of a file, in pieces."""


def is_run_of(folder: str, name: str) -> bool:
    """Whether a folder is a run of this name."""
    return re.fullmatch(rf"\d{{8}}_\d{{6}}_{re.escape(name)}_[0-9a-f]{{4}}", folder) is not None


def folders_in(volume: Volume) -> list[str]:
    """Names of what lies at the top of a volume, sorted."""
    return sorted(PurePosixPath(entry.path).name for entry in volume.listdir("/"))


class RunMirror:
    """Copies one run from a volume, again and again; what has not changed is not read again.

    Files of JSON lines grow in place, as they do where they are written; all others are replaced in one step, and
    ``run.json`` last, so that a run that says it has finished has everything. Nothing is ever removed.

    Args:
        volume: Where the run is written.
        runs_dir: Folder of all runs here.
        name: Name of the run, for one that does not exist yet.
        folder: Name of its folder, if it is known.

    Attributes:
        path: The copy; None as long as there is no run.
    """

    def __init__(self, volume: Volume, runs_dir: Path, name: str, folder: str | None = None) -> None:
        self._volume = volume
        self._runs_dir = runs_dir
        self._name = name
        self._folder = folder
        self.path: Path | None = None

    def sync(self, last: bool = False) -> int:
        """Bring the copy up to date.

        Args:
            last: Whether the run has ended. Then checkpoints, which are large, are copied too, and every other file is
                read once more: times are whole seconds, in which a file may have changed twice and kept its size.

        Returns:
            How many files were copied.

        Raises:
            RunError: The copy cannot be written.
        """
        folder = self._folder = self._folder or self._find()
        if folder is None:
            return 0
        target = self._runs_dir / folder
        changed = 0
        for entry in sorted(self._volume.listdir(folder, recursive=True), key=_run_file_last):
            relative = PurePosixPath(entry.path.lstrip("/")).relative_to(folder)
            checkpoint = relative.parts[:1] == (names.CHECKPOINTS_FOLDER,)
            if entry.type == FILE and _wanted(relative) and (last or not checkpoint):
                changed += self._copy(entry, target / relative, anew=last and not checkpoint)
        if self.path is None and (target / names.RUN_FILE).is_file():
            self.path = target
            replace_link(self._runs_dir / names.LATEST_LINK, folder)
        return changed

    def _find(self) -> str | None:
        # The newest: an attempt that was killed before it began leaves a folder that the next one removes.
        return next((name for name in reversed(folders_in(self._volume)) if is_run_of(name, self._name)), None)

    def _copy(self, entry: Entry, target: Path, anew: bool) -> bool:
        if not anew and _is_as_listed(target, entry):
            return False
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            try:
                with os.fdopen(descriptor, "w+b") as file:
                    try:
                        file.writelines(self._volume.read_file(entry.path))
                    except FileNotFoundError:  # Replaced or removed since it was listed; the next look has it.
                        return False
                    grown = target.suffix == ".jsonl" and _append(file, target)
                if not grown:
                    os.chmod(temporary, 0o644)
                    os.replace(temporary, target)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            os.utime(target, (entry.mtime, entry.mtime))
        return True


def _is_as_listed(target: Path, entry: Entry) -> bool:
    try:
        status = target.stat()
    except FileNotFoundError:
        return False
    return (status.st_size, int(status.st_mtime)) == (entry.size, entry.mtime)


def _wanted(relative: PurePosixPath) -> bool:
    # A leading dot: still being written, under another name.
    return not any(part.startswith(".") for part in relative.parts) and relative.as_posix() not in LOCAL_FILES


def _run_file_last(entry: Entry) -> bool:
    return PurePosixPath(entry.path).name == names.RUN_FILE


def _append(new: IO[bytes], target: Path) -> bool:
    """Append what is new, for readers that remember how far they got; False if the old lines are not all there."""
    if not target.is_file():
        return False
    old = target.read_bytes()
    new.seek(0)
    if new.read(len(old)) != old:
        return False
    with target.open("ab") as file:
        file.write(new.read())
    return True
