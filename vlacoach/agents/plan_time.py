"""Seconds of an update's stages: operations by the GPU's speed, and simulator steps by what one core was measured at.

All of it is computed, and an upper bound where the settings are: episodes that run to their limit, groups that all
stay. What is not known is how well a GPU's speed is used; that is one number, the model FLOP utilization.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlacoach.agents.plan_flops import LookFlops, look_flops
from vlacoach.agents.plan_memory import recomputed_share
from vlacoach.agents.plan_settings import PlanSettings
from vlacoach.agents.plan_sizes import LINEAR, parameters, weight_bytes
from vlacoach.profiles import RenderProfile
from vlacoach.runs.constants import STAGE_ROLLOUT, STAGE_UPDATE

CONTROL_STEP = 1 / 307
"""Seconds of a control step without a picture, on one core (docs/benchmarks.md)."""

PICTURE: dict[RenderProfile, float] = {"reference": 0.114, "fast": 0.031, "coarse": 0.017}
"""Seconds of one picture on one core with software GL: what is left of 57, 141 and 184 control steps a second in chunks
of eight (docs/benchmarks.md). An H100 took 6, 3 and 2 ms."""

PREPROCESSING = 0.0045
"""Seconds on one core to bring a picture through OpenVLA's JPEG, Lanczos and crop, in the policy's process. Measured on
x86-64 cores, eight pictures of 256 pixels at a time: 2.8 to 4.5 ms each (docs/openvla.md)."""

EMBEDDING_SPEED = {2: 0.6e9, 4: 12.6e9}
"""Bytes of vision features a second that the SigLIP scorers average on one core, by bytes of a number. Measured on an
x86-64 core with 38 looks of 256 patches of 2176 numbers: 71 ms in bfloat16, which torch averages slowly on CPUs, and
6.7 ms in float32."""

HOST_LINK = 12e9
"""Bytes a second between host and GPU: half of what a PCIe 4.0 x16 link can. An assumption."""

SIMULATION, PICTURES, POLICY, REWARD = "rollout: simulation", "rollout: preparing pictures", "rollout: policy", "reward"
ROLLOUT, UPDATE, TOTAL = "rollout: in all", "update", "in all"


@dataclass(frozen=True)
class Timing:
    """Seconds of an update.

    Attributes:
        seconds: By stage. Simulation and policy overlap: while the simulator works on one half of the worlds, the
            policy decides for the other; so the rollout takes as long as the longer of them.
        flops: Floating-point operations by stage.
    """

    seconds: dict[str, float]
    flops: dict[str, float]


def plan_time(settings: PlanSettings) -> Timing:
    """Seconds of an update on the settings' GPU, with as many simulator processes as they say."""
    counts = look_flops(settings.config, settings.first_length, settings.length, settings.rank)
    looks = settings.episodes * settings.mean_looks
    policy, policy_flops = _policy(settings, counts, looks)
    update, update_flops = _update(settings, counts, looks)
    preparing = preparing_seconds(settings)
    simulation = simulation_seconds(settings)
    features = looks * settings.feature_bytes
    reward = features / EMBEDDING_SPEED[settings.numerics.compute]
    rollout = max(simulation, preparing + policy)
    seconds = {
        SIMULATION: simulation,
        PICTURES: preparing,
        POLICY: policy,
        ROLLOUT: rollout,
        REWARD: reward,
        UPDATE: update,
        TOTAL: rollout + reward + update,
    }
    return Timing(seconds, {POLICY: policy_flops, UPDATE: update_flops})


@dataclass(frozen=True)
class PlannedTurn:
    """What one turn of a stage is to take of the GPU.

    Attributes:
        seconds: Without the preparation of pictures, which the host does.
        flops: Floating-point operations.
    """

    seconds: float
    flops: float


def plan_turns(settings: PlanSettings) -> dict[str, PlannedTurn]:
    """One round of decisions for half of the worlds, and one micro-batch's forward and backward pass."""
    counts = look_flops(settings.config, settings.first_length, settings.length, settings.rank)
    decided = _policy(settings, counts, settings.lane)
    # Neither epochs nor frames beyond the budget for features belong to a single turn.
    once = replace(settings, epochs=1, feature_budget=None)
    improved = _update(once, counts, settings.looks_at_once)
    return {STAGE_ROLLOUT: PlannedTurn(*decided), STAGE_UPDATE: PlannedTurn(*improved)}


def simulation_seconds(settings: PlanSettings) -> float:
    """Seconds of all control steps and pictures, shared out among the simulator processes."""
    steps = settings.episodes * (settings.mean_steps + settings.settle_steps)
    pictures = settings.episodes * (settings.mean_looks + 1) * settings.config.num_images
    drawn = pictures * PICTURE[settings.render_profile]
    return (steps * CONTROL_STEP + drawn) / settings.workers


def preparing_seconds(settings: PlanSettings) -> float:
    """Seconds to prepare all pictures for the policy."""
    pictures = settings.episodes * settings.mean_looks * settings.config.num_images
    return pictures * PREPROCESSING if settings.config.image_processing == "openvla" else 0.0


def speed(settings: PlanSettings) -> float:
    """FLOP/s that matrix products reach."""
    return settings.mfu * (settings.device.half if settings.precision == "bf16" else settings.device.single)


def _policy(settings: PlanSettings, counts: LookFlops, looks: float) -> tuple[float, float]:
    """Seconds and operations of encoding and deciding, ``lane`` worlds at a time."""
    flops = looks * (counts.vision + counts.deciding)
    passes = looks / settings.lane
    seconds = flops / speed(settings) + passes * _dequantization(settings)
    if settings.config.head == "openvla":
        # One token at a time multiplies little and reads all weights.
        read = weight_bytes(settings.config, settings.numerics)[LINEAR] / settings.device.bandwidth
        seconds += passes * (settings.config.action_dim - 1) * read
    return seconds + looks * settings.feature_bytes / HOST_LINK, flops


def _update(settings: PlanSettings, counts: LookFlops, looks: float) -> tuple[float, float]:
    """Seconds and operations of all passes over the kept episodes."""
    again = recomputed_share(settings, settings.mean_looks)
    a_look = counts.forward * (1 + settings.reference) + counts.backward + again * counts.vision
    if settings.checkpointing:
        a_look += counts.repeated
    flops = settings.epochs * looks * a_look
    runs = 2 + settings.checkpointing + settings.reference
    passes = settings.epochs * looks / settings.looks_at_once
    seconds = flops / speed(settings) + passes * runs * _dequantization(settings)
    seconds += settings.epochs * again * preparing_seconds(settings)
    return seconds + settings.epochs * looks * settings.feature_bytes / HOST_LINK, flops


def _dequantization(settings: PlanSettings) -> float:
    """Seconds to spell out the quantized layers once, for a forward or a backward pass: read, write, read again."""
    if settings.quantization == "none":
        return 0.0
    numerics = settings.numerics
    spelled_out = numerics.compute * parameters(settings.config)[LINEAR]
    stored = weight_bytes(settings.config, numerics)[LINEAR]
    return (stored + 2 * spelled_out) / settings.device.bandwidth
