"""``vlacoach reward``: is a reward any good, and what does it say of an episode?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlacoach.cli.console import narration, show, show_json, verbosity
from vlacoach.cli.options import DEFAULT_RUNS_DIR, OUTPUT, Json, RunsDir
from vlacoach.errors import ConfigError

if TYPE_CHECKING:
    from vlacoach.data.rollouts import RecordedEpisode
    from vlacoach.policies.policy import VLAPolicy
    from vlacoach.runs.reporting import Reporter

app = typer.Typer(no_args_is_help=True, help="Measure rewards, and score episodes.")

_WHAT, _HOW = "What to measure", "How to collect rollouts"

Policy = Annotated[
    str, typer.Option("--policy", help="Policy that acts and whose features are scored: tiny, or a folder.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random number.")]


@app.callback()
def _group() -> None:
    """Measure rewards, and score episodes."""


@app.command("bench")
def bench_command(
    context: typer.Context,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            metavar="NAME[:OPTION=VALUE,...]",
            help="Scorer to measure, such as siglip-t:fusion=add; may be repeated. Left out, all that are shipped.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    rollouts: Annotated[
        str | None,
        typer.Option(
            "--rollouts",
            metavar="FILE|RUN",
            help="Measure on the rollouts of this file, or on new ones of what this run has trained, at its tasks.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    policy: Policy = "tiny",
    suite: Annotated[
        str, typer.Option("--suite", help="LIBERO suite that has experts.", rich_help_panel=_HOW)
    ] = "libero_goal",
    tasks: Annotated[
        str, typer.Option("--tasks", help='Tasks that have experts, such as "1,4,8".', rich_help_panel=_HOW)
    ] = "1,4,6,8",
    episodes: Annotated[
        int,
        typer.Option(
            "--episodes",
            min=24,
            help="Episodes for each task, of all kinds; multiples of 24 are exact.",
            rich_help_panel=_HOW,
        ),
    ] = 120,
    max_steps: Annotated[
        int, typer.Option("--max-steps", min=8, help="Step limit of an episode.", rich_help_panel=_HOW)
    ] = 120,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.", rich_help_panel=_HOW)] = 2,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Bootstrap resamples.", rich_help_panel=_WHAT)
    ] = 1000,
    seed: Seed = 0,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Keep the rollouts in this HDF5 file.", rich_help_panel=OUTPUT),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw progress curves into this PNG.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how well scorers tell success from failure, near miss from gross failure, and late from early.

    Rollouts of the policy, of experts, of noisy experts, and of experts who stop at a chosen moment are collected, or
    read from a file. Scorers that learn are fitted on even initial states; all are measured on odd ones.

    For example:

      vlacoach reward bench --save rollouts.hdf5 --plot curves.png

      vlacoach reward bench --rollouts rollouts.hdf5 --scorer siglip --scorer siglip-t:objective=triplet

      vlacoach reward bench --rollouts latest
    """  # fmt: skip
    from vlacoach.cli.progress import reporting
    from vlacoach.rewards.registry import available_scorers

    file = None if rollouts is None or not rollouts.endswith(".hdf5") else Path(rollouts)
    if file is not None and save is not None:
        raise ConfigError("--rollouts reads rollouts and --save keeps new ones.", "Give one of them.")
    from vlacoach.agents.reward_lab import DEFAULT_SCORERS, ScorerSpec, bench
    from vlacoach.errors import UnknownNameError

    specs = [ScorerSpec.parse(text) for text in scorer or DEFAULT_SCORERS]
    for spec in specs:
        if spec.name not in available_scorers():
            raise UnknownNameError("scorer", spec.name, available_scorers())
    from vlacoach.agents.reward_lab import build
    from vlacoach.policies import load_policy

    if rollouts is None or file is not None:
        loaded = load_policy(policy)
    else:
        loaded, suite, tasks, max_steps = _trained_policy(rollouts, runs_dir)
        policy = rollouts
    scorers = [(spec, build(spec, loaded)) for spec in specs]  # Before minutes of rollouts are spent.
    with reporting(narration(), verbosity(context).quiet) as reporter:
        if file is None:
            recorded = _collect(loaded, suite, tasks, episodes, max_steps, workers, seed, reporter)
        else:
            from vlacoach.data.rollouts import read_rollouts

            recorded = read_rollouts(file)
        if save is not None:
            from vlacoach.data.rollouts import write_rollouts

            write_rollouts(save, recorded)
        reports = bench(loaded, recorded, scorers, seed=seed, resamples=resamples, reporter=reporter)
    if as_json:
        show_json({"policy": policy, "episodes": len(recorded), "scorers": [asdict(report) for report in reports]})
    else:
        from vlacoach.cli.tables import reward_tables, rollouts_table

        for table in [rollouts_table(recorded), *reward_tables(reports)]:
            show(table)
    if plot is not None:  # Last: what was measured is not lost if this fails.
        from vlacoach.rewards.plots import write_progress_curves

        write_progress_curves(reports, plot)


def _trained_policy(reference: str, runs_dir: Path) -> tuple[VLAPolicy, str, str, int]:
    """The policy that a run has trained, its suite, its tasks, and its step limit."""
    from vlacoach.agents.evaluation import load_trained
    from vlacoach.cli.eval import trained
    from vlacoach.envs.suites import get_suite
    from vlacoach.runs.config import TrainConfig

    settings, adapter = trained(reference, runs_dir, "last")
    config = TrainConfig.load(settings)
    suite = get_suite(config.env.suite)
    tasks = ",".join(str(task.index) for task in suite.select(config.env.tasks))
    return load_trained(config, adapter), suite.name, tasks, config.env.max_steps or suite.max_steps


def _collect(
    policy: VLAPolicy,
    suite: str,
    tasks: str,
    episodes: int,
    max_steps: int,
    workers: int,
    seed: int,
    reporter: Reporter,
) -> list[RecordedEpisode]:
    from vlacoach.agents.reward_lab import collect_rollouts
    from vlacoach.envs.suites import get_suite
    from vlacoach.runs.indices import parse_indices

    chosen = [task.index for task in get_suite(suite).select(parse_indices(tasks))]
    return collect_rollouts(
        policy, suite, chosen, episodes, max_steps=max_steps, workers=workers, seed=seed, reporter=reporter
    )


@app.command("score")
def score_command(
    context: typer.Context,
    episodes: Annotated[
        list[str],
        typer.Argument(
            metavar="EPISODE...",
            help="Videos (.gif, .mp4), rollouts (FILE.hdf5 or FILE.hdf5:3), or demonstrations (FILE.hdf5:demo_3).",
        ),
    ],
    references: Annotated[
        Path,
        typer.Option(
            "--references",
            metavar="FILE",
            help="Rollouts to compare with, successes and failures; see: vlacoach reward bench --save.",
        ),
    ],
    scorer: Annotated[str, typer.Option("--scorer", metavar="NAME[:OPTION=VALUE,...]", help="Scorer.")] = "siglip-t",
    task: Annotated[
        int | None, typer.Option("--task", help="Task of videos and demonstrations, which do not say it.")
    ] = None,
    policy: Policy = "tiny",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say how close single episodes came, compared with reference rollouts of the same task.

    For example:

      vlacoach reward score rollouts.hdf5:17 --references rollouts.hdf5

      vlacoach reward score videos/after_put_the_bowl_on_the_plate.gif --task 8 --references rollouts.hdf5
    """  # fmt: skip
    import numpy as np

    from vlacoach.agents.episode_files import read_episodes
    from vlacoach.agents.reward_lab import ScorerSpec, as_trajectory, build, check_suites, fit, score_episodes
    from vlacoach.cli.progress import reporting
    from vlacoach.data.rollouts import read_rollouts
    from vlacoach.policies import load_policy

    spec = ScorerSpec.parse(scorer)
    loaded = load_policy(policy)
    judge = build(spec, loaded)
    found = read_episodes(episodes, task, loaded.chunk_size, loaded.cameras)
    wanted = {episode.task for episode in found.values()}
    with reporting(narration(), verbosity(context).quiet) as reporter:
        recorded = [one for one in read_rollouts(references) if one.task in wanted]
        check_suites([*recorded, *found.values()])
        # An episode that is among its own references would look closer than it is.
        scored_frames = [episode.frames for episode in found.values()]
        recorded = [one for one in recorded if not any(np.array_equal(one.frames, other) for other in scored_frames)]
        reporter.stage("vision features", len(recorded) + len(found))
        known = []
        for slot, one in enumerate(recorded):
            known.append(as_trajectory(loaded, one, slot))
            reporter.advance(1)
        fit(judge, known, spec.untrained, seed)
        scored = score_episodes(judge, known, {name: as_trajectory(loaded, episode) for name, episode in found.items()})
    if as_json:
        show_json([asdict(one) for one in scored])
        return
    from vlacoach.cli.tables import episode_scores_table

    show(episode_scores_table(scored))
