"""A plan: what an update takes of a GPU's memory and time, before any of it is bought, downloaded or run.

Everything follows from shapes: weights are counted on a model without storage, activations by the formulas of
:mod:`vlacoach.agents.plan_activations`, times from operations and speeds. The same update done SRPO's way stands beside
it (:mod:`vlacoach.agents.plan_srpo`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from vlacoach.agents.plan_activations import Activations, adapter_parameters, update_activations
from vlacoach.agents.plan_devices import CONTEXT_BYTES, GIB
from vlacoach.agents.plan_memory import RENDER_BYTES, SLACK, Memory, Stage, plan_memory
from vlacoach.agents.plan_settings import PlanSettings
from vlacoach.agents.plan_sizes import parameters
from vlacoach.agents.plan_srpo import SrpoPlan, plan_srpo
from vlacoach.agents.plan_time import UPDATE, Timing, plan_time

ROOM = 0.8
"""Share of a GPU's memory that :func:`choose` uses up: some of what a plan adds up is assumed."""


@dataclass(frozen=True)
class Plan:
    """What an update takes.

    Attributes:
        settings: What it was made for.
        memory: Bytes by stage and part.
        timing: Seconds by stage.
        activations: Of the update's micro-batch.
        largest_micro_batch: Looks of the largest micro-batch that fits; 0 if not one does.
        srpo: The same update, SRPO's way.
    """

    settings: PlanSettings
    memory: Memory
    timing: Timing
    activations: Activations
    largest_micro_batch: int
    srpo: SrpoPlan

    @property
    def peak(self) -> Stage:
        """The stage that takes most of the GPU."""
        return self.memory.peak

    @property
    def free(self) -> int:
        """Bytes of the GPU that are left at the peak; negative if they are missing."""
        return self.settings.device.memory - self.peak.total

    @property
    def fits(self) -> bool:
        """Whether the GPU has enough memory for every stage."""
        return self.free >= 0


def make_plan(settings: PlanSettings) -> Plan:
    """Count what an update takes; nothing is loaded, and no GPU is needed."""
    activations = update_activations(settings.config, settings.looks_at_once, settings.length, settings.numerics)
    return Plan(
        settings=settings,
        memory=plan_memory(settings),
        timing=plan_time(settings),
        activations=activations,
        largest_micro_batch=largest_micro_batch(settings),
        srpo=plan_srpo(settings),
    )


def largest_micro_batch(settings: PlanSettings, room: float = 1.0) -> int:
    """Looks of the largest micro-batch with which every stage fits; 0 if none does.

    Memory grows with the micro-batch, so halving the range finds it.

    Args:
        settings: The rest.
        room: Share of the GPU's memory that may be used.
    """
    limit = room * settings.device.memory

    def takes(looks: int) -> int:
        return plan_memory(replace(settings, micro_batch=looks)).peak.total

    fits, too_many = 0, settings.looks_of_a_step + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if takes(middle) <= limit else (fits, middle)
    return fits


def fitting_micro_batch(settings: PlanSettings) -> int:
    """Looks of the micro-batch that training takes by itself.

    Args:
        settings: The rest; their micro-batch is the most that is chosen.

    Returns:
        As many as leave some room to spare, and 1 if none does: the plan may be wrong.
    """
    return max(1, min(settings.micro_batch, largest_micro_batch(settings, ROOM)))


def choose(settings: PlanSettings, checkpointing: bool, micro_batch: bool) -> PlanSettings:
    """The quickest settings that fit with some room to spare, where they are left open.

    Args:
        settings: The rest; its micro-batch is the most that is chosen.
        checkpointing: Whether gradient checkpointing is open.
        micro_batch: Whether the micro-batch is open.

    Returns:
        If nothing fits, the settings that take least.
    """
    kinds = (False, True) if checkpointing else (settings.checkpointing,)
    candidates = [replace(settings, checkpointing=kind) for kind in kinds]
    for room in (ROOM, 1.0):
        fitting = []
        for candidate in candidates:
            most = largest_micro_batch(candidate, room)
            if most and (micro_batch or most >= candidate.looks_at_once):
                fitting.append(replace(candidate, micro_batch=min(candidate.micro_batch, most)))
        if fitting:
            return min(fitting, key=lambda one: plan_time(one).seconds[UPDATE])
    return replace(candidates[-1], micro_batch=1) if micro_batch else candidates[-1]


def verdict(plan: Plan) -> str:
    """One sentence: whether it fits, and by how much."""
    settings, peak = plan.settings, plan.peak
    size = (
        f"{peak.total / GIB:.1f} GiB ({peak.total / 1e9:.1f} GB) of {settings.device.memory / GIB:.1f} GiB, in stage "
        f"{peak.name}"
    )
    if plan.fits:
        return f"Fits the {settings.device.title}: {size}; {plan.free / GIB:.1f} GiB are left."
    return f"Does not fit the {settings.device.title}: {size}; {-plan.free / GIB:.1f} GiB are missing."


def remedies(plan: Plan) -> list[str]:
    """What would make a plan fit, the cheapest first, each as it is asked for on the command line."""
    settings = plan.settings
    if plan.fits:
        return []
    found = []
    if plan.largest_micro_batch:
        found.append(f"--micro-batch {plan.largest_micro_batch}")
    if settings.rank is None:
        found.append("--set policy.full=false")
    elif settings.quantization != "nf4":
        found.append("--quantize nf4")
    if not settings.checkpointing:
        found.append("--gradient-checkpointing")
    if plan.peak.name == plan.memory.stages[0].name and settings.num_envs > 1:
        found.append(f"--envs {max(1, settings.num_envs // 2)}")
    return [*found, "a GPU with more memory"]


def assumptions(settings: PlanSettings) -> dict[str, str]:
    """What the numbers rest on that was neither counted nor measured."""
    return {
        "model FLOP utilization": f"{settings.mfu:.0%} of the GPU's dense speed, in every stage",
        "CUDA context": f"{CONTEXT_BYTES / GIB:.1f} GiB",
        "rendering": f"{RENDER_BYTES / GIB:.2f} GiB for each of {settings.workers} simulator processes that "
        "draw on this GPU; nothing with software rendering",
        "allocator": f"{SLACK:.0%} of all tensors are lost to rounding and fragments",
        "prompt": f"{settings.prompt_tokens} tokens",
        "episodes": f"all {settings.episodes} stay in the update; {settings.mean_steps:g} steps each for the times, "
        f"{settings.max_steps} for the memory",
        "simulation": "steps and pictures as slow as on one core with software GL (docs/benchmarks.md), on "
        f"{settings.workers} cores",
    }


def as_document(plan: Plan) -> dict[str, Any]:
    """Everything in the plan, for ``--json``: bytes, seconds and operations, all computed."""
    settings = asdict(plan.settings)
    settings |= {
        "config": plan.settings.config.to_dict(),
        "episodes": plan.settings.episodes,
        "looks": plan.settings.looks,
        "looks_at_once": plan.settings.looks_at_once,
        "length": plan.settings.length,
    }
    rank = plan.settings.rank
    return {
        "computed": True,
        "verdict": verdict(plan),
        "fits": plan.fits,
        "remedies": remedies(plan),
        "peak": {"stage": plan.peak.name, "bytes": plan.peak.total, "free": plan.free},
        "largest_micro_batch": plan.largest_micro_batch,
        "parameters": {
            **parameters(plan.settings.config),
            "adapter": 0 if rank is None else adapter_parameters(plan.settings.config.language, rank),
        },
        "memory": {stage.name: {**stage.parts, "in all": stage.total} for stage in plan.memory.stages},
        "activations": asdict(plan.activations),
        "host": plan.memory.host,
        "seconds": plan.timing.seconds,
        "flops": plan.timing.flops,
        "srpo": {
            "memory": {**plan.srpo.stage.parts, "in all": plan.srpo.stage.total},
            "sharded": list(plan.srpo.sharded),
            "gpus": plan.srpo.gpus,
            "host": plan.srpo.host,
            "seconds": plan.srpo.seconds,
            "flops": plan.srpo.flops,
        },
        "assumptions": assumptions(plan.settings),
        "settings": settings,
    }
