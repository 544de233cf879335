"""``vlacoach runs export rollouts``."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlacoach.cli.console import narration, show, show_json, verbosity
from vlacoach.cli.options import (
    DEFAULT_RUNS_DIR,
    OUTPUT,
    Checkpoint,
    Force,
    Json,
    PictureKind,
    Pictures,
    RunReference,
    RunsDir,
)
from vlacoach.errors import ConfigError

if TYPE_CHECKING:
    from vlacoach.data.hdf5 import Demonstration


class LayoutName(str, Enum):
    """Layouts of episodes on disk."""

    LEROBOT = "lerobot"
    HDF5 = "hdf5"


class Split(str, Enum):
    """Initial states of a run."""

    HELD_OUT = "held-out"
    TRAIN = "train"


def rollouts_command(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the episodes go.", rich_help_panel=OUTPUT)
    ],
    run: RunReference = "latest",
    layout: Annotated[
        LayoutName, typer.Option("--to", help="A LeRobot data set (v3.0), or LIBERO's HDF5 files, one a task.")
    ] = LayoutName.LEROBOT,
    checkpoint: Checkpoint = "last",
    tasks: Annotated[str | None, typer.Option("--tasks", help="These tasks of the run only, such as 1,4.")] = None,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Episodes of each task.")] = 10,
    split: Annotated[Split, typer.Option("--split", help="Initial states, used in turn.")] = Split.TRAIN,
    successes: Annotated[bool, typer.Option("--successes", help="Leave out episodes that failed.")] = False,
    pictures: Pictures = PictureKind.VIDEO,
    force: Force = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Play episodes with a run's policy, and save every control step of them as demonstrations are saved.

    Training itself sees one picture a chunk of actions and keeps no more. These episodes are played anew, as
    `vlacoach eval` plays them: same settings, same seed.

    For example:

      vlacoach runs export rollouts latest --checkpoint best --episodes 20 --out rollouts

      vlacoach runs export rollouts 7f3a --to hdf5 --successes --out demos-of-7f3a
    """  # fmt: skip
    from vlacoach.cli.progress import reporting
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.indices import parse_indices
    from vlacoach.runs.splits import read_splits

    folder = RunFolder.open(run, runs_dir)
    weights = folder.checkpoints.named(checkpoint)
    config = folder.config()
    states = read_splits(folder).states(split.value)
    wanted = sorted(states) if tasks is None else parse_indices(tasks)
    if unknown := [task for task in wanted if task not in states]:
        raise ConfigError(f"The run was not trained on the tasks {unknown}.", f"Its tasks: {sorted(states)}.")
    from vlacoach.agents.episodes import play_episodes
    from vlacoach.agents.evaluation import evaluation_plan, load_trained
    from vlacoach.agents.evaluation_settings import render_profile
    from vlacoach.data.convert import write_hdf5
    from vlacoach.data.lerobot_writer import require_packages, write_lerobot

    if layout is LayoutName.LEROBOT:
        require_packages(pictures.value)
    plan = evaluation_plan(wanted, states, episodes)
    results: list[bool] = []
    with reporting(narration(), verbosity(context).quiet) as reporter:
        reporter.stage("load")
        policy = load_trained(config, weights)
        reporter.stage("play", total=len(plan))

        def done(success: bool) -> None:
            results.append(success)
            reporter.advance(1, success=sum(results) / len(results))

        played = _chosen(play_episodes(policy, config, plan, done), successes)
        if layout is LayoutName.LEROBOT:
            counts = dict(write_lerobot(out, played, pictures=pictures.value, force=force).tasks)
        else:
            profile = render_profile(config, policy)
            counts = write_hdf5(out, played, config.env.suite, render_profile=profile, force=force)
    if as_json:
        outcome = {"played": len(results), "succeeded": sum(results)}
        show_json({"path": str(out), "layout": layout.value, "episodes": counts, **outcome})
        return
    show(f"{sum(counts.values())} of {len(results)} episodes kept, {sum(results)} succeeded")
    show(f"{layout.value}: {out}")


def _chosen(episodes: Iterator[Demonstration], successes: bool) -> Iterator[Demonstration]:
    return (episode for episode in episodes if episode.success or not successes)
