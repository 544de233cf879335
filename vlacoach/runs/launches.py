"""Whether this process was started again by torchrun, and which run it was busy with."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.folder import RunFolder


def launch_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """What all processes that one torchrun starts on this machine have in common; None without torchrun."""
    if "TORCHELASTIC_RESTART_COUNT" not in environment:
        return None
    return f"{socket.gethostname()}:{os.getppid()}:{environment.get('TORCHELASTIC_RUN_ID', '')}"


def restarted_run(root: Path, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The run that was being trained when torchrun started its processes again, to be gone on with.

    Args:
        root: Folder of all runs.
        environment: Of this process.

    Returns:
        None if this is the first start, or nothing had begun.
    """
    launch = launch_id(environment)
    if launch is None or int(environment["TORCHELASTIC_RESTART_COUNT"]) == 0 or not root.is_dir():
        return None
    for path in sorted(root.iterdir(), reverse=True):
        if path.is_symlink() or not (path / names.RUN_FILE).is_file():
            continue
        try:
            info = RunFolder(path).info()
        except RunError:
            continue  # Of somebody else's making, or broken: not the one that was written a moment ago.
        if info.get("launch") == launch and info.get("status") != names.STATUS_FINISHED:
            return path
    return None
