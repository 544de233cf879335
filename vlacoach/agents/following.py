"""How processes that train together begin with the same run.

The leading rank sends its folder; the others work in a copy of it that they throw away.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from vlacoach.agents.ranks import Ranks, join_ranks, leave_ranks, ranks_expected
from vlacoach.agents.training import train
from vlacoach.errors import RankError
from vlacoach.runs import constants as names
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.reporting import NullReporter
from vlacoach.runs.results import TrainResult

_NOT_SENT = (names.VIDEOS_FOLDER, names.LOCK_FILE, names.LOG_FILE)
"""What no other rank has a use for; files that begin with a dot are left out too."""


def follow() -> TrainResult:
    """Train as a rank that does not lead, with the configuration and the checkpoint of the one that does.

    Returns:
        What was measured, which is the same on all ranks; its folder is gone.

    Raises:
        RankError: Another rank stopped, hangs, or cannot be reached.
    """
    ranks = join_ranks()
    try:
        with tempfile.TemporaryDirectory(prefix=f"vlacoach-rank-{ranks.rank}-") as scratch:
            ranks.enter("waiting for the run folder")
            folder, resume = receive(Path(scratch), ranks)
            config = folder.config()
            ranks.set_limit(config.guards.rank)
            with folder, folder.running():
                return train(config, folder, NullReporter(), resume, ranks)
    except BaseException as error:
        ranks.abandon(error)
        raise
    finally:
        leave_ranks()


@contextmanager
def leading(folder: RunFolder, resume: bool) -> Iterator[Ranks]:
    """Take the leading place, if several processes were started to train together, and send them the run.

    Args:
        folder: The run's, locked by this process.
        resume: Whether training is to go on from its last checkpoint.

    Raises:
        RankError: The others cannot be reached.
    """
    if ranks_expected() == 1:
        yield Ranks()
        return
    ranks = join_ranks(folder.config().guards.rank)
    try:
        ranks.enter("sending the run folder")
        hand_over(folder, resume, ranks)
        yield ranks
    except BaseException as error:
        ranks.abandon(error)
        raise
    finally:
        leave_ranks()


def hand_over(folder: RunFolder, resume: bool, ranks: Ranks) -> None:
    """Send the files of a run, of its checkpoints only the newest intact one."""
    keep: Path | None = None
    if resume and folder.checkpoints.entries():
        keep, _ = folder.checkpoints.newest_intact()
    files = {}
    for file in sorted(folder.path.rglob("*")):
        place = file.relative_to(folder.path)
        dropped = place.parts[0] in _NOT_SENT or any(part.startswith(".") for part in place.parts)
        of_checkpoint = place.parts[0] == names.CHECKPOINTS_FOLDER and (keep is None or not file.is_relative_to(keep))
        if file.is_file() and not file.is_symlink() and not dropped and not of_checkpoint:
            files[place.as_posix()] = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    about = json.dumps({"resume": resume}).encode()
    ranks.send(save_arrays({**files, "/": np.frombuffer(about, dtype=np.uint8)}))


def receive(root: Path, ranks: Ranks) -> tuple[RunFolder, bool]:
    """Write what :func:`hand_over` sent below a folder; returns it and whether training goes on from a checkpoint.

    Raises:
        RankError: It has a path that leads elsewhere.
    """
    files = load_arrays(ranks.send())
    about = json.loads(files.pop("/").tobytes())
    target = root / "run"
    for name, content in files.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise RankError(f"The leading rank sent a file {name!r}, which is outside of a run folder.")
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_bytes(content.tobytes())
    return RunFolder.resume(target), bool(about["resume"])
