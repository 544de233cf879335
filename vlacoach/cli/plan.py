"""``vlacoach plan``: will it fit, and how long will it take?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from vlacoach.cli.console import narration, show, show_json
from vlacoach.cli.options import ConfigFile, Json, Quantize, Sets
from vlacoach.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from vlacoach.agents.plan import Plan
    from vlacoach.agents.plan_measure import Measurement
    from vlacoach.agents.plan_settings import PlanSettings
    from vlacoach.runs.resolve import ResolvedConfig

_WHAT, _HOW, _ASSUMED = "What to plan", "How it is trained", "Assumptions"


def plan_command(
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="Policy to plan for: tiny, openvla-7b, openvla-oft-7b, a folder, or a downloaded Hub id.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    gpu: Annotated[
        str, typer.Option("--gpu", help="GPU, such as a10g, 4090, a100-40, or h100-80.", rich_help_panel=_WHAT)
    ] = "a10g",
    group: Annotated[int | None, typer.Option("--group", help="Episodes of a prompt.", rich_help_panel=_HOW)] = None,
    envs: Annotated[int | None, typer.Option("--envs", help="Worlds side by side.", rich_help_panel=_HOW)] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Simulator processes.", rich_help_panel=_HOW)] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch",
            help="Looks in one forward and backward pass; left out, the configuration's, or as many as fit well.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Compute activations again in the backward pass; left out, whichever is quicker and fits.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    quantize: Quantize = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="LIBERO suite, for its step limit.", rich_help_panel=_HOW)
    ] = None,
    steps: Annotated[
        float | None,
        typer.Option(
            "--steps", help="Mean length of an episode, for the times; left out, its limit.", rich_help_panel=_ASSUMED
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Tokens of the longest prompt.", rich_help_panel=_ASSUMED)
    ] = 40,
    mfu: Annotated[
        float,
        typer.Option("--mfu", help="Share of the GPU's dense speed that is reached.", rich_help_panel=_ASSUMED),
    ] = 0.4,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run it with made-up weights on this machine's GPU, and compare.")
    ] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Say what an update takes of a GPU's memory and time, and what it would take SRPO's way.

    Computed from the policy's shapes: no weights are read and no GPU is needed. Checkpointing and micro-batch, where
    nobody sets them, are chosen so that it fits and is quick. The exit status is 1 if it does not fit.

    For example:

      vlacoach plan --policy openvla-oft-7b --gpu a10g --group 8 --envs 16

      vlacoach plan --policy openvla-oft-7b --gpu a100-40 --suite libero_10 --steps 250 --json
    """  # fmt: skip
    from vlacoach.agents.plan import make_plan
    from vlacoach.runs.resolve import Flag, resolve_config

    flags = [
        Flag("--policy", "policy.path", policy),
        Flag("--group", "grpo.group_size", group),
        Flag("--envs", "env.num_envs", envs),
        Flag("--workers", "env.workers", workers),
        Flag("--micro-batch", "grpo.micro_batch", micro_batch),
        Flag("--gradient-checkpointing", "policy.gradient_checkpointing", checkpointing),
        Flag("--quantize", "policy.quantize", None if quantize is None else quantize.value),
        Flag("--suite", "env.suite", suite),
    ]
    plan = make_plan(_settings(resolve_config(config, sets or (), flags), gpu, prompt_tokens, steps, mfu))
    measured = _measure(plan) if measure else []
    if as_json:
        _show_json(plan, measured)
    else:
        _show(plan, measured)
    if not plan.fits:
        raise typer.Exit(ExitCode.FAILURE)


def _settings(resolved: ResolvedConfig, gpu: str, prompt_tokens: int, steps: float | None, mfu: float) -> PlanSettings:
    """Settings of a plan; a configuration's defaults, which fit the built-in policy, give way where nobody set them."""
    from vlacoach.agents.plan import choose
    from vlacoach.agents.plan_devices import find_device
    from vlacoach.agents.plan_settings import settings_from
    from vlacoach.policies.source import BUILT_IN
    from vlacoach.runs.resolve import DEFAULT_ORIGIN

    free = {key for key, origin in resolved.origins.items() if origin == DEFAULT_ORIGIN}
    settings = settings_from(
        resolved.config,
        find_device(gpu),
        workers=os.cpu_count() or 1,
        suite_limit="env.max_steps" in free and resolved.config.policy.path not in BUILT_IN,
        prompt_tokens=prompt_tokens,
        mean_steps=steps,
        mfu=mfu,
    )
    return choose(settings, "policy.gradient_checkpointing" in free, resolved.config.grpo.micro_batch == "auto")


def _measure(plan: Plan) -> list[Measurement]:
    from vlacoach.agents.plan_measure import measure_on_gpu

    return measure_on_gpu(plan.settings, plan.memory)


def _show_json(plan: Plan, measured: list[Measurement]) -> None:
    from dataclasses import asdict

    from vlacoach.agents.plan import as_document

    document = as_document(plan)
    if measured:
        document["measured"] = [asdict(one) for one in measured]
    show_json(document)


def _show(plan: Plan, measured: list[Measurement]) -> None:
    from rich.text import Text

    from vlacoach.agents.plan import assumptions, remedies, verdict

    show(_memory_table(plan))
    show(_time_table(plan))
    if measured:
        show(_measured_table(measured))
    show(Text(verdict(plan), style="bold green" if plan.fits else "bold red"))
    for line in _explanations(plan):
        show(line)
    wanted = remedies(plan)
    if wanted:
        narration().print(f"To make it fit: {', or '.join(wanted)}.")
    show("Assumed: " + "; ".join(f"{name}: {text}" for name, text in assumptions(plan.settings).items()) + ".")


def _explanations(plan: Plan) -> list[str]:
    """What was planned, what the largest micro-batch is, and what SRPO's way needs."""
    settings, srpo = plan.settings, plan.srpo
    how = f"quantize {settings.quantization}, " + (
        "all weights of the language model" if settings.rank is None else f"LoRA of rank {settings.rank}"
    )
    lines = [
        f"Planned: {settings.policy}, {settings.episodes} episodes ({settings.prompts} x {settings.group_size}) of "
        f"up to {settings.looks} looks, {settings.num_envs} worlds; {settings.precision}, {how}, "
        f"policy.gradient_checkpointing={str(settings.checkpointing).lower()}, "
        f"grpo.micro_batch={settings.micro_batch}.",
        f"Largest micro-batch that fits: {plan.largest_micro_batch} looks of {settings.length} positions.",
        f"In the host's memory: {_listed(plan.memory.host)}.",
    ]
    gpus = (
        "no number of them is enough" if srpo.gpus is None else f"{srpo.gpus} of these GPUs, sharded over all of them"
    )
    lines.append(f"SRPO's way: {_gib(srpo.stage.total)} GiB on one GPU; {gpus}. In the host's: {_listed(srpo.host)}.")
    return lines


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{part} {_gib(size)} GiB" for part, size in parts.items() if size) or "nothing"


def _memory_table(plan: Plan) -> Table:
    from rich.table import Table

    from vlacoach.agents.plan_memory import NOT_TENSORS
    from vlacoach.agents.plan_srpo import WEIGHTS

    stages, theirs = plan.memory.stages, plan.srpo.stage.parts
    table = Table(title=f"Memory on the {plan.settings.device.title}, GiB, computed", title_justify="left")
    table.add_column("part")
    for heading in (*(stage.name for stage in stages), "SRPO's way"):
        table.add_column(heading, justify="right", no_wrap=True)
    weights = [part for part in stages[0].parts if part.startswith("weights: ")]
    sums = [sum(stage.parts[part] for part in weights) for stage in stages]
    table.add_row("weights", *map(_gib, sums), _gib(theirs[WEIGHTS]))
    for part in weights:
        table.add_row("  " + part.removeprefix("weights: "), *(_gib(stage.parts[part]) for stage in stages), "")
    others = dict.fromkeys(part for parts in (*(stage.parts for stage in reversed(stages)), theirs) for part in parts)
    for part in [*(part for part in others if part not in (*weights, WEIGHTS, *NOT_TENSORS)), *NOT_TENSORS]:
        sizes = [stage.parts.get(part, 0) for stage in stages]
        if any(sizes) or part in theirs:
            table.add_row(part, *map(_gib, sizes), _gib(theirs.get(part, 0)))
    table.add_section()
    table.add_row("in all", *(_gib(stage.total) for stage in stages), _gib(plan.srpo.stage.total), style="bold")
    return table


def _time_table(plan: Plan) -> Table:
    from rich.table import Table

    from vlacoach.agents.plan_time import TOTAL, UPDATE

    ours, theirs = plan.timing.seconds, plan.srpo.seconds
    table = Table(title="Seconds of an update, computed", title_justify="left")
    table.add_column("stage")
    for heading in ("here", "SRPO's way"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = (UPDATE, TOTAL)
    for name in dict.fromkeys([*(key for key in [*ours, *theirs] if key not in last), *last]):
        style = "bold" if name == TOTAL else ""
        table.add_row(name, _seconds(ours.get(name)), _seconds(theirs.get(name)), style=style)
    table.caption = "simulation and policy overlap; SRPO's way as if one GPU were large enough"
    table.caption_justify = "left"
    return table


def _measured_table(measured: list[Measurement]) -> Table:
    from rich.table import Table

    table = Table(title="One turn of each stage on this machine's GPU", title_justify="left")
    table.add_column("stage")
    for heading in ("GiB, computed", "measured", "ratio", "ms, computed", "measured", "TFLOP/s reached"):
        table.add_column(heading, justify="right")
    for one in measured:
        table.add_row(
            one.stage,
            _gib(one.computed),
            _gib(one.measured),
            f"{one.computed / one.measured:.2f}",
            f"{1e3 * one.computed_seconds:.0f}",
            f"{1e3 * one.seconds:.0f}",
            f"{one.flops / one.seconds / 1e12:.1f}",
        )
    return table


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}" if size else "-"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"
