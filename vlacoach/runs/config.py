"""The configuration of a training run: typed, strict, and frozen once made.

Every field has its meaning written under it; those sentences are also the comments of
``configs/train.yaml`` and the descriptions of the JSON schema, so they live in one place only. How values
from files, the environment and the command line come together is in :mod:`vlacoach.runs.resolve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from vlacoach.errors import ConfigError
from vlacoach.profiles import RenderProfile
from vlacoach.runs.indices import parse_indices
from vlacoach.runs.trackers import TrackerName


def _index_tuple(value: Any) -> Any:
    # Pydantic adds the key to a ValueError; a ConfigError would pass through without it.
    if value is None or not isinstance(value, (str, int, list, tuple)):
        return value
    try:
        return parse_indices(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


Indices = Annotated[tuple[int, ...], BeforeValidator(_index_tuple), Field(min_length=1)]
"""Indices, accepted as a list or as text such as ``"1,4,8"`` or ``"30-49"``."""

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are never changed after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class EnvConfig(Section):
    """What is simulated, and how."""

    suite: Annotated[str, Field(min_length=1)] = "libero_goal"
    """LIBERO suite: libero_spatial, libero_object, libero_goal, libero_10, libero_90, or one of LIBERO-PRO's, such as
    libero_goal_swap; vlacoach envs ls has them all."""
    tasks: Indices | None = (1, 4, 6, 8)
    """Tasks of the suite, such as [1, 4, 8] or "0-3"; null, or naming a suite and no tasks, is all of them."""
    states: Indices = tuple(range(30))
    """Initial states that training may use: official ones (0 to 49), or fresh ones (1000 and up); none of
    evaluation.states."""
    num_envs: Positive = 16
    """Worlds that are rolled out side by side."""
    workers: Positive | None = 2
    """Processes the worlds are spread over; null is one per CPU core."""
    max_steps: Positive | None = 120
    """Control steps after which an episode is cut off; null, or naming a suite and no limit, is the suite's own."""
    image_size: Annotated[int, Field(ge=16, le=1024)] | Literal["policy"] = "policy"
    """Width and height of a camera picture, in pixels; policy is what the policy was trained on."""
    render_profile: RenderProfile | Literal["policy"] = "policy"
    """Rendering: reference is LIBERO's own picture; fast leaves out reflections and multisampling; coarse also detail
    of a few millimeters; policy is what the policy was trained on."""
    cameras: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["policy"] = "policy"
    """Cameras whose pictures the policy sees, such as [agentview, robot0_eye_in_hand]; policy is what it was trained
    on."""
    exact: bool = False
    """Solve for contacts twice a physics step, as LIBERO does: closer to its numbers, but 20 to 33 % slower."""
    settle_steps: NonNegative = 10
    """Idle control steps after a reset, until dropped objects lie still."""

    @model_validator(mode="before")
    @classmethod
    def _a_named_suite_brings_its_own(cls, values: Any) -> Any:
        # The defaults fit the tasks that the built-in policy was cloned on; they mean nothing for another suite.
        if isinstance(values, dict) and "suite" in values:
            return {"tasks": None, "max_steps": None, **values}
        return values


class PolicyConfig(Section):
    """Which policy is trained, and which of its weights."""

    path: Annotated[str, Field(min_length=1)] = "tiny"
    """Policy to start from: the built-in tiny, a folder (vlacoach's own form, or OpenVLA's published one), or a Hub id
    such as openvla/openvla-7b."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id; null is the newest."""
    unnorm_key: str | None = None
    """Data set whose statistics turn tokens into actions; null is the only one that the policy has."""
    head: Literal["auto", "oft-discrete", "oft-l1", "openvla"] = "auto"
    """How an OpenVLA folder decodes actions: openvla token by token; oft-discrete a chunk of tokens in one pass; oft-l1
    by regression, for evaluation only; auto by what lies in the folder."""
    num_images: Positive | None = None
    """Images a look that an OpenVLA folder reads (agent view, then wrist); null is 2 for oft-l1, else 1."""
    proprio: bool | None = None
    """Whether an OpenVLA-OFT folder reads proprioception; null is where oft-l1 comes with a projector for it."""
    center_crop: bool = True
    """Whether an OpenVLA folder was trained with random crops, as the published LIBERO policies were."""
    quantize: Literal["auto", "none", "nf4", "int8"] = "auto"
    """Store the language model's linear layers in 4 (nf4) or 8 bits (int8); auto is nf4 for large models on a CUDA
    device."""
    gradient_checkpointing: bool = False
    """Compute a block's activations again in the backward pass: much less memory for about a third more time."""
    adapter: str | None = None
    """Folder of a LoRA adapter to start from, as vlacoach sft or a run's checkpoint leaves it; null starts afresh."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """Where the policy computes: auto takes a CUDA device if there is one."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of matrix products in rollouts and updates; weights stay as they are."""
    lora_rank: Positive = 16
    """Rank of the LoRA adapter."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """LoRA scale; the adapter's output is multiplied by lora_alpha / lora_rank."""
    full: bool = False
    """Train the whole language model instead of a LoRA adapter."""


class RewardConfig(Section):
    """How a trajectory is scored."""

    name: Annotated[str, Field(min_length=1)] = "siglip-t"
    """Scorer: siglip-t, siglip, success, or the name of a plugin."""
    temporal: bool = True
    """Use the temporal head; false turns siglip-t into its SigLIP-only ablation."""
    fusion: Literal["film", "add"] = "film"
    """How time enters a look's embedding: film scales and shifts it, add is the sum as first drawn."""
    pooling: Literal["mean", "last-k", "segments"] = "mean"
    """How a trajectory's looks become one vector."""
    last_k: Positive = 4
    """Looks that last-k pooling averages."""
    segments: Positive = 4
    """Pieces that segments pooling cuts a trajectory into."""
    grid: Positive = 1
    """Cells a side that a picture's patches are averaged in; 1 is the mean over all, which does not say where anything
    is."""
    rule: Literal["srpo", "scaled"] = "srpo"
    """How successes become references: srpo as published; scaled finds clusters at the scale of the successes' own
    distances."""
    reference: Literal["batch", "bank"] = "batch"
    """Successes that failures are compared with: batch is the update's own; bank adds those kept from earlier updates,
    so that a task that failed throughout is graded too."""
    bank_size: Positive = 32
    """Latest successes of each task that the bank keeps."""
    refit_every: NonNegative = 10
    """Updates between two fits of the temporal head on fresh rollouts; 0 fits it once, at the start."""
    params: dict[str, Any] = {}
    """Further settings, handed to the scorer as they are."""


class GRPOConfig(Section):
    """The policy-gradient update (GRPO with SRPO's objective)."""

    updates: Positive = 40
    """Updates of the policy in the run."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock budget of training in minutes, evaluations included; null is no limit."""
    prompts: Positive = 16
    """Prompts (a task and an initial state) in an update."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Episodes rolled out for each prompt."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature of rollouts."""
    filter_low: Fraction = 0.1
    """Groups whose success rate is below this are left out (dynamic sampling)."""
    filter_high: Fraction = 0.9
    """Groups whose success rate is above this are left out."""
    keep_graded: bool = False
    """Keep groups that failed throughout if the scorer grades their failures."""
    normalize_std: bool = True
    """Divide a group's advantages by their standard deviation; false is Dr. GRPO."""
    clip_low: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Probability ratios below 1 - clip_low are clipped."""
    clip_high: Annotated[float, Field(gt=0.0)] = 0.28
    """Probability ratios above 1 + clip_high are clipped."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """Bound on the loss of negative advantages, as a multiple of the advantage; null is none."""
    kl_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the KL divergence from the policy without its adapter."""
    reduction: Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"] = (
        "seq-mean-token-mean"
    )
    """How token losses become one: the mean over trajectories of their mean (or sum), or over all tokens."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-3
    """AdamW's step size after warm-up."""
    warmup_updates: NonNegative = 2
    """Updates over which the step size rises linearly from 0."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """AdamW's weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are scaled down to this global norm."""
    epochs: Positive = 1
    """Passes over an update's trajectories."""
    minibatches: Positive = 4
    """Optimizer steps in one pass."""
    micro_batch: Positive | Literal["auto"] = "auto"
    """Looks (action chunks) in one forward and backward pass; smaller needs less memory and changes no result. auto is
    64, or as many of them as fit into the memory of a CUDA device."""
    feature_budget: Annotated[float, Field(ge=0.0)] | None = None
    """Host memory for an update's vision features, in GiB; what begins beyond it keeps pictures, and runs the tower
    again. null is no limit."""
    target_kl: Annotated[float, Field(gt=0.0)] | None = None
    """End an update's passes early once the KL divergence a token exceeds this; null never does."""

    @model_validator(mode="after")
    def _filter_is_ordered(self) -> GRPOConfig:
        if self.filter_low > self.filter_high:
            raise ValueError(f"filter_low ({self.filter_low}) is above filter_high ({self.filter_high})")
        return self


class EvaluationConfig(Section):
    """How success is measured, on states that training never sees."""

    trials: Positive = 20
    """Episodes for each task; states are used in turn."""
    every: NonNegative = 0
    """Updates between two evaluations; 0 evaluates before and after training only."""
    states: Indices = tuple(range(30, 50))
    """Initial states of the held-out evaluation, numbered as in env.states."""
    train_states: bool = True
    """Also evaluate on training states, before and after."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Sampling temperature of evaluation episodes; 0 is greedy."""


class CheckpointConfig(Section):
    """What is kept for resuming."""

    every: Positive = 5
    """Updates between two checkpoints; the last update always has one."""
    keep: Positive = 2
    """Newest checkpoints that are kept, beside the best one."""


class LoggingConfig(Section):
    """What is recorded beside metrics and checkpoints, and where else metrics go."""

    episodes: NonNegative = 4
    """Episodes of each update whose pictures are kept as videos in the run folder; 0 keeps none."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers, each an extra of its own: tensorboard (event files in the run folder), wandb, trackio."""

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        return tuple(dict.fromkeys(trackers))


class GuardsConfig(Section):
    """When a run warns; numbers that are not finite and a first ratio off 1 stop it in any case."""

    window: Positive = 5
    """Updates that entropy and success are averaged over: the latest ones, and those they are compared with."""
    entropy: Fraction = 0.2
    """Warn if the entropy of action tokens falls below this share of what it was at the start; 0 never warns."""
    success: Annotated[float, Field(gt=0.0, lt=1.0)] | None = 0.99
    """Warn if success has fallen, with this confidence: Wilson's intervals of its best time and of the present lie
    apart, a prompt counting as one trial. null never warns."""
    memory: Annotated[float, Field(gt=0.0)] | None = 0.1
    """Warn if resident memory grows steadily by more than this share an hour; null never warns."""
    stall: Annotated[float, Field(gt=0.0)] | None = 180.0
    """Warn if there is no sign of life for this many seconds; null never warns."""
    rank: Annotated[float, Field(gt=0.0)] = 600.0
    """Of several processes that train together, stop all if one gives no sign of life for this many seconds."""


class TrainConfig(Section):
    """Everything that decides the result of a training run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of every random number of the run."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "grpo"
    """Name of the run, a part of its folder's name: letters, digits, dots, dashes, underscores."""
    env: EnvConfig = EnvConfig()
    policy: PolicyConfig = PolicyConfig()
    reward: RewardConfig = RewardConfig()
    grpo: GRPOConfig = GRPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    guards: GuardsConfig = GuardsConfig()

    @classmethod
    def load(cls, file: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
        """Read a configuration file, deaf to the environment.

        Args:
            file: YAML file.
            overrides: Assignments ``"section.key=value"``, stronger than the file.

        Raises:
            ConfigError: The file cannot be read, a key is unknown, or a value is not valid.
        """
        from vlacoach.runs.resolve import resolve_config

        return resolve_config(file, overrides, environ={}).config

    @model_validator(mode="after")
    def _reference_needs_an_adapter(self) -> TrainConfig:
        if self.policy.full and self.grpo.kl_coefficient > 0:
            raise ValueError("grpo.kl_coefficient needs a LoRA adapter to switch off; policy.full trains none")
        if self.policy.adapter is not None and (self.policy.full or self.grpo.kl_coefficient > 0):
            raise ValueError(
                "policy.adapter is what is trained on, so there is no policy before it for grpo.kl_coefficient, and "
                "policy.full has no adapter; merge it first (vlacoach sft does, where weights are not quantized)"
            )
        return self

    @model_validator(mode="after")
    def _training_never_sees_evaluation_states(self) -> TrainConfig:
        shared = sorted(set(self.env.states) & set(self.evaluation.states))
        if shared:
            raise ValueError(f"env.states and evaluation.states share the initial states {shared}")
        return self
