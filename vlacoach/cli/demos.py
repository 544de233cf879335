"""``vlacoach demos``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vlacoach.cli.console import narration, show, show_json, verbosity
from vlacoach.cli.options import OUTPUT, Json


class RenderProfileName(str, Enum):
    """Kinds of pictures."""

    COARSE = "coarse"
    FAST = "fast"
    REFERENCE = "reference"


app = typer.Typer(no_args_is_help=True, help="Demonstrations by scripted experts.")


@app.callback()
def _group() -> None:
    """Demonstrations by scripted experts."""


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
