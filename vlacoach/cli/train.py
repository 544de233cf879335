"""``vlacoach train``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlacoach.cli.console import narration, show, show_json, verbosity
from vlacoach.cli.options import (
    CONFIGURATION,
    DEFAULT_RUNS_DIR,
    OUTPUT,
    ConfigFile,
    CpusPerWorker,
    Engine,
    EngineChoice,
    GpusPerWorker,
    Head,
    Json,
    MaxFailures,
    PlacementOption,
    Quantize,
    RayAddress,
    RentedGpu,
    RunsDir,
    Seed,
    Sets,
    StoragePlace,
    UnnormKey,
    Workers,
    Yes,
)
from vlacoach.errors import ConfigError

if TYPE_CHECKING:
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.resolve import Flag, ResolvedConfig
    from vlacoach.runs.results import TrainResult

_TASK, _UPDATE = "What to train", "How to train"


class Tracker(str, Enum):
    """Where metrics may go beside the run folder."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    TRACKIO = "trackio"


def train_command(
    context: typer.Context,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward", help="Scorer of trajectories: siglip-t, siglip, success, or a plugin's.", rich_help_panel=_TASK
        ),
    ] = None,
    temporal: Annotated[
        bool | None,
        typer.Option(
            "--temporal/--no-temporal",
            help="Use SigLIP-T's temporal head; --no-temporal is SigLIP alone.",
            rich_help_panel=_TASK,
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option("--suite", help="LIBERO suite.", rich_help_panel=_TASK)] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help='Tasks of the suite, such as "1,4,8" or "0-3".', rich_help_panel=_TASK),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", help="Policy to start from: tiny, a folder, or a Hub id.", rich_help_panel=_TASK),
    ] = None,
    updates: Annotated[
        int | None, typer.Option("--updates", help="Updates of the policy.", rich_help_panel=_UPDATE)
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Time budget.", rich_help_panel=_UPDATE)] = None,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--lora", help="Train the whole language model instead of an adapter.", rich_help_panel=_UPDATE
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with a run: its path, name, id, or 'latest'.",
            rich_help_panel=_UPDATE,
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Train in a process of its own and show the dashboard.", rich_help_panel=OUTPUT),
    ] = False,
    head: Head = None,
    quantize: Quantize = None,
    unnorm_key: UnnormKey = None,
    engine: Engine = EngineChoice.LOCAL,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = None,
    placement: PlacementOption = None,
    ray_address: RayAddress = None,
    storage: StoragePlace = None,
    max_failures: MaxFailures = None,
    gpu: RentedGpu = None,
    yes: Yes = False,
    config: ConfigFile = None,
    sets: Sets = None,
    seed: Seed = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run.", rich_help_panel=CONFIGURATION)] = None,
    log: Annotated[
        list[Tracker] | None,
        typer.Option("--log", help="Also send metrics there; may be repeated.", rich_help_panel=OUTPUT),
    ] = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    as_json: Json = False,
) -> None:
    """Improve a policy by reinforcement learning and show success before and after.

    For example:

      vlacoach train

      vlacoach train --reward success --tasks 1,8 --updates 20

      vlacoach train --config configs/train.yaml --no-temporal --set grpo.clip_high=0.3

      vlacoach train --log tensorboard --log wandb

      vlacoach train --resume latest --updates 80

      vlacoach train --watch

      vlacoach train --engine ray --workers 8 --gpus-per-worker 1

      vlacoach train --engine modal --gpu A10G --minutes 60
    """  # fmt: skip
    if watch and engine is EngineChoice.LOCAL:
        from vlacoach.cli.launch import train_and_watch

        if as_json:
            raise ConfigError("--watch and --json contradict each other.", "Give one of them.")
        train_and_watch([argument for argument in sys.argv[1:] if argument != "--watch"], runs_dir)
        return
    from vlacoach.cli.engines import Request, started_elsewhere
    from vlacoach.runs.launches import restarted_run
    from vlacoach.runs.resolve import Flag
    from vlacoach.runs.stopping import interruptible

    flags = [
        Flag("--reward", "reward.name", reward),
        Flag("--temporal/--no-temporal", "reward.temporal", temporal),
        Flag("--suite", "env.suite", suite),
        Flag("--tasks", "env.tasks", tasks),
        Flag("--policy", "policy.path", policy),
        Flag("--updates", "grpo.updates", updates),
        Flag("--minutes", "grpo.minutes", minutes),
        Flag("--full/--lora", "policy.full", full),
        Flag("--head", "policy.head", None if head is None else head.value),
        Flag("--quantize", "policy.quantize", None if quantize is None else quantize.value),
        Flag("--unnorm-key", "policy.unnorm_key", unnorm_key),
        Flag("--seed", "seed", seed),
        Flag("--name", "name", name),
        Flag("--log", "logging.trackers", None if not log else [tracker.value for tracker in log]),
    ]
    if started_elsewhere(context, Request(engine, gpu, yes, resume, config, sets or (), flags, runs_dir)):
        return
    with interruptible():
        if int(os.environ.get("RANK", "0")) > 0:
            from vlacoach.agents.following import follow

            follow()
            return
        if restarted := restarted_run(runs_dir):
            resume, config, sets, flags = str(restarted), None, None, []
        result = _train(resume, runs_dir, config, sets or (), flags, verbosity(context).quiet)
    show_result(result, as_json)


def _train(
    resume: str | None, runs_dir: Path, config: Path | None, sets: Iterable[str], flags: Iterable[Flag], quiet: bool
) -> TrainResult:
    from vlacoach.cli.progress import reporting
    from vlacoach.runs.resolve import flatten
    from vlacoach.runs.trackers import open_trackers

    begin = partial(_begin, runs_dir) if resume is None else partial(_resume, resume, runs_dir)
    folder, resolved = begin(config, sets, flags)
    from vlacoach.agents.following import leading
    from vlacoach.agents.training import train
    from vlacoach.runs.discarding import discarded_if_nothing_began

    with ExitStack() as stack:
        stack.enter_context(folder)
        reporter = stack.enter_context(reporting(narration(), quiet))
        if resume is None:
            stack.enter_context(discarded_if_nothing_began(folder, reporter))
        stack.enter_context(folder.running())
        reporter.message(f"Run folder: {folder.path}")
        for tracker in open_trackers(resolved.config.logging.trackers, folder.path, flatten(resolved.config)):
            folder.attach(tracker)
        ranks = stack.enter_context(leading(folder, resume is not None))
        return train(resolved.config, folder, reporter, resume is not None, ranks)


def _begin(
    runs_dir: Path, config: Path | None, sets: Iterable[str], flags: Iterable[Flag]
) -> tuple[RunFolder, ResolvedConfig]:
    from vlacoach.cli.checks import check_names
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.launches import launch_id
    from vlacoach.runs.resolve import resolve_config
    from vlacoach.runs.trackers import require_installed

    resolved = resolve_config(config, list(sets), flags)
    check_names(resolved.config)
    require_installed(resolved.config.logging.trackers)
    from vlacoach.agents.evaluation import pinned

    resolved = replace(resolved, config=pinned(resolved.config))
    folder = RunFolder.create(runs_dir, resolved.config.name, resolved.config, resolved.origins)
    if launch := launch_id():
        folder.update_info(launch=launch)
    return folder, resolved


def _resume(
    reference: str, runs_dir: Path, config: Path | None, sets: Iterable[str], flags: Iterable[Flag]
) -> tuple[RunFolder, ResolvedConfig]:
    from vlacoach.runs.constants import CONFIG_FILE
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.resolve import config_hash, resolve_config
    from vlacoach.runs.resuming import changed_settings
    from vlacoach.runs.yaml_io import write_config

    if config is not None:
        raise ConfigError("--config cannot be combined with --resume, which goes on with the run's own configuration.")
    folder = RunFolder.resume(reference, runs_dir)
    try:
        resolved = resolve_config(folder.path / CONFIG_FILE, list(sets), flags)
        if resolved.config.grpo.micro_batch == "auto":
            from vlacoach.agents.evaluation import check_trainable, with_micro_batch

            found = check_trainable(resolved.config)
            resolved = replace(resolved, config=with_micro_batch(resolved.config, found))
        changed = changed_settings(folder.config(), resolved.config, resolved.origins)
        if changed:
            write_config(resolved.config, folder.path / CONFIG_FILE)
            folder.update_info(config_hash=config_hash(resolved.config))
            folder.log_event("config", changed=changed)
    except BaseException:
        folder.close()
        raise
    return folder, resolved


def show_result(result: TrainResult, as_json: bool) -> None:
    """Print what a training found, as tables or as one JSON document."""
    if as_json:
        show_json(result.to_json())
        return
    from vlacoach.cli.tables import comparison_table
    from vlacoach.runs.formatting import format_seconds

    for comparison in result.comparisons.values():
        show(comparison_table(comparison))
    show(f"{result.updates} updates in {format_seconds(result.seconds)}")
    for what, path in {"run": result.run, **result.artifacts}.items():
        show(f"{what}: {path}")
