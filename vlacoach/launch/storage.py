"""A place for run folders that every machine of a cluster reaches: a shared disk, or a bucket."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow
from fsspec.core import url_to_fs
from pyarrow import fs as filesystems

from vlacoach.errors import ConfigError
from vlacoach.launch.mirror import FILE, LOCAL_FILES
from vlacoach.runs import constants as names
from vlacoach.runs.checkpoints import CheckpointStore

BLOCK = 1 << 20
"""Bytes that are copied at once."""


@dataclass(frozen=True)
class StoredFile:
    """A file or folder; see :class:`~vlacoach.launch.mirror.Entry`.

    Attributes:
        path: Relative to the storage.
        type: ``FILE``, or 0.
        mtime: Seconds since the epoch when it was stored.
        size: Bytes.
    """

    path: str
    type: int
    mtime: int
    size: int


class Storage:
    """Run folders at a URI. :class:`~vlacoach.launch.mirror.RunMirror` copies them out of it, :meth:`push` into it.

    Args:
        uri: A path, a URI that Arrow knows (``s3``, ``gs``, ``hdfs``), or one that fsspec knows.
        without: Names at the top of a run folder that are not listed.

    Raises:
        ConfigError: There is no such kind of storage, or what it needs is not installed.
    """

    def __init__(self, uri: str, without: Collection[str] = ()) -> None:
        self.uri = uri
        self.filesystem, self.root = _open(uri)
        self._without = frozenset(without)
        self._pushed: dict[str, tuple[int, int]] = {}

    def listdir(self, path: str, *, recursive: bool = False) -> Sequence[StoredFile]:
        """Entries of a folder, relative to the storage; none if it is missing."""
        base = self._place(path.strip("/"))
        selector = filesystems.FileSelector(base, allow_not_found=True, recursive=recursive)
        found = []
        for info in self.filesystem.get_file_info(selector):
            relative = PurePosixPath(info.path).relative_to(self.root)
            if self._without.isdisjoint(relative.parts[1:2]):
                kind = FILE if info.type == filesystems.FileType.File else 0
                found.append(StoredFile(relative.as_posix(), kind, int((info.mtime_ns or 0) / 1e9), info.size or 0))
        return found

    def read_file(self, path: str) -> Iterator[bytes]:
        """Contents of a file, in pieces."""
        with self.filesystem.open_input_stream(self._place(path)) as stream:
            while block := stream.read(BLOCK):
                yield block

    def push(self, run: Path) -> int:
        """Store what has changed of a run folder since the last time; checkpoints that it has no more are removed.

        A checkpoint arrives after the lines of its update and with its manifest last, so that what is there at any
        moment can be gone on with. Links and videos of worlds that are being watched stay behind.

        Args:
            run: The folder.

        Returns:
            How many files were stored.

        Raises:
            OSError: The storage cannot be written.
        """
        # Looked for before any line is read: a checkpoint must not arrive without the lines that precede it.
        checkpoints = CheckpointStore(run / names.CHECKPOINTS_FOLDER).entries()
        files = [file for file in _files(run) if _wanted(file.relative_to(run))]
        for entry in checkpoints:
            files += sorted(_files(entry), key=lambda file: file.name == names.MANIFEST_FILE)
        files.append(run / names.RUN_FILE)
        stored = sum(self._store(file, f"{run.name}/{file.relative_to(run).as_posix()}") for file in files)
        self._prune(run.name, {entry.name for entry in checkpoints})
        return stored

    def newest_checkpoint(self, folder: str) -> int:
        """Update of a stored run's newest checkpoint; -1 if there is none."""
        found = (PurePosixPath(entry.path).name for entry in self.listdir(f"{folder}/{names.CHECKPOINTS_FOLDER}"))
        return max((int(name) for name in found if name.isdigit()), default=-1)

    def remove(self, folder: str) -> None:
        """Remove a folder, if it is there."""
        if self.filesystem.get_file_info(self._place(folder)).type == filesystems.FileType.Directory:
            self.filesystem.delete_dir(self._place(folder))

    def _place(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _store(self, file: Path, path: str) -> bool:
        try:
            status = file.stat()
            seen = (status.st_size, status.st_mtime_ns)
            if self._pushed.get(path) == seen:
                return False
            with file.open("rb") as source:
                self._write(self._place(path), iter(lambda: source.read(BLOCK), b""))
        except FileNotFoundError:
            if file.exists():
                raise
            return False  # A checkpoint that was pruned meanwhile, or a file that is being replaced.
        self._pushed[path] = seen
        return True

    def _write(self, target: str, blocks: Iterable[bytes]) -> None:
        folder, _, name = target.rpartition("/")
        self.filesystem.create_dir(folder, recursive=True)
        # On a disk a file is there while it is written; in a bucket it is there when it is whole.
        on_disk = isinstance(self.filesystem, filesystems.LocalFileSystem)
        working = f"{folder}/.{name}.part" if on_disk else target
        with self.filesystem.open_output_stream(working) as stream:
            for block in blocks:
                stream.write(block)
        if on_disk:
            self.filesystem.move(working, target)

    def _prune(self, folder: str, kept: Collection[str]) -> None:
        place = f"{folder}/{names.CHECKPOINTS_FOLDER}"
        stored = {PurePosixPath(entry.path).name for entry in self.listdir(place)}
        for name in stored - set(kept):
            self.remove(f"{place}/{name}")


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    ]


def _wanted(relative: Path) -> bool:
    return relative.parts[0] != names.CHECKPOINTS_FOLDER and relative.as_posix() not in (names.RUN_FILE, *LOCAL_FILES)


def _open(uri: str) -> tuple[filesystems.FileSystem, str]:
    if "://" not in uri:
        return filesystems.LocalFileSystem(), Path(uri).expanduser().absolute().as_posix()
    try:
        filesystem, path = filesystems.FileSystem.from_uri(uri)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
        try:
            other, path = url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"--storage {uri} cannot be used: {error}") from error
        filesystem = filesystems.PyFileSystem(filesystems.FSSpecHandler(other))
    except OSError as error:
        raise ConfigError(f"--storage {uri} cannot be reached: {error}") from error
    return filesystem, path.rstrip("/")
