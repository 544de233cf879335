"""``vlacoach sft``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vlacoach.cli.console import narration, show, show_json, verbosity
from vlacoach.cli.options import (
    DATA,
    OUTPUT,
    POLICY,
    Gripper,
    GripperSign,
    Head,
    Json,
    NotTurned,
    Quantize,
    RenderedAs,
    RenderProfileName,
    UnnormKey,
)
from vlacoach.errors import ConfigError

_FIT = "Optimization"


class Dtype(str, Enum):
    """How weights are stored."""

    FP32 = "fp32"
    BF16 = "bf16"


def sft_command(
    context: typer.Context,
    demos: Annotated[
        list[Path] | None,
        typer.Option(
            "--demos",
            metavar="PATH",
            help="HDF5 file of demonstrations, folder of them, or LeRobot data set; may be repeated (default: demos).",
            rich_help_panel=DATA,
        ),
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="Suite that --tasks refers to.", rich_help_panel=DATA)
    ] = "libero_goal",
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help='Use these tasks only, such as "1,4,8".', rich_help_panel=DATA),
    ] = None,
    not_turned: NotTurned = False,
    gripper: GripperSign = Gripper.ENV,
    render_profile: RenderedAs = RenderProfileName.REFERENCE,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="Policy to start from: tiny, a folder, or a Hub id; left out, a new tiny one.",
            rich_help_panel=_FIT,
        ),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(
            "--lora-rank", min=1, help="Train a LoRA of this rank; left out, all weights.", rich_help_panel=_FIT
        ),
    ] = None,
    quantize: Quantize = None,
    head: Head = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num-images",
            min=1,
            max=2,
            help="Cameras that a folder of OpenVLA's reads (default: 1).",
            rich_help_panel=POLICY,
        ),
    ] = None,
    proprio: Annotated[
        bool | None,
        typer.Option(
            "--proprio/--no-proprio", help="Whether a folder of OpenVLA-OFT's reads it.", rich_help_panel=POLICY
        ),
    ] = None,
    unnorm_key: UnnormKey = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.", rich_help_panel=_FIT)] = 3000,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Action chunks in a step.", rich_help_panel=_FIT)
    ] = 64,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", min=0.0, help="Highest step size.", rich_help_panel=_FIT)
    ] = 7e-4,
    captions: Annotated[
        float | None,
        typer.Option(
            "--captions",
            min=0.0,
            help="Weight of the loss on captioned frames (default: 0.2, and 0 for a LoRA).",
            rich_help_panel=_FIT,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of every random number.", rich_help_panel=_FIT)] = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the policy goes.", rich_help_panel=OUTPUT)
    ] = Path("policy"),
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Of the stored weights.", rich_help_panel=OUTPUT)
    ] = Dtype.FP32,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is in --out.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Clone demonstrations: supervised training of a policy, the start for reinforcement learning.

    For example:

      vlacoach demos collect --suite libero_goal --episodes 40

      vlacoach sft --demos demos --steps 4000 --out policies/cloned

      vlacoach train --policy policies/cloned

    A LoRA is merged into the weights that are saved; on quantized weights it is saved by itself, for `vlacoach train
    --policy BASE --set policy.adapter=FOLDER`.
    """  # fmt: skip
    from vlacoach.cli.progress import format_metrics, reporting
    from vlacoach.envs.suites import get_suite
    from vlacoach.runs.files import plain
    from vlacoach.runs.formatting import format_seconds
    from vlacoach.runs.indices import parse_indices

    sources = demos or [Path("demos")]
    for source in sources:
        if not source.exists():
            raise ConfigError(
                f"There are no demonstrations at {str(source)!r}.", "Collect some with: vlacoach demos collect"
            )
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"The folder {str(out)!r} is not empty.", "Choose another --out, or add --overwrite.")
    if policy is not None:
        from vlacoach.policies.checkpoint import check_policy
        from vlacoach.policies.openvla import OpenVLAOptions, require_tokens

        options = OpenVLAOptions("auto" if head is None else head.value, num_images, proprio, tokens_only=True)
        kind = "none" if quantize is None else quantize.value
        found = check_policy(policy, quantize=kind, unnorm_key=unnorm_key, options=options)
        require_tokens(found.config, policy)
        if found.adapter is not None:
            raise ConfigError(f"Policy {policy!r} is an adapter.", "Clone into its base; adapter_config.json names it.")
        if found.quantization != "none" and lora_rank is None:
            raise ConfigError(
                f"The weights of policy {policy!r} are quantized and cannot be trained.",
                "Train a LoRA: --lora-rank 16.",
            )
    chosen = [task.name for task in get_suite(suite).select(parse_indices(tasks))] if tasks is not None else None
    import time

    import torch

    from vlacoach.agents.cloning import CloningConfig, clone, load_frames
    from vlacoach.data.lerobot import LeRobotLayout
    from vlacoach.policies import load_policy, lora, new_tiny_policy
    from vlacoach.policies.policy import Precision

    settings = CloningConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        caption_weight=captions if captions is not None else 0.0 if lora_rank else 0.2,
        seed=seed,
        fit_statistics=policy is None,
        lora_rank=lora_rank,
    )
    begin = time.monotonic()
    with reporting(narration(), verbosity(context).quiet) as reporter:
        reporter.stage("read")
        if policy is None:
            learner = new_tiny_policy(seed)
        else:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            # Weights that are trained are held in float32; what a LoRA sits on need not be.
            precision: Precision = "fp32" if lora_rank is None else "bf16"
            learner = load_policy(policy, device, precision, quantize=kind, unnorm_key=unnorm_key, options=options)
            learner.gradient_checkpointing = device == "cuda"
            if learner.remark is not None:
                reporter.message(learner.remark, "warning")
        layout = LeRobotLayout(turned=not not_turned, gripper=gripper.value, render_profile=render_profile.value)
        frames = load_frames(sources, chosen, learner.cameras, layout)
        metrics = clone(learner, frames, settings, reporter)
        if learner.adapter is not None and learner.quantization != "none":
            lora.save_adapter(learner, out)
        else:
            (learner if learner.adapter is None else lora.merge_lora(learner)).save(out, dtype.value)
    seconds = time.monotonic() - begin
    if as_json:
        show_json(plain({"policy": out, "steps": steps, "seconds": round(seconds, 3), "metrics": metrics}))
        return
    show(f"{steps} steps in {format_seconds(seconds)}  {format_metrics(metrics)}")
    show(f"policy: {out}")
