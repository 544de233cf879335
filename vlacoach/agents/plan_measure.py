"""The plan held against a GPU: a policy of the planned sizes with made-up weights, and one turn of each stage.

Memory depends on shapes, not on what the numbers are, so the weights are noise and the pictures are black.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import init_empty_weights

from vlacoach.agents.plan_activations import HALF
from vlacoach.agents.plan_memory import Memory
from vlacoach.agents.plan_settings import PlanSettings
from vlacoach.agents.plan_time import plan_turns
from vlacoach.errors import ConfigError
from vlacoach.policies import lora
from vlacoach.policies import tokenizer as tokenizers
from vlacoach.policies.log_prob import action_log_prob
from vlacoach.policies.modeling import PrismaticVLA
from vlacoach.policies.policy import VLAPolicy
from vlacoach.policies.quantization import quantize_layers
from vlacoach.policies.statistics import DatasetStatistics
from vlacoach.policies.tiny import ASSETS
from vlacoach.policies.weights import fill
from vlacoach.runs.constants import STAGE_ROLLOUT, STAGE_UPDATE

_NOISE = 0.02  # Llama's own scale of fresh weights.


class Meter(Protocol):
    """Counts the bytes of tensors."""

    def reset(self) -> None:
        """Begin to look for the peak."""

    def peak(self) -> int:
        """Most bytes since :meth:`reset`, when all that was asked for is done."""


class CudaMeter:
    """torch's own count on a CUDA device."""

    def reset(self) -> None:
        """See :class:`Meter`."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """See :class:`Meter`."""
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())


@dataclass(frozen=True)
class Measurement:
    """A stage's estimate and what was measured.

    Attributes:
        stage: Its name.
        computed: Bytes of tensors by the plan; context, rendering and what the allocator loses are not among them.
        measured: Bytes of tensors.
        computed_seconds: Of one turn, by the plan for the GPU that was planned for: a round of the policy's decisions,
            or a micro-batch's forward and backward pass.
        seconds: Of one turn on this machine, the shortest of three.
        flops: Floating-point operations of one turn, by the plan.
    """

    stage: str
    computed: int
    measured: int
    computed_seconds: float
    seconds: float
    flops: float


@dataclass(frozen=True)
class Turn:
    """What one turn of a stage took.

    Attributes:
        peak: Most bytes of tensors.
        seconds: The shortest of three turns.
    """

    peak: int
    seconds: float


def measure_on_gpu(settings: PlanSettings, memory: Memory) -> list[Measurement]:
    """Run the plan's stages on this machine's CUDA device.

    Args:
        settings: What was planned.
        memory: The plan's.

    Raises:
        ConfigError: There is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "--measure runs the planned policy on a CUDA device, and torch finds none here.",
            "Leave it out: the plan itself needs none. On CPUs the project's tests hold it to measurements.",
        )
    policy = build_policy(settings, torch.device("cuda"))
    found = run_stages(policy, settings, CudaMeter())
    computed = {stage.name: stage.tensors for stage in memory.stages}
    turns = plan_turns(settings)
    return [
        Measurement(stage, computed[stage], turn.peak, turns[stage].seconds, turn.seconds, turns[stage].flops)
        for stage, turn in found.items()
    ]


def build_policy(settings: PlanSettings, device: torch.device) -> VLAPolicy:
    """A policy of the settings' sizes, quantized and with an adapter as they say, of noise."""
    numerics, config = settings.numerics, settings.config
    dtype = _dtype(numerics.weights)
    with init_empty_weights(include_buffers=False):
        model = PrismaticVLA(config)
    shapes = {name: value.shape for name, value in model.named_parameters()}
    noise = _NOISE * torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))

    def read(name: str) -> torch.Tensor:
        count = shapes[name].numel()
        return noise.repeat(-(-count // len(noise)))[:count].view(shapes[name])

    quantize_layers(model, settings.quantization, dtype)
    fill(model, read, device, dtype)
    ones = torch.ones(config.action_dim, dtype=torch.float64)
    state = torch.ones(config.proprio_dim or 1, dtype=torch.float64)
    ranges = DatasetStatistics("noise", -ones, ones, ones.bool(), -state, state)
    # The words do not matter, only their number; so any tokenizer with fewer entries will do.
    policy = VLAPolicy(model, tokenizers.load_tokenizer(ASSETS), ranges, settings.policy, settings.precision)
    policy.quantization = settings.quantization
    policy.gradient_checkpointing = settings.checkpointing
    if settings.rank is None:
        return lora.train_language_model(policy)
    return lora.add_lora(policy, settings.rank)


def run_stages(policy: VLAPolicy, settings: PlanSettings, meter: Meter) -> dict[str, Turn]:
    """A rollout's round and an optimizer step, in the steady state: the optimizer's moments are there."""
    rows = settings.looks_at_once
    instruction = instruction_of(policy, settings.prompt_tokens)
    trained = list(lora.trainable_parameters(policy).values())
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    shape = rows, settings.config.num_patches, settings.config.feature_dim
    features = torch.zeros(shape, dtype=_dtype(settings.numerics.compute))
    first, count = settings.config.first_choice, settings.config.num_action_tokens
    tokens = torch.full((rows, count), first, dtype=torch.int64)

    def update() -> None:
        loss = _loss(policy, features, instruction, tokens)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def rollout() -> None:
        side = policy.image_size
        images = torch.zeros(settings.lane, settings.config.num_images, side, side, 3, dtype=torch.uint8)
        seen = policy.encode(images)
        policy.act(seen, [instruction] * settings.lane, _proprio(settings, settings.lane), 1.0)

    update()
    return {STAGE_ROLLOUT: _turn(rollout, meter), STAGE_UPDATE: _turn(update, meter)}


def instruction_of(policy: VLAPolicy, tokens: int) -> str:
    """An instruction whose prompt has this many tokens, or the fewest there can be."""
    words = ["bowl"]
    while policy.tokenize([" ".join(words)])[0].shape[1] < tokens:
        words.append("bowl")
    return " ".join(words)


def _loss(policy: VLAPolicy, features: torch.Tensor, instruction: str, tokens: torch.Tensor) -> torch.Tensor:
    """As the agent computes it: logits are gone when the backward pass begins."""
    proprio = None if policy.config.proprio_dim is None else torch.zeros(len(tokens), policy.config.proprio_dim)
    logits = policy.logits(features, [instruction] * len(tokens), proprio, tokens)
    log_prob, _ = action_log_prob(logits, tokens.to(logits.device))
    return log_prob.mean()


def _turn(work: Callable[[], None], meter: Meter) -> Turn:
    peak, seconds = 0, []
    for _ in range(3):  # The first turns of a shape choose kernels and fill the allocator.
        meter.reset()
        begin = time.perf_counter()
        work()
        peak = max(peak, meter.peak())
        seconds.append(time.perf_counter() - begin)
    return Turn(peak, min(seconds))


def _proprio(settings: PlanSettings, rows: int) -> torch.Tensor | None:
    size = settings.config.proprio_dim
    return None if size is None else torch.zeros(rows, size)


def _dtype(size: int) -> torch.dtype:
    return torch.bfloat16 if size == HALF else torch.float32
