"""What a plan is made for: a policy, a GPU, and how much is rolled out and trained at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vlacoach.agents.plan_activations import Numerics, numerics_of, sequence_length
from vlacoach.agents.plan_devices import GIB, Device
from vlacoach.agents.plan_sizes import find_config, quantization_for
from vlacoach.envs.suites import SUITES
from vlacoach.errors import CheckpointError, ConfigError, UnknownNameError
from vlacoach.policies.configuration import VLAConfig
from vlacoach.policies.openvla import OpenVLAOptions
from vlacoach.policies.quantization import Quantization
from vlacoach.profiles import RenderProfile
from vlacoach.runs.config import TrainConfig

PROMPT_TOKENS = 40
"""Tokens of a prompt, BOS included: a bound for OpenVLA's prompt around LIBERO's instructions. The longest of which the
ids are published has 35; the longest instruction has two words more."""

DEFAULT_MFU = 0.4
"""Model FLOP utilization: the share of a GPU's dense speed that products of these sizes reach. An assumption."""

MOST_LOOKS = 64
"""Most looks of a micro-batch where nobody sets it: more are hardly quicker."""


@dataclass(frozen=True)
class PlanSettings:
    """What decides memory and time of an update.

    Attributes:
        policy: Its name, for the reader.
        config: Its sizes.
        device: The GPU.
        precision: See :class:`~vlacoach.policies.policy.VLAPolicy`.
        quantization: Of the language model's linear layers.
        rank: Of the LoRA; None trains the language model's own weights.
        checkpointing: Whether the backward pass computes blocks again.
        group_size: Episodes of a prompt.
        prompts: Prompts of an update.
        num_envs: Worlds side by side.
        workers: Simulator processes.
        max_steps: Step limit of an episode.
        mean_steps: Mean length of an episode, for the times.
        settle_steps: Idle steps after a reset.
        micro_batch: Looks in one forward and backward pass.
        minibatches: Optimizer steps in a pass over an update's episodes.
        epochs: Passes over an update's episodes.
        reference: Whether a KL term asks for the policy without its adapter.
        feature_budget: Bytes of host memory for vision features, or None.
        render_profile: How pictures are drawn.
        prompt_tokens: Of the longest prompt, BOS included.
        mfu: See :data:`DEFAULT_MFU`.
    """

    policy: str
    config: VLAConfig
    device: Device
    precision: Literal["fp32", "bf16"] = "bf16"
    quantization: Quantization = "none"
    rank: int | None = 16
    checkpointing: bool = False
    group_size: int = 8
    prompts: int = 16
    num_envs: int = 16
    workers: int = 2
    max_steps: int = 300
    mean_steps: float = 300.0
    settle_steps: int = 10
    micro_batch: int = MOST_LOOKS
    minibatches: int = 4
    epochs: int = 1
    reference: bool = False
    feature_budget: int | None = None
    render_profile: RenderProfile = "reference"
    prompt_tokens: int = PROMPT_TOKENS
    mfu: float = DEFAULT_MFU

    @property
    def numerics(self) -> Numerics:
        """How numbers are held on the GPU."""
        return numerics_of("cuda", self.precision, self.quantization, self.rank, self.checkpointing)

    @property
    def episodes(self) -> int:
        """Episodes of an update."""
        return self.group_size * self.prompts

    @property
    def looks(self) -> int:
        """Looks of an episode that runs to its limit."""
        return -(-self.max_steps // self.config.chunk_size)

    @property
    def mean_looks(self) -> float:
        """Looks of an episode of mean length."""
        return max(1.0, self.mean_steps / self.config.chunk_size)

    @property
    def lane(self) -> int:
        """Worlds that the policy decides for at once: half of them, while the simulator works on the others."""
        return -(-self.num_envs // 2)

    @property
    def looks_of_a_step(self) -> int:
        """Looks that an optimizer step learns from, if all its episodes run to their limit."""
        return self.looks * -(-self.episodes // self.minibatches)

    @property
    def looks_at_once(self) -> int:
        """Looks of the largest micro-batch; an episode may be divided among several."""
        return min(self.micro_batch, self.looks_of_a_step)

    @property
    def length(self) -> int:
        """Positions of the language model's input in the update."""
        return sequence_length(self.config, self.prompt_tokens)

    @property
    def first_length(self) -> int:
        """Positions when the policy begins to decide."""
        return sequence_length(self.config, self.prompt_tokens, deciding=True)

    @property
    def feature_bytes(self) -> int:
        """Bytes of a look's vision features, as a rollout keeps them."""
        return self.numerics.compute * self.config.num_patches * self.config.feature_dim


def settings_from(
    config: TrainConfig,
    device: Device,
    *,
    workers: int,
    suite_limit: bool = False,
    prompt_tokens: int = PROMPT_TOKENS,
    mean_steps: float | None = None,
    mfu: float = DEFAULT_MFU,
) -> PlanSettings:
    """What a configuration amounts to on a GPU.

    Args:
        config: Of a training run.
        device: The GPU.
        workers: Simulator processes, where the configuration leaves them to the machine.
        suite_limit: Whether episodes run to the suite's step limit, whatever the configuration's is.
        prompt_tokens: Of the longest prompt.
        mean_steps: Mean length of an episode; None is the limit, so that times are upper bounds.
        mfu: See :data:`DEFAULT_MFU`.

    Raises:
        ConfigError: The GPU has no bfloat16, a number is out of range, or weights cannot be both quantized and trained.
        UnknownNameError: There is no such policy or suite.
        CheckpointError: The policy's folder cannot be used, or its head decodes no tokens.
    """
    _check(config, device, prompt_tokens, mean_steps, mfu)
    chosen = config.policy
    sizes = find_config(chosen.path, chosen.revision, OpenVLAOptions.from_settings(chosen, tokens_only=True))
    if sizes.head == "oft-l1":
        raise CheckpointError(
            f"Policy {chosen.path!r} has an L1 head, which reinforcement learning cannot train.", "Use oft-discrete."
        )
    quantization = quantization_for("none" if chosen.full and chosen.quantize == "auto" else chosen.quantize, sizes)
    if chosen.full and quantization != "none":
        raise ConfigError("Quantized weights cannot be trained.", "Choose --quantize none, or leave policy.full off.")
    settings = settings_of(config, sizes, quantization, device, workers=workers, suite_limit=suite_limit)
    limit = float(settings.max_steps)
    return replace(settings, mean_steps=min(limit, mean_steps or limit), prompt_tokens=prompt_tokens, mfu=mfu)


def settings_of(
    config: TrainConfig,
    sizes: VLAConfig,
    quantization: Quantization,
    device: Device,
    *,
    workers: int,
    suite_limit: bool = False,
) -> PlanSettings:
    """What a configuration amounts to for a policy that is known.

    Args:
        config: Of a training run.
        sizes: The policy's.
        quantization: Of its language model's linear layers.
        device: The GPU.
        workers: Simulator processes, where the configuration leaves them to the machine.
        suite_limit: Whether episodes run to the suite's step limit, whatever the configuration's is.

    Raises:
        UnknownNameError: There is no such suite.
    """
    chosen, grpo = config.policy, config.grpo
    max_steps = (None if suite_limit else config.env.max_steps) or _suite_limit(config.env.suite)
    profile = config.env.render_profile
    return PlanSettings(
        policy=chosen.path,
        config=sizes,
        device=device,
        precision=chosen.precision,
        quantization=quantization,
        rank=None if chosen.full else chosen.lora_rank,
        checkpointing=chosen.gradient_checkpointing,
        group_size=grpo.group_size,
        prompts=grpo.prompts,
        num_envs=config.env.num_envs,
        workers=config.env.workers or workers,
        max_steps=max_steps,
        mean_steps=float(max_steps),
        settle_steps=config.env.settle_steps,
        micro_batch=MOST_LOOKS if grpo.micro_batch == "auto" else grpo.micro_batch,
        minibatches=grpo.minibatches,
        epochs=grpo.epochs,
        reference=grpo.kl_coefficient > 0,
        feature_budget=None if grpo.feature_budget is None else int(grpo.feature_budget * GIB),
        render_profile=sizes.render_profile if profile == "policy" else profile,
    )


def _check(config: TrainConfig, device: Device, prompt_tokens: int, mean_steps: float | None, mfu: float) -> None:
    if config.policy.precision == "bf16" and not device.bf16:
        raise ConfigError(
            f"The {device.title} does not compute in bfloat16.",
            "Plan with --set policy.precision=fp32, or another GPU.",
        )
    limits: Mapping[str, tuple[float, float, float]] = {
        "--prompt-tokens": (prompt_tokens, 2, 4096),
        "--steps": (1.0 if mean_steps is None else mean_steps, 1, 10_000),
        "--mfu": (mfu, 0.01, 1),
    }
    for option, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ConfigError(f"{option} is {value:g}; it lies between {low:g} and {high:g}.")


def _suite_limit(suite: str) -> int:
    if suite not in SUITES:
        raise UnknownNameError("suite", suite, SUITES)
    return SUITES[suite]
