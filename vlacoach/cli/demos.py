"""``vlacoach demos``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlacoach.cli.console import narration, show, show_json, verbosity
from vlacoach.cli.options import (
    OUTPUT,
    Force,
    Gripper,
    GripperSign,
    Json,
    NotTurned,
    PictureKind,
    Pictures,
    RenderedAs,
    RenderProfileName,
)

app = typer.Typer(
    no_args_is_help=True, help="Demonstrations: made by scripted experts, and from one layout to the other."
)


@app.callback()
def _group() -> None:
    """Demonstrations: made by scripted experts, and from one layout to the other."""


@app.command("collect")
def collect_command(
    context: typer.Context,
    suite: Annotated[str, typer.Option("--suite", help="LIBERO suite.")] = "libero_goal",
    tasks: Annotated[
        str | None, typer.Option("--tasks", help='Tasks, such as "1,4,8" or "0-3"; left out, all.')
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Successful episodes for each task.")] = 30,
    states: Annotated[
        str, typer.Option("--states", help="Initial states, used in turn; keep off the evaluation's 30-49.")
    ] = "0-29",
    noise: Annotated[
        float,
        typer.Option(
            "--noise",
            min=0.0,
            max=1.0,
            help="Standard deviation of the noise on executed actions; recorded actions stay clean.",
        ),
    ] = 0.0,
    image_size: Annotated[int, typer.Option("--image-size", min=16, help="Side of a picture in pixels.")] = 128,
    render_profile: Annotated[
        RenderProfileName, typer.Option("--render-profile", help="How pictures are rendered; see docs/environments.md.")
    ] = RenderProfileName.FAST,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="One HDF5 file a task goes here.", rich_help_panel=OUTPUT)
    ] = Path("demos"),
    as_json: Json = False,
) -> None:
    """Let scripted experts solve tasks and save what they did in LIBERO's own HDF5 layout.

    Episodes that are already in the files are kept, so an interrupted collection goes on where it stopped.

    For example:

      vlacoach demos collect --suite libero_goal --tasks 1,4,8 --episodes 40 --noise 0.2
    """  # fmt: skip
    from vlacoach.cli.progress import reporting
    from vlacoach.envs.suites import get_suite
    from vlacoach.runs.indices import parse_indices

    chosen = get_suite(suite)
    wanted = [task.index for task in chosen.select(parse_indices(tasks) if tasks is not None else None)]
    initial = parse_indices(states)
    from vlacoach.envs.experts.collection import collect

    with reporting(narration(), verbosity(context).quiet) as reporter:
        reporter.stage("collect", total=len(wanted) * episodes)
        files = collect(
            suite,
            wanted,
            episodes,
            out,
            states=initial,
            noise=noise,
            image_size=image_size,
            render_profile=render_profile.value,
            workers=workers,
            seed=seed,
            progress=reporter.advance,
        )
    if as_json:
        show_json({"suite": suite, "files": {str(task): str(file) for task, file in files.items()}})
        return
    for task, file in files.items():
        show(f"{task}  {chosen.task(task).instruction}: {file}")


@app.command("convert")
def convert_command(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="LeRobot data set, HDF5 file, or folder of HDF5 files.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the other layout goes.", rich_help_panel=OUTPUT)
    ],
    suite: Annotated[str, typer.Option("--suite", help="Suite that the tasks are of.")] = "libero_goal",
    tasks: Annotated[str | None, typer.Option("--tasks", help='Convert these tasks only, such as "1,4,8".')] = None,
    not_turned: NotTurned = False,
    gripper: GripperSign = Gripper.ENV,
    render_profile: RenderedAs = RenderProfileName.REFERENCE,
    pictures: Pictures = PictureKind.VIDEO,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn LIBERO's HDF5 files into a LeRobot data set (v3.0), or a LeRobot data set into LIBERO's HDF5 files.

    What is written is there as a whole or not at all.

    For example:

      vlacoach demos convert demos --out demos-lerobot

      vlacoach demos convert demos-lerobot --suite libero_goal --out demos-hdf5
    """  # fmt: skip
    from vlacoach.cli.progress import reporting
    from vlacoach.data.convert import select_episodes, task_names, write_hdf5
    from vlacoach.data.lerobot import LeRobotLayout, is_lerobot_folder, open_demonstrations
    from vlacoach.data.lerobot_writer import write_lerobot
    from vlacoach.envs.suites import get_suite
    from vlacoach.runs.indices import parse_indices

    reader = open_demonstrations(source, layout=LeRobotLayout(turned=not not_turned, gripper=gripper.value))
    chosen = get_suite(suite).select(parse_indices(tasks) if tasks is not None else None)
    from_lerobot = is_lerobot_folder(source)
    named = [task.instruction.lower().replace(" ", "_") if from_lerobot else task.name for task in chosen]
    wanted = reader.tasks if tasks is None else named
    with reporting(narration(), verbosity(context).quiet) as reporter:
        reporter.stage("convert", total=sum(len(reader.indices(task)) for task in wanted if task in reader.tasks))
        episodes = select_episodes(reader, wanted, reporter.advance)
        if from_lerobot:
            files = task_names((task.instruction, task.name) for task in chosen)
            counts = write_hdf5(out, episodes, suite, files, render_profile.value, force=force)
        else:
            counts = dict(write_lerobot(out, episodes, pictures=pictures.value, force=force).tasks)
    if as_json:
        show_json({"path": str(out), "layout": "hdf5" if from_lerobot else "lerobot", "episodes": counts})
        return
    for task, count in counts.items():
        show(f"{count:5d}  {task}")
    show(f"{'hdf5' if from_lerobot else 'lerobot'}: {out}")
