"""What ``vlacoach eval --compare`` compares with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlacoach.errors import RunError

if TYPE_CHECKING:
    from vlacoach.runs.config import TrainConfig
    from vlacoach.runs.splits import Splits


@dataclass(frozen=True)
class Rival:
    """The policy to compare with.

    Attributes:
        config: The evaluation's configuration, with this policy in it.
        label: What it is called: as it was given, or its run's folder.
        checkpoint: Checkpoint folder of its run, or None.
        splits: Manifest of its run, or None.
    """

    config: TrainConfig
    label: str
    checkpoint: Path | None = None
    splits: Splits | None = None


def rival_of(reference: str, runs_dir: Path, config: TrainConfig) -> Rival:
    """Find what ``--compare`` names: a policy that is built in, a folder, a run, or a Hub id, in this order.

    Raises:
        VlacoachError: It is a run that cannot be read.
    """
    from vlacoach.policies.source import BUILT_IN
    from vlacoach.runs.constants import LAST_LINK, RUN_FILE
    from vlacoach.runs.finding import find_run
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.splits import read_splits

    folder = Path(reference)
    is_policy = reference in BUILT_IN or (folder.is_dir() and not (folder / RUN_FILE).is_file())
    if not is_policy:
        try:
            path = find_run(reference, runs_dir)
        except RunError:
            is_policy = "/" in reference
            if not is_policy:
                raise
    if is_policy:
        policy = config.policy.model_copy(update={"path": reference, "adapter": None, "revision": None})
        return Rival(config.model_copy(update={"policy": policy}), reference)
    run = RunFolder.open(str(path))
    checkpoint = run.checkpoints.named(LAST_LINK)
    settings = config.model_copy(update={"policy": run.config().policy})
    return Rival(settings, run.path.name, checkpoint, read_splits(run))
