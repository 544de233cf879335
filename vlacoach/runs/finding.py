"""Finding runs by path, name, id, or ``latest``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlacoach.errors import RunError
from vlacoach.runs.constants import LATEST_LINK, RUN_FILE


def _run_id(folder: str) -> str:
    return folder.rpartition("_")[2]


def _run_name(folder: str) -> str:
    # <date>_<time>_<name>_<id>, where the name may have underscores of its own.
    return folder.split("_", 2)[-1].rpartition("_")[0]


_MATCHES: tuple[Callable[[str, str], bool], ...] = (
    lambda folder, reference: folder == reference,
    lambda folder, reference: _run_id(folder) == reference,
    lambda folder, reference: _run_name(folder) == reference,
    lambda folder, reference: folder.startswith(reference) or _run_id(folder).startswith(reference),
)
"""Ways to refer to a run, the most exact first."""


def list_runs(root: str | Path = "runs") -> list[Path]:
    """Run folders under ``root``, oldest first; folders without a run.json are not runs."""
    root = Path(root)
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if not path.is_symlink() and (path / RUN_FILE).is_file()]
    return sorted(found, key=lambda path: path.name)


def find_run(reference: str, root: Path) -> Path:
    """Find the folder of a run.

    Args:
        reference: Path, folder name, id, unique beginning of either, name of one run, or ``"latest"``.
        root: Folder of all runs.

    Raises:
        RunError: Nothing fits, or several do; the message lists what exists.
    """
    runs = list_runs(root)
    if reference == LATEST_LINK:
        # A link that leads out of the folder was not made by a run.
        link = (root / LATEST_LINK).resolve()
        if (link / RUN_FILE).is_file() and link.parent == root.resolve():
            return link
        if runs:
            return runs[-1]
        raise RunError(f"There are no runs in {str(root)!r}.", "Start one with: vlacoach train")
    if Path(reference).is_dir():
        return Path(reference)
    for matches in _MATCHES:
        found = [path for path in runs if reference and matches(path.name, reference)]
        if len(found) == 1:
            return found[0]
        if found:
            raise RunError(f"{reference!r} could be any of: {', '.join(path.name for path in found)}.")
    newest = ", ".join(path.name for path in runs[-8:][::-1])
    raise RunError(f"No run {reference!r} in {str(root)!r}.", f"Runs: {newest}." if runs else "There are none yet.")
