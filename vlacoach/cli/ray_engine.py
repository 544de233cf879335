"""``vlacoach train --engine ray``: from the command line to a group of Ray Train's, and from its run back to here."""

from __future__ import annotations

import importlib.util
import os
import secrets
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vlacoach.cli.console import narration, verbosity
from vlacoach.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from vlacoach.cli.engines import Request
    from vlacoach.launch.ray import RaySettings
    from vlacoach.launch.ray_worker import Task
    from vlacoach.runs.resolve import ResolvedConfig

NEEDED = ("ray", "pandas", "pyarrow", "fsspec")
"""Packages of the extra."""


def at_ray(context: typer.Context, request: Request) -> None:
    """Train on a Ray cluster, and show what came out.

    Args:
        context: Of ``vlacoach train``.
        request: What it was asked for.

    Raises:
        ConfigError: The options cannot be used, or the cluster or the storage cannot be reached.
        LaunchError: Ray gave the training up.
        typer.Exit: It ended with another status than 0.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not installed.", "Install with: pip install 'vlacoach[ray]'")
    resolved, resumed = resolve(request)
    from vlacoach.launch import ray

    task = make_task(context, request, resolved, resumed)
    if resumed is not None and task.storage is not None:
        _store(resumed, task.storage)
    status = ray.start(settings_of(context.params), task, _say)
    if status == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if status != ExitCode.OK:
        raise typer.Exit(status)
    _show(task, request.runs_dir, context.params["as_json"])


def resolve(request: Request) -> tuple[ResolvedConfig, Path | None]:
    """The settings, checked here as far as they can be, and the folder of the run that is to be gone on with.

    Raises:
        ConfigError: They cannot be used.
        RunError: There is no such run.
    """
    from vlacoach.cli.checks import check_names
    from vlacoach.runs.constants import CONFIG_FILE
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.resolve import resolve_config
    from vlacoach.runs.resuming import changed_settings

    if request.resume is None:
        resolved = resolve_config(request.config, request.sets, request.flags)
        check_names(resolved.config)
        return resolved, None
    if request.config is not None:
        raise ConfigError("--config cannot be combined with --resume, which goes on with the run's own configuration.")
    run = RunFolder.open(request.resume, request.runs_dir)
    resolved = resolve_config(run.path / CONFIG_FILE, request.sets, request.flags)
    changed_settings(run.config(), resolved.config, resolved.origins)
    return resolved, run.path.resolve()


def settings_of(params: dict[str, Any]) -> RaySettings:
    """What the options ask of a cluster."""
    from vlacoach.launch.ray import RaySettings

    return RaySettings(
        workers=params["workers"] or 1,
        gpus=params["gpus_per_worker"],
        cpus=params["cpus_per_worker"] or 1,
        address=params["ray_address"],
        placement=params["placement"].value.upper() if params["placement"] else RaySettings.placement,
        max_failures=RaySettings.max_failures if params["max_failures"] is None else params["max_failures"],
    )


def make_task(context: typer.Context, request: Request, resolved: ResolvedConfig, resumed: Path | None) -> Task:
    """What each worker is to do: the command that was typed, without the engine's options.

    A new run gets a name that no other has, so that a group that is started again finds what the one before it left.

    Args:
        context: Of ``vlacoach train``.
        request: What it was asked for.
        resolved: Its settings.
        resumed: Folder of the run that is to be gone on with, or None.

    Raises:
        ConfigError: The run's name is too long.
    """
    from vlacoach.cli.engines import OURS, forwarded, traveling_settings
    from vlacoach.cli.main import run_command
    from vlacoach.launch.ray_worker import Task
    from vlacoach.launch.supervising import Job
    from vlacoach.runs.constants import DEFAULT_ORIGIN

    before = ["-q"] if verbosity(context).quiet else ["-v"] * verbosity(context).verbose
    typed = forwarded(context, without=(*OURS, "config", "resume", "name", "as_json"))
    cpus = context.params["cpus_per_worker"]
    if cpus is not None and resolved.origins["env.workers"] == DEFAULT_ORIGIN:
        typed.append(f"--set=env.workers={cpus}")
    environment = traveling_settings()
    name = f"{resolved.config.name}-{secrets.token_hex(3)}"
    if len(name) > 64:
        raise ConfigError(
            f"Run name {resolved.config.name!r} is too long.", "At most 57 characters leave room for an id."
        )
    job = Job([*before, "train", *typed], [*before, "train", "--resume"], name, environment=environment)
    if resumed is not None:
        job = replace(job, arguments=[*job.arguments, f"--resume={resumed.name}"], again=[])
    elif request.config is not None:
        file = f"{tempfile.gettempdir()}/vlacoach-{name}/{request.config.name}"
        job = replace(
            job,
            arguments=[*job.arguments, f"--name={name}", f"--config={file}"],
            files={file: request.config.read_text(encoding="utf-8")},
        )
    else:
        job = replace(job, arguments=[*job.arguments, f"--name={name}"])
    return Task(
        job=job,
        entry=run_command,
        runs=str((request.runs_dir if resumed is None else resumed.parent).resolve()),
        shared="",
        here=os.getcwd(),
        storage=_absolute(context.params["storage"]),
        folder="" if resumed is None else resumed.name,
    )


def _absolute(storage: str | None) -> str | None:
    if storage is None or "://" in storage:
        return storage
    return str(Path(storage).expanduser().resolve())


def _store(run: Path, storage: str) -> None:
    """Let the storage have the newer of the two copies of a run that is to be gone on with."""
    from vlacoach.launch.storage import Storage
    from vlacoach.runs.checkpoints import CheckpointStore
    from vlacoach.runs.constants import CHECKPOINTS_FOLDER

    place = Storage(storage)
    newest = max((int(entry.name) for entry in CheckpointStore(run / CHECKPOINTS_FOLDER).entries()), default=-1)
    if newest > place.newest_checkpoint(run.name):
        place.push(run)


def _show(task: Task, runs_dir: Path, as_json: bool) -> None:
    from vlacoach.cli.train import show_result
    from vlacoach.runs.constants import RESULTS_FILE
    from vlacoach.runs.results import read_train_result

    run = task.find(runs_dir)
    if run is None or not (run / RESULTS_FILE).is_file():
        _say(f"The run is in {task.storage or task.runs}, and could not be copied to {runs_dir}.")
        raise typer.Exit(ExitCode.RUN)
    show_result(read_train_result(run), as_json)


def _say(text: str) -> None:
    narration().print(text, soft_wrap=True)
