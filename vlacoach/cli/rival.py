"""What ``vlacoach eval --compare`` compares with, and how the two are played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vlacoach.errors import RunError

if TYPE_CHECKING:
    from vlacoach.agents.episode_videos import VideoChoice
    from vlacoach.agents.measuring import Measurement
    from vlacoach.runs.config import TrainConfig
    from vlacoach.runs.reporting import Reporter
    from vlacoach.runs.results import Result
    from vlacoach.runs.splits import Splits

COMPARED_FOLDER = "compared"
"""Within --out: the policy that was compared with."""

COMPARISON_FILE = "comparison.json"

_Found = TypeVar("_Found", bound="Result")


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

    A run may have a checkpoint behind an ``@``, as in ``latest@best`` and ``7f3a@20``; else its last one is taken.

    Raises:
        VlacoachError: It is a run that cannot be read, or has no such checkpoint.
    """
    from vlacoach.policies.source import BUILT_IN
    from vlacoach.runs.constants import LAST_LINK, RUN_FILE
    from vlacoach.runs.finding import find_run
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.splits import read_splits

    folder = Path(reference)
    is_policy = reference in BUILT_IN or (folder.is_dir() and not (folder / RUN_FILE).is_file())
    if not is_policy:
        name, _, chosen = reference.partition("@") if not folder.is_dir() else (reference, "", "")
        try:
            path = find_run(name, runs_dir)
        except RunError:
            is_policy = "/" in reference
            if not is_policy:
                raise
    if is_policy:
        policy = config.policy.model_copy(update={"path": reference, "adapter": None, "revision": None})
        return Rival(config.model_copy(update={"policy": policy}), reference)
    run = RunFolder.open(str(path))
    checkpoint = run.checkpoints.named(chosen or LAST_LINK)
    settings = config.model_copy(update={"policy": run.config().policy})
    return Rival(settings, run_label(run.path, chosen or LAST_LINK), checkpoint, read_splits(run))


def run_label(run: Path, checkpoint: str) -> str:
    """What a checkpoint of a run is called in results: its folder's name, and which checkpoint if not the last."""
    from vlacoach.runs.constants import LAST_LINK

    return run.name if checkpoint == LAST_LINK else f"{run.name}@{checkpoint}"


@dataclass(frozen=True)
class Place:
    """Where an evaluation is kept.

    Attributes:
        root: Folder of evaluations.
        out: Folder of this one; None is one in ``root`` that is named after its settings.
        video: Which episodes to keep as videos.
        fresh: Throw away what is there.
    """

    root: Path
    out: Path | None
    video: VideoChoice
    fresh: bool


def evaluate_with(rival: Rival | None, wanted: Measurement, place: Place, reporter: Reporter, by_axis: bool) -> Result:
    """Evaluate a policy, and if there is a rival, the rival too on the same episodes.

    Args:
        rival: The policy to compare with, or None.
        wanted: What to evaluate.
        place: Where to keep it.
        reporter: Shows progress.
        by_axis: Play each perturbation by itself, after plain episodes.

    Returns:
        The result, or the comparison.

    Raises:
        VlacoachError: One of them could not be evaluated; what was played is kept.
    """
    from vlacoach.agents.measuring import measure, measure_axes
    from vlacoach.runs.results import compare
    from vlacoach.runs.robustness import AxisComparison

    if by_axis:
        return _evaluate_with(rival, wanted, place, reporter, measure_axes, AxisComparison)
    return _evaluate_with(rival, wanted, place, reporter, measure, compare)


def _evaluate_with(
    rival: Rival | None,
    wanted: Measurement,
    place: Place,
    reporter: Reporter,
    play: Callable[..., tuple[_Found, Path]],
    pair: Callable[[_Found, _Found], Result],
) -> Result:
    from vlacoach.runs.results import write_results

    result, folder = play(wanted, place.root, place.out, reporter, place.video, place.fresh)
    if rival is None:
        return result
    other = replace(wanted, config=rival.config, checkpoint=rival.checkpoint, label=rival.label)
    beside = None if place.out is None else place.out / COMPARED_FOLDER
    before, _ = play(other, place.root, beside, reporter, place.video, place.fresh)
    comparison = pair(before, result)
    write_results(comparison, folder / COMPARISON_FILE)
    return comparison
