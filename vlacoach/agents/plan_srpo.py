"""The same update done as SRPO's code does it, for comparison.

That is siiRL at af00a77: all weights are trained in float32 with AdamW, towers included; logits are those of the whole
vocabulary at every position; V-JEPA 2 giant is resident and embeds every episode; a reference copy waits in the host's
memory; and log-probabilities are computed anew from pixels, once by the policy and once by the reference.

Counted for one GPU of the kind, as if it were large enough, for the same episodes, and in its favor where there is a
choice. Left out is what that code loses otherwise: it decides for two worlds at a time where it has sixteen, goes on
after an episode's end, and draws two pictures at every control step; and what many GPUs have to tell each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vlacoach.agents.plan_activations import HALF, SINGLE, Numerics, block_parameters, update_activations
from vlacoach.agents.plan_devices import CONTEXT_BYTES
from vlacoach.agents.plan_flops import encoder_block_flops, look_flops
from vlacoach.agents.plan_memory import (
    ACTIVATIONS,
    CONTEXT,
    GRADIENTS,
    LOST,
    OPTIMIZER,
    RENDER_BYTES,
    RENDERING,
    SLACK,
    WORKING,
    Stage,
)
from vlacoach.agents.plan_settings import PlanSettings
from vlacoach.agents.plan_sizes import parameters
from vlacoach.agents.plan_time import (
    HOST_LINK,
    PICTURES,
    POLICY,
    REWARD,
    ROLLOUT,
    SIMULATION,
    TOTAL,
    UPDATE,
    preparing_seconds,
    simulation_seconds,
    speed,
)
from vlacoach.policies.configuration import VLAConfig
from vlacoach.runs.constants import STAGE_UPDATE

LOOKS_AT_ONCE = 16
"""``traj_mini_batch_size`` of its scripts: chunks in one forward pass of the update."""

WEIGHTS, GATHERED, LOGITS = "weights, float32", "blocks gathered in bfloat16", "logits of the vocabulary"
V_JEPA = "V-JEPA 2 giant, float32"

# V-JEPA 2 ViT-g at 384 pixels, 64 frames: patches of 16 pixels and two frames.
_VIDEO_TOKENS, _VIDEO_WIDTH, _VIDEO_BLOCKS, _VIDEO_MLP = 32 * 24 * 24, 1408, 40, 6144
V_JEPA_PARAMETERS = _VIDEO_BLOCKS * (4 * _VIDEO_WIDTH**2 + 2 * _VIDEO_WIDTH * _VIDEO_MLP)
V_JEPA_FLOPS = _VIDEO_BLOCKS * encoder_block_flops(_VIDEO_TOKENS, _VIDEO_WIDTH, _VIDEO_MLP)

OLD, REFERENCE = "old log-probabilities", "reference log-probabilities"


@dataclass(frozen=True)
class SrpoPlan:
    """What the update costs SRPO's way.

    Attributes:
        stage: The update, which takes most of the GPU.
        sharded: Parts of it that FSDP spreads over GPUs.
        gpus: GPUs of the kind that it takes, for memory alone; None if no number of them would do.
        host: Bytes in the host's memory.
        seconds: By stage, on one GPU of the kind, if it were large enough.
        flops: Floating-point operations by stage.
    """

    stage: Stage
    sharded: tuple[str, ...]
    gpus: int | None
    host: dict[str, int]
    seconds: dict[str, float]
    flops: dict[str, float]


def plan_srpo(settings: PlanSettings) -> SrpoPlan:
    """The settings' episodes, trained on SRPO's way; quantization, adapter and micro-batch are its own."""
    stage = _memory(settings)
    sharded = (WEIGHTS, GRADIENTS, OPTIMIZER)
    spread = sum(stage.parts[part] for part in sharded)
    room = settings.device.memory - (stage.total - spread)
    flops = _flops(settings)
    # The reference lies in the host's memory in bfloat16, and comes to the GPU block by block for each of its passes.
    copied = HALF * sum(parameters(settings.config).values())
    return SrpoPlan(
        stage=stage,
        sharded=sharded,
        gpus=math.ceil(spread * (1 + SLACK) / room) if room > 0 else None,
        host={"reference copy": copied},
        seconds=_seconds(settings, flops, copied),
        flops=flops,
    )


def _seconds(settings: PlanSettings, flops: dict[str, float], copied: int) -> dict[str, float]:
    settings = replace(settings, precision="bf16" if settings.device.bf16 else "fp32")
    seconds = {name: operations / speed(settings) for name, operations in flops.items()}
    # It takes one trajectory at a time, of any length.
    seconds[REFERENCE] += settings.episodes * copied / HOST_LINK
    seconds[SIMULATION], seconds[PICTURES] = simulation_seconds(settings), preparing_seconds(settings)
    # Worlds wait while the policy decides, and the policy while they move.
    seconds[ROLLOUT] = seconds[SIMULATION] + seconds[PICTURES] + seconds[POLICY]
    stages = (ROLLOUT, REWARD, OLD, REFERENCE, UPDATE)
    return {**seconds, TOTAL: sum(seconds[stage] for stage in stages)}


def _memory(settings: PlanSettings) -> Stage:
    config, language = settings.config, settings.config.language
    count = sum(parameters(config).values())
    rows = min(LOOKS_AT_ONCE, settings.looks)
    # FSDP hands each block its weights in bfloat16, so nothing is copied on the way.
    numerics = Numerics(compute=HALF, weights=HALF, rank=None, checkpointing=True)
    activations = update_activations(config, rows, settings.length, numerics)
    kept = sum(activations.kept.values())
    parts = {
        WEIGHTS: SINGLE * count,
        GRADIENTS: SINGLE * count,
        OPTIMIZER: 2 * SINGLE * count,
        GATHERED: 2 * HALF * block_parameters(language),  # One that computes, and the next.
        ACTIVATIONS: kept + _kept_by_towers(config, rows),
        WORKING: max(0, activations.peak - kept),
        # In float32, and their gradient.
        LOGITS: 2 * SINGLE * rows * settings.length * language.vocab_size,
        V_JEPA: SINGLE * V_JEPA_PARAMETERS,
        RENDERING: settings.workers * RENDER_BYTES,
        CONTEXT: CONTEXT_BYTES,
    }
    # What is sharded is allocated once and leaves no fragments.
    moving = parts[ACTIVATIONS] + parts[WORKING] + parts[LOGITS] + parts[GATHERED]
    return Stage(STAGE_UPDATE, {**parts, LOST: int(SLACK * moving)})


def _kept_by_towers(config: VLAConfig, rows: int) -> int:
    """Bytes that the vision towers, which are trained too and not checkpointed, keep for their backward pass."""
    siglip, dino = config.vision, config.dino
    patches, images = siglip.grid**2, rows * config.num_images
    kept = siglip.num_layers * patches * _kept_a_token(siglip.hidden_size, siglip.mlp_size)
    if dino is not None:
        tokens = patches + 1 + dino.num_registers
        kept += dino.num_layers * tokens * _kept_a_token(dino.hidden_size, dino.mlp_ratio * dino.hidden_size)
    return images * kept


def _kept_a_token(width: int, mlp: int) -> int:
    """Inputs of two norms, of four projections' three inputs, queries, keys and values; and both sides of the GELU."""
    return HALF * (8 * width + 2 * mlp)


def _flops(settings: PlanSettings) -> dict[str, float]:
    config = settings.config
    counts = look_flops(config, settings.first_length, settings.length, None)
    everywhere = 2.0 * settings.length * config.language.hidden_size * config.language.vocab_size
    looks = settings.episodes * settings.mean_looks
    forward = counts.vision + counts.forward + everywhere
    # Towers and output layer go backward twice their forward pass: inputs and weights.
    update = forward + counts.repeated + counts.backward + 2 * (counts.vision + everywhere)
    return {
        POLICY: looks * (counts.vision + counts.deciding + everywhere),
        REWARD: settings.episodes * V_JEPA_FLOPS,
        OLD: looks * forward,
        REFERENCE: looks * forward,
        UPDATE: looks * settings.epochs * update,
    }
