"""Removing runs: real run folders only, never one that is being written."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.files import replace_link, writing
from vlacoach.runs.finding import list_runs
from vlacoach.runs.folder import RunFolder


class Removal:
    """Runs that are about to be removed, locked so that nobody goes on with them in the meantime.

    Use it as a context manager: leaving it gives back the locks of what was not removed.

    Args:
        references: Runs, each by path, folder name, name, id, or ``"latest"``.
        root: Folder of all runs; nothing outside it is touched.

    Attributes:
        paths: The folders, each once, in the order given.

    Raises:
        RunError: One of them is no run, is not in the folder of all runs, or is in use. None is removed then.
    """

    def __init__(self, references: Sequence[str], root: Path) -> None:
        self.root = root
        folders = {folder.path: folder for folder in (_inside(reference, root) for reference in references)}
        self.paths = list(folders)
        with ExitStack() as locks:
            for folder in folders.values():
                _refuse_if_running_elsewhere(folder)
                folder.lock()
                locks.callback(folder.close)
            self._locks = locks.pop_all()

    def __enter__(self) -> Removal:
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    def remove(self) -> None:
        """Remove the folders, and point ``latest`` at the newest run that is left.

        Raises:
            RunError: A folder cannot be removed in full.
        """
        for path in self.paths:
            # Renamed first: whoever looks sees a whole run or none.
            going = path.with_name(f".{path.name}.removed")
            with writing(path):
                os.replace(path, going)
                shutil.rmtree(going)
        repair_latest(self.root)


def _inside(reference: str, root: Path) -> RunFolder:
    folder = RunFolder.open(reference, root)
    path = folder.path.resolve()
    if path.parent != root.resolve():
        raise RunError(
            f"{folder.path} is not a run in {str(root)!r}: it lies at {path}.",
            "Name the folder that it lies in by --runs-dir.",
        )
    return RunFolder(path)


def _refuse_if_running_elsewhere(folder: RunFolder) -> None:
    # Locks do not reach across machines on every shared disk; heartbeats do.
    host = folder.info().get("host")
    if host != socket.gethostname() and folder.status() in (names.STATUS_RUNNING, names.STATUS_PAUSED):
        raise RunError(f"Run {folder.path} is running on {host}.", "Wait for it, or stop it first.")


def repair_latest(root: Path) -> None:
    """Point ``latest`` at the newest run if it points nowhere; remove it if there is none.

    Raises:
        RunError: The link cannot be changed.
    """
    link = root / names.LATEST_LINK
    if not link.is_symlink() or (link / names.RUN_FILE).is_file():
        return
    left = list_runs(root)
    if left:
        replace_link(link, left[-1].name)
    else:
        with writing(link):
            link.unlink()
