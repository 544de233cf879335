"""``vlacoach eval``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlacoach.cli.console import narration, show, show_json, verbosity
from vlacoach.cli.options import (
    DEFAULT_RUNS_DIR,
    OUTPUT,
    ConfigFile,
    Head,
    Json,
    Quantize,
    RunsDir,
    Seed,
    Sets,
    UnnormKey,
)
from vlacoach.errors import ConfigError

if TYPE_CHECKING:
    from vlacoach.envs.perturbations import Perturbation
    from vlacoach.runs.config import TrainConfig
    from vlacoach.runs.protocols import Protocol
    from vlacoach.runs.reporting import Reporter
    from vlacoach.runs.resolve import ResolvedConfig
    from vlacoach.runs.splits import Splits

EVALUATIONS_FOLDER = "evaluations"
"""Within the folder of runs."""

_WHAT, _HOW = "What to evaluate", "How to evaluate"


class ProtocolChoice(str, Enum):
    """Whose way of evaluating; see :mod:`vlacoach.runs.protocols`."""

    OPENVLA = "openvla"
    OPENVLA_OFT = "openvla-oft"
    LEROBOT = "lerobot"
    RLINF = "rlinf"
    SIMPLEVLA = "simplevla"


class KeepVideos(str, Enum):
    """Which episodes are kept as videos."""

    ALL = "all"
    FAILURES = "failures"
    NONE = "none"


class Split(str, Enum):
    """Which of a task's 50 initial states."""

    HELD_OUT = "held-out"
    TRAIN = "train"
    ALL = "all"


def evaluate_command(
    context: typer.Context,
    policy: Annotated[
        str | None,
        typer.Option("--policy", help="Policy: tiny, a folder, or a Hub id.", rich_help_panel=_WHAT),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", help="Run whose trained policy to take: path, name, id, or 'latest'.", rich_help_panel=_WHAT
        ),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="Checkpoint of --run: last, best, or its step.", rich_help_panel=_WHAT)
    ] = "last",
    suite: Annotated[str | None, typer.Option("--suite", help="LIBERO suite.", rich_help_panel=_HOW)] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help='Tasks, such as "1,4,8" or "0-3".', rich_help_panel=_HOW)
    ] = None,
    protocol: Annotated[
        ProtocolChoice | None,
        typer.Option(
            "--protocol",
            help="Evaluate as others do: step limits, pictures, decoding, states, seed. What you set yourself wins.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    describe: Annotated[
        bool,
        typer.Option("--describe", help="Show how protocols differ, and evaluate nothing.", rich_help_panel=_HOW),
    ] = False,
    split: Annotated[
        Split | None,
        typer.Option("--split", help="Which initial states; held-out, or the protocol's own.", rich_help_panel=_HOW),
    ] = None,
    perturb: Annotated[
        str | None,
        typer.Option(
            "--perturb",
            metavar="AXIS:SEVERITY,...",
            help='Perturb all episodes, such as "camera:3,light:2"; or "all" (severity 3) or "all:5": plain, and then '
            "along each axis by itself. Severities are 1 to 5.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", help="Episodes for each task.", rich_help_panel=_HOW)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Sampling temperature; 0 is greedy.", rich_help_panel=_HOW)
    ] = None,
    head: Head = None,
    quantize: Quantize = None,
    unnorm_key: UnnormKey = None,
    config: ConfigFile = None,
    sets: Sets = None,
    seed: Seed = None,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="RUN_OR_POLICY",
            help="Play the same episodes with another policy too, and show the paired difference; of a run, "
            "RUN@best or RUN@STEP takes another checkpoint than the last.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help='Play everything once for each, such as "0,1,2".', rich_help_panel=_HOW),
    ] = None,
    video: Annotated[
        KeepVideos, typer.Option("--video", help="Episodes to keep as videos.", rich_help_panel=OUTPUT)
    ] = KeepVideos.NONE,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Folder of the evaluation; else one named after its settings, beside the runs.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Throw away episodes of an earlier evaluation there.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the success rate of a policy, for each task and overall, with intervals.

    An evaluation that was interrupted goes on where it stopped when the same command is given again.

    For example:

      vlacoach eval --suite libero_goal

      vlacoach eval --run latest --split all --trials 50 --json

      vlacoach eval --run latest --compare tiny --seeds 0,1,2

      vlacoach eval --run latest --perturb all

      vlacoach eval --protocol openvla-oft --describe
    """  # fmt: skip
    from vlacoach.cli.checks import check_names
    from vlacoach.cli.progress import reporting
    from vlacoach.cli.rival import Place, evaluate_with, rival_of, run_label
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.protocols import get_protocol
    from vlacoach.runs.resolve import Flag, resolve_config
    from vlacoach.runs.splits import read_splits

    if describe:
        show_protocols(protocol, as_json)
        return
    if run is not None and policy is not None:
        raise ConfigError("--run and --policy name two policies.", "Give one of them.")
    if run is not None and config is not None:
        raise ConfigError("--run brings its own configuration.", "Leave out --config.")
    perturbations, by_axis = chosen_perturbations(perturb)
    adapter: Path | None = None
    splits: Splits | None = None
    if run is not None:
        config, adapter = trained(run, runs_dir, checkpoint)
        splits = read_splits(RunFolder(config.parent))
    flags = [
        Flag("--policy", "policy.path", policy),
        Flag("--suite", "env.suite", suite),
        Flag("--tasks", "env.tasks", tasks),
        Flag("--trials", "evaluation.trials", trials),
        Flag("--temperature", "evaluation.temperature", temperature),
        Flag("--head", "policy.head", None if head is None else head.value),
        Flag("--quantize", "policy.quantize", None if quantize is None else quantize.value),
        Flag("--unnorm-key", "policy.unnorm_key", unnorm_key),
        Flag("--seed", "seed", seed),
    ]
    resolved = resolve_config(config, sets or (), flags)
    if splits is not None:
        refuse_other_states(resolved)
    settings = resolved.config
    followed = None if protocol is None else get_protocol(protocol.value)
    if followed is not None:
        origin = f"--protocol {followed.name}"
        preset = [Flag(origin, key, value) for key, value in followed.settings(settings.env.suite).items()]
        resolved = resolve_config(config, sets or (), flags, preset=preset)
        settings = resolved.config
    check_names(settings)
    states, named = chosen_states(settings, split, followed, splits)
    rival = None if compare is None else rival_of(compare, runs_dir, settings)
    from vlacoach.agents.episode_videos import VideoChoice
    from vlacoach.agents.measuring import Measurement

    played_seeds = chosen_seeds(seeds, seed, settings)
    wanted = Measurement(
        settings,
        states,
        named,
        played_seeds,
        checkpoint=adapter,
        protocol=None if followed is None else followed_as(followed, resolved, states, played_seeds),
        label=settings.policy.path if config is None or splits is None else run_label(config.parent, checkpoint),
        perturbations=perturbations,
    )
    place = Place(runs_dir / EVALUATIONS_FOLDER, out, VideoChoice(video.value), fresh)
    with reporting(narration(), verbosity(context).quiet) as reporter:
        warn_of_training_states(reporter, [splits, None if rival is None else rival.splits], settings, states)
        found = evaluate_with(rival, wanted, place, reporter, by_axis)
    if as_json:
        show_json(found.to_json())
        return
    from vlacoach.cli.tables import result_table

    show(result_table(found))


def chosen_perturbations(text: str | None) -> tuple[tuple[Perturbation, ...], bool]:
    """What to perturb, and whether each axis is played by itself, which is what ``all`` asks for.

    Raises:
        UnknownNameError: An axis does not exist.
        ConfigError: A severity is none, or an axis is given twice.
    """
    from vlacoach.envs.perturbations import ALL_AXES, parse_perturbations

    if text is None:
        return (), False
    return parse_perturbations(text), text.partition(":")[0].strip() == ALL_AXES


def chosen_seeds(seeds: str | None, seed: int | None, config: TrainConfig) -> tuple[int, ...]:
    """Seeds of the episodes.

    Raises:
        ConfigError: They are no numbers, one occurs twice, or --seed is given too.
    """
    from vlacoach.runs.indices import parse_indices

    if seeds is None:
        return (config.seed,)
    if seed is not None:
        raise ConfigError("--seed and --seeds contradict each other.", "Give one of them.")
    return parse_indices(seeds)


def show_protocols(protocol: ProtocolChoice | None, as_json: bool) -> None:
    """Print what each protocol does, and where the others differ from the one given."""
    from vlacoach.runs.protocols import PROTOCOLS, differences

    if as_json:
        document: dict[str, Any] = {"protocols": {name: one.to_json() for name, one in PROTOCOLS.items()}}
        if protocol is not None:
            document |= {"protocol": protocol.value, "differs": differences(protocol.value)}
        show_json(document)
        return
    from vlacoach.cli.tables import protocols_table

    show(protocols_table(None if protocol is None else protocol.value))
    for name, one in PROTOCOLS.items():
        if protocol is None or name == protocol.value:
            show(f"{name} is {one.source}. Not as there:")
            for difference in one.not_reproduced:
                show(f"- {difference}")


def chosen_states(
    config: TrainConfig, split: Split | None, protocol: Protocol | None = None, trained_with: Splits | None = None
) -> tuple[dict[int, tuple[int, ...]], str]:
    """Initial states of each task, and their name.

    Args:
        config: Names the suite and the tasks.
        split: The split asked for, or None.
        protocol: The protocol asked for, whose states are taken if no split is named, or None.
        trained_with: Manifest of the run that is evaluated, which says better than the configuration what its tasks
            were trained on, or None.
    """
    from vlacoach.envs.suites import get_suite
    from vlacoach.runs.splits import Splits

    tasks = [task.index for task in get_suite(config.env.suite).select(config.env.tasks)]
    if split is None and protocol is not None:
        return dict.fromkeys(tasks, protocol.states), "protocol"
    name = (split or Split.HELD_OUT).value
    states = Splits.of_config(config, tasks).states(name)
    if trained_with is not None and trained_with.suite == config.env.suite:
        known = trained_with.states(name)
        states = {task: known.get(task, chosen) for task, chosen in states.items()}
    return states, name


def warn_of_training_states(
    reporter: Reporter,
    manifests: Iterable[Splits | None],
    config: TrainConfig,
    states: Mapping[int, Sequence[int]],
) -> None:
    """Say how many of the initial states a run was trained on."""
    total = sum(map(len, states.values()))
    for splits in manifests:
        seen = 0 if splits is None else splits.trained_on(config.env.suite, states)
        if seen:
            reporter.message(f"A run was trained on {seen} of the {total} initial states it is measured on", "warning")


def followed_as(
    protocol: Protocol, resolved: ResolvedConfig, states: Mapping[int, Sequence[int]], seeds: tuple[int, ...]
) -> str:
    """What to call a protocol that was followed but for some values, for example ``"rlinf but for seed, states"``."""
    from vlacoach.runs.resolve import flatten

    used = flatten(resolved.config)
    suite = resolved.config.env.suite
    changed = [key for key, value in protocol.settings(suite).items() if key != "seed" and used[key] != value]
    if protocol.seed is not None and seeds != (protocol.seed,):
        changed.append("seed")
    if any(tuple(chosen) != protocol.states for chosen in states.values()):
        changed.append("states")
    return protocol.name if not changed else f"{protocol.name} but for {', '.join(changed)}"


def refuse_other_states(resolved: ResolvedConfig) -> None:
    """Refuse to set the states of a run's splits: they are what they were when it was trained.

    Raises:
        ConfigError: The command line or the environment sets them.
    """
    for key in ("env.states", "evaluation.states"):
        origin = resolved.origins[key]
        if origin.startswith(("--set", "environment")):
            raise ConfigError(
                f"{origin}: {key} of a run cannot be changed, for it says what the run was trained on.",
                "Choose among its states with --split, or evaluate its policy with --policy.",
            )


def trained(reference: str, runs_dir: Path, checkpoint: str) -> tuple[Path, Path]:
    """Configuration file and checkpoint folder of a run.

    Raises:
        RunError: There is no such run.
        CheckpointError: It has no such checkpoint, or it is damaged.
    """
    from vlacoach.runs.constants import CONFIG_FILE
    from vlacoach.runs.folder import RunFolder

    folder = RunFolder.open(reference, runs_dir)
    return folder.path / CONFIG_FILE, folder.checkpoints.named(checkpoint)
