"""Bytes of an update's stages by part: on the GPU, and in the host's memory.

The stages follow each other, so the peak is the largest of them, not their sum. Gradients are part of the update alone:
they are dropped when the optimizer has taken its step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlacoach.agents.plan_activations import (
    SINGLE,
    adapter_parameters,
    deciding_activations,
    dequantized_layer,
    update_activations,
    vision_activations,
)
from vlacoach.agents.plan_devices import CONTEXT_BYTES, MIB
from vlacoach.agents.plan_settings import PlanSettings
from vlacoach.agents.plan_sizes import EMBEDDING, LINEAR, NORMS, OUTPUT, weight_bytes
from vlacoach.rewards.trajectory import RecomputedFeatures
from vlacoach.runs.constants import STAGE_REWARD, STAGE_ROLLOUT, STAGE_UPDATE

RENDER_BYTES = 300 * MIB
"""GPU memory of a simulator process that draws on the GPU: meshes and textures of a LIBERO scene (207 MB as a compiled
model, measured) and about 100 MB for the driver's context (assumed). 0 with software rendering."""

SLACK = 0.05
"""What the allocator loses to rounding and fragments, as a share of all tensors. An assumption."""

CONTEXT, RENDERING, LOST = "CUDA context", "rendering", "allocator"
ADAPTER, GRADIENTS, OPTIMIZER = "adapter", "gradients", "optimizer"
ACTIVATIONS, WORKING = "activations kept for the backward pass", "activations at work"
CACHE, FEATURES = "keys and values", "features"
NOT_TENSORS = (CONTEXT, RENDERING, LOST)
"""Parts that ``torch.cuda.max_memory_allocated`` does not see."""


@dataclass(frozen=True)
class Stage:
    """What one stage of an update takes of the GPU.

    Attributes:
        name: See :mod:`vlacoach.runs.constants`.
        parts: Bytes by part.
    """

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    @property
    def tensors(self) -> int:
        """Bytes that torch's allocator has given out."""
        return sum(size for part, size in self.parts.items() if part not in NOT_TENSORS)


@dataclass(frozen=True)
class Memory:
    """Memory of an update.

    Attributes:
        stages: On the GPU, in their order.
        host: Bytes in the host's memory, by part.
    """

    stages: tuple[Stage, ...]
    host: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> Stage:
        """The stage that takes most."""
        return max(self.stages, key=lambda stage: stage.total)


def plan_memory(settings: PlanSettings) -> Memory:
    """Memory of an update with the settings' micro-batch."""
    resident = resident_parts(settings)
    recomputed = recomputed_share(settings, settings.looks) > 0
    stages = (
        _stage(STAGE_ROLLOUT, resident, _rollout_parts(settings)),
        _stage(STAGE_REWARD, resident, {}),  # Scorers read what the rollout left in the host's memory.
        _stage(STAGE_UPDATE, resident, _update_parts(settings, recomputed)),
    )
    return Memory(stages, _host_parts(settings))


def resident_parts(settings: PlanSettings) -> dict[str, int]:
    """What stays on the GPU through all stages."""
    sizes = weight_bytes(settings.config, settings.numerics)
    trained = trained_bytes(settings)
    return {
        **{f"weights: {part}": size for part, size in sizes.items()},
        ADAPTER: 0 if settings.rank is None else trained,
        OPTIMIZER: 2 * trained,  # AdamW's two moments have their weights' format.
        RENDERING: settings.workers * RENDER_BYTES,
        CONTEXT: CONTEXT_BYTES,
    }


def trained_bytes(settings: PlanSettings) -> int:
    """Bytes of the weights that are trained; so many have their gradients."""
    if settings.rank is not None:
        return SINGLE * adapter_parameters(settings.config.language, settings.rank)
    sizes = weight_bytes(settings.config, settings.numerics)
    return sum(sizes[part] for part in (EMBEDDING, LINEAR, NORMS, OUTPUT))


def _stage(name: str, resident: dict[str, int], own: dict[str, int]) -> Stage:
    parts = {**resident, **own}
    return Stage(name, {**parts, LOST: int(SLACK * Stage(name, parts).tensors)})


def _rollout_parts(settings: PlanSettings) -> dict[str, int]:
    config, numerics, rows = settings.config, settings.numerics, settings.lane
    deciding = deciding_activations(config, rows, settings.first_length, numerics)
    working = deciding["activations"] + dequantized_layer(config.language, numerics)
    return {
        # The towers are done when the language model begins.
        WORKING: max(working, vision_activations(config, rows, numerics)),
        CACHE: deciding["keys and values"],
        FEATURES: rows * settings.feature_bytes,
    }


def _update_parts(settings: PlanSettings, recomputed: bool) -> dict[str, int]:
    config, numerics, rows = settings.config, settings.numerics, settings.looks_at_once
    activations = update_activations(config, rows, settings.length, numerics)
    gradients = trained_bytes(settings)
    # The optimizer's step runs when no activation is left, and works with roots of all second moments.
    peaks = [activations.peak, gradients]
    if recomputed:
        peaks.append(vision_activations(config, RecomputedFeatures.batch, numerics))
    kept = min(sum(activations.kept.values()), activations.peak)
    return {
        GRADIENTS: gradients,
        ACTIVATIONS: kept,
        WORKING: max(peaks) - kept,
        FEATURES: rows * settings.feature_bytes,
    }


def recomputed_share(settings: PlanSettings, looks: float) -> float:
    """Share of the looks whose features find no room in the host's memory, with so many looks in each episode."""
    if settings.feature_budget is None:
        return 0.0
    return max(0.0, 1.0 - settings.feature_budget / (settings.episodes * looks * settings.feature_bytes))


def _host_parts(settings: PlanSettings) -> dict[str, int]:
    looks = settings.episodes * settings.looks
    share = recomputed_share(settings, settings.looks)
    side = settings.config.camera_size or settings.config.vision.image_size
    picture = 3 * settings.config.num_images * side**2
    # The frame behind the last action is encoded too, for the scorers.
    kept = int((looks * (1 - share) + settings.episodes) * settings.feature_bytes)
    average = SINGLE * settings.config.vision.hidden_size
    return {
        "features of the update's episodes": kept,
        "pictures kept instead": int(looks * share * picture),
        "averages of their features": int(looks * share * average),
    }
