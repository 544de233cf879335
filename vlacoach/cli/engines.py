"""``vlacoach train --engine``: which engine starts the training, and the command that it is given."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vlacoach.cli.console import narration, verbosity
from vlacoach.cli.options import EngineChoice
from vlacoach.errors import ConfigError, ExitCode, RunError

if TYPE_CHECKING:
    from vlacoach.launch.modal import AppSettings
    from vlacoach.launch.pricing import Estimate, Machine
    from vlacoach.launch.supervising import Job
    from vlacoach.runs.config import TrainConfig
    from vlacoach.runs.resolve import Flag, ResolvedConfig

DEFAULT_GPU = "A10G"
CORES, MEMORY_GIB = 8, 32
"""Processor cores and host memory that go with a GPU: simulators need the first, loading 7 B weights the second."""

REMOTE_FOLDER = "/tmp/vlacoach"
"""Where files of this machine, such as ``--config``, are put there."""

SECRETS = ("HF_TOKEN",)
TRACKER_SECRETS = {"wandb": "WANDB_API_KEY"}

RAY_OPTIONS = (
    "workers",
    "gpus_per_worker",
    "cpus_per_worker",
    "placement",
    "ray_address",
    "storage",
    "max_failures",
)
OURS = ("engine", "gpu", "yes", "watch", "runs_dir", *RAY_OPTIONS)
"""Parameters that the far end has no use for."""


@dataclass(frozen=True)
class Request:
    """What the command line says about a training that an engine may start.

    Attributes:
        engine: Which.
        gpu: ``--gpu``, or None.
        yes: Whether not to ask.
        resume: ``--resume``, or None.
        config: ``--config``, or None.
        sets: Every ``--set``.
        flags: Options that stand for settings.
        runs_dir: Folder of all runs here.
    """

    engine: EngineChoice
    gpu: str | None
    yes: bool
    resume: str | None
    config: Path | None
    sets: Sequence[str]
    flags: Sequence[Flag]
    runs_dir: Path


def started_elsewhere(context: typer.Context, request: Request) -> bool:
    """Give the training to the engine that was asked for.

    Args:
        context: Of ``vlacoach train``.
        request: What it was asked for.

    Returns:
        False if it is to run in this process; True if it has run elsewhere.

    Raises:
        ConfigError: The options contradict each other, or the engine cannot be used.
        LaunchError: The training could not be started there, or was given up.
        typer.Exit: It ended there with another status than 0, or goes on without this process.
    """
    if request.engine is not EngineChoice.MODAL and (request.gpu is not None or request.yes):
        option = "--yes" if request.gpu is None else "--gpu"
        raise ConfigError(f"{option} is for a GPU that is rented.", "Add --engine modal.")
    if request.engine is not EngineChoice.RAY:
        for words in forwarded(context, without={*context.params} - {*RAY_OPTIONS}):
            raise ConfigError(f"{words.partition('=')[0]} is for a Ray cluster.", "Add --engine ray.")
    if request.engine is EngineChoice.LOCAL:
        return False
    if context.params["watch"]:
        raise ConfigError(
            f"--watch starts a local training, and --engine is {request.engine.value}.",
            "Leave --watch away, and say `vlacoach watch` in another terminal.",
        )
    if request.engine is EngineChoice.RAY:
        from vlacoach.cli.ray_engine import at_ray

        at_ray(context, request)
    else:
        _at_modal(context, request)
    return True


def forwarded(context: typer.Context, without: Collection[str] = ()) -> list[str]:
    """The options of a command as they were typed, for the same command elsewhere.

    Args:
        context: Of the command.
        without: Names of parameters to leave out.
    """
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in without or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            # One word, so that a value may begin with a dash.
            words.append(f"{parameter.opts[0]}={getattr(one, 'value', one)}")
    return words


def traveling_settings() -> dict[str, str]:
    """Environment variables that set the configuration, for the far end; others hold for this machine alone."""
    from vlacoach.runs.resolve import environment_key

    return {name: value for name, value in os.environ.items() if environment_key(name) is not None}


def make_job(context: typer.Context, resolved: ResolvedConfig, config: Path | None, runs: str, folder: str) -> Job:
    """The command for the far end.

    A new run gets a name that no other has, so that an attempt that is made again finds what the one before it left.

    Args:
        context: Of ``vlacoach train``.
        resolved: Settings as they are here.
        config: ``--config``, or None; its text travels.
        runs: Folder of all runs there.
        folder: Name of the run's folder if it is to be resumed, else ``""``.

    Raises:
        ConfigError: The run's name is too long.
    """
    from vlacoach.launch.supervising import Job
    from vlacoach.runs.constants import DEFAULT_ORIGIN

    before = ["-q"] if verbosity(context).quiet else ["-v"] * verbosity(context).verbose
    where = f"--runs-dir={runs}"
    environment = traveling_settings()
    if folder:
        typed = forwarded(context, without=(*OURS, "resume"))
        return Job([*before, "train", *typed, where, f"--resume={folder}"], environment=environment)
    typed = forwarded(context, without=(*OURS, "config", "name"))
    name = f"{resolved.config.name}-{secrets.token_hex(3)}"
    if len(name) > 64:
        raise ConfigError(
            f"Run name {resolved.config.name!r} is too long.", "At most 57 characters leave room for an id."
        )
    files = {}
    if config is not None:
        files[f"{REMOTE_FOLDER}/{config.name}"] = config.read_text(encoding="utf-8")
        typed.append(f"--config={REMOTE_FOLDER}/{config.name}")
    if resolved.origins["env.workers"] == DEFAULT_ORIGIN:
        typed.append(f"--set=env.workers={CORES}")
    json = ["--json"] if context.params["as_json"] else []
    return Job(
        arguments=[*before, "train", *typed, f"--name={name}", where],
        again=[*before, "train", *json, where, "--resume"],
        name=name,
        files=files,
        environment=environment,
    )


def _at_modal(context: typer.Context, request: Request) -> None:
    from vlacoach.cli.checks import check_names
    from vlacoach.launch.pricing import Machine, find_gpu
    from vlacoach.runs.resolve import resolve_config

    if importlib.util.find_spec("modal") is None:
        raise ConfigError("modal is not installed.", "Install it with: pip install 'vlacoach[modal]'")
    machine = Machine(find_gpu(request.gpu or DEFAULT_GPU), CORES, MEMORY_GIB)
    if request.resume is not None:
        _resume_at_modal(context, request, machine)
        return
    resolved = _with_workers(resolve_config(request.config, request.sets, request.flags))
    check_names(resolved.config)
    refuse_local_folders(resolved.config)
    from vlacoach.launch import modal
    from vlacoach.launch.mirror import RunMirror

    job = make_job(context, resolved, request.config, modal.RUNS, "")
    modal.require_account()
    _agree(_estimate(resolved.config, machine), request.yes)
    mirror = RunMirror(modal.runs_volume(), request.runs_dir, job.name)
    _finish(modal.start(_settings(machine, resolved.config), job, mirror, _say, _logs(context)))


def _with_workers(resolved: ResolvedConfig) -> ResolvedConfig:
    """The settings with a simulator process for each core that is rented, where nobody said how many."""
    from vlacoach.runs.constants import DEFAULT_ORIGIN

    if resolved.origins["env.workers"] != DEFAULT_ORIGIN:
        return resolved
    env = resolved.config.env.model_copy(update={"workers": CORES})
    return replace(resolved, config=resolved.config.model_copy(update={"env": env}))


def _resume_at_modal(context: typer.Context, request: Request, machine: Machine) -> None:
    from vlacoach.launch import modal
    from vlacoach.launch.following import record_of
    from vlacoach.launch.mirror import RunMirror, folders_in
    from vlacoach.runs.constants import CONFIG_FILE
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.resolve import resolve_config

    if request.config is not None:
        raise ConfigError("--config cannot be combined with --resume, which goes on with the run's own configuration.")
    run = RunFolder.open(request.resume or "", request.runs_dir)
    resolved = resolve_config(run.path / CONFIG_FILE, request.sets, request.flags)
    modal.require_account()
    volume, folder = modal.runs_volume(), run.path.resolve().name
    if folder not in folders_in(volume):
        raise RunError(
            f"Run {folder} is not in Modal's volume {modal.RUNS_VOLUME}.",
            f"Put it there with: modal volume put {modal.RUNS_VOLUME} {run.path} /{folder}",
        )
    mirror = RunMirror(volume, request.runs_dir, run.info()["name"], folder)
    record = record_of(run.path)
    call = modal.running_call(record) if record else None
    if record is not None and call is not None:
        _say(f"Run {folder} is at work at Modal; this goes on copying it.")
        _finish(modal.follow_again(call, mirror, _say, record))
        return
    done = max((line["step"] for line in run.metrics()), default=0)
    _agree(_estimate(resolved.config, machine, done), request.yes)
    job = make_job(context, resolved, None, modal.RUNS, folder)
    _finish(modal.start(_settings(machine, resolved.config), job, mirror, _say, _logs(context)))


def refuse_local_folders(config: TrainConfig) -> None:
    """Refuse a policy or adapter that lies on this machine, where the training does not see it.

    Raises:
        ConfigError: One does.
    """
    for key, value in (("policy.path", config.policy.path), ("policy.adapter", config.policy.adapter)):
        if value is not None and Path(value).is_dir():
            raise ConfigError(
                f"{key} is a folder of this machine: {value}.",
                f"Push it to the Hub and name it, or: modal volume put vlacoach-cache {value} "
                f"/policies/{Path(value).name}, and name it /cache/policies/{Path(value).name}.",
            )


def _settings(machine: Machine, config: TrainConfig) -> AppSettings:
    from vlacoach.launch.modal import EXTRAS, AppSettings, find_checkout

    trackers = config.logging.trackers
    secret_names = {*SECRETS, *(TRACKER_SECRETS[name] for name in trackers if name in TRACKER_SECRETS)}
    given = tuple(sorted(name for name in secret_names if os.environ.get(name)))
    return AppSettings(machine, find_checkout(), extras=(*EXTRAS, *trackers), secrets=given)


def _estimate(config: TrainConfig, machine: Machine, done: int = 0) -> Estimate:
    from vlacoach.envs.suites import get_suite
    from vlacoach.launch.pricing import estimate, work_of

    tasks = len(get_suite(config.env.suite).select(config.env.tasks))
    return estimate(config, machine, work_of(config, tasks, done))


def _agree(expected: Estimate, yes: bool) -> None:
    """Say what it is going to cost, and ask; without a terminal, money is spent only if ``--yes`` says so."""
    for line in expected.lines():
        _say(line)
    if yes:
        return
    if not _asks():
        raise ConfigError("There is no terminal to ask on whether to spend that.", "Say --yes to start.")
    if not typer.confirm("Start?", err=True):
        _say("Nothing was started.")
        raise typer.Exit(ExitCode.FAILURE)


def _asks() -> bool:
    return sys.stdin.isatty()


def _finish(outcome: Mapping[str, Any] | None) -> None:
    if outcome is None:
        raise typer.Exit(ExitCode.INTERRUPTED)
    sys.stdout.write(outcome["output"])
    if outcome["status"]:
        raise typer.Exit(outcome["status"])


def _say(text: str) -> None:
    narration().print(text, soft_wrap=True)


def _logs(context: typer.Context) -> bool:
    return not verbosity(context).quiet
