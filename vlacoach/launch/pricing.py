"""What a training on a rented GPU is going to cost, before it is started.

Prices are Modal's public list prices as of 2025, in US dollars; https://modal.com/pricing has those of today.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlacoach.errors import CheckpointError, UnknownNameError
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.formatting import format_seconds

PRICES = "list prices of 2025; see https://modal.com/pricing"

CORE_PRICE = 0.0472
"""Dollars an hour for one core, which is 0.0000131 a second."""

MEMORY_PRICE = 0.008
"""Dollars an hour for one GiB, which is 0.00000222 a second."""

HOUR = 3600.0


@dataclass(frozen=True)
class RentedGPU:
    """A GPU that can be rented.

    Attributes:
        name: As Modal calls it.
        price: Dollars an hour.
        plan: As ``vlacoach plan --gpu`` calls it, or None if it knows none.
    """

    name: str
    price: float
    plan: str | None


GPUS: dict[str, RentedGPU] = {
    gpu.name: gpu
    for gpu in (
        RentedGPU("T4", 0.59, "t4"),
        RentedGPU("L4", 0.80, "l4"),
        RentedGPU("A10", 1.10, "a10"),
        RentedGPU("A10G", 1.10, "a10g"),
        RentedGPU("L40S", 1.95, "l40s"),
        RentedGPU("A100-40GB", 2.10, "a100-40"),
        RentedGPU("A100-80GB", 2.50, "a100-80"),
        RentedGPU("H100", 3.95, "h100-80"),
        RentedGPU("H200", 4.54, "h200"),
        RentedGPU("B200", 6.25, None),
    )
}
"""Modal's GPUs by name."""


def find_gpu(name: str) -> RentedGPU:
    """A GPU by Modal's name or the one that ``vlacoach plan`` has for it; capitals do not matter.

    Raises:
        UnknownNameError: There is none of this name; the message lists those there are.
    """
    wanted = name.strip().lower()
    for gpu in GPUS.values():
        if wanted in (gpu.name.lower(), gpu.plan):
            return gpu
    raise UnknownNameError("Modal GPU", name, GPUS)


@dataclass(frozen=True)
class Machine:
    """What is rented.

    Attributes:
        gpu: One of it.
        cores: Physical processor cores.
        memory: GiB of host memory.
    """

    gpu: RentedGPU
    cores: int
    memory: int

    @property
    def price(self) -> float:
        """Dollars an hour."""
        return self.gpu.price + self.cores * CORE_PRICE + self.memory * MEMORY_PRICE


@dataclass(frozen=True)
class Estimate:
    """What a training is going to take.

    Attributes:
        machine: What is rented for it.
        hours: How long, or None if that is unknown.
        basis: What the hours are made of, or why they are unknown.
        warning: That it will not fit into the GPU's memory, or None if it will or is not known.
    """

    machine: Machine
    hours: float | None
    basis: str
    warning: str | None = None

    @property
    def cost(self) -> float | None:
        """Dollars, or None if that is unknown."""
        return None if self.hours is None else self.hours * self.machine.price

    def lines(self) -> list[str]:
        """What to tell the user, one sentence a line."""
        machine = self.machine
        said = [
            f"Modal {machine.gpu.name} with {machine.cores} cores and {machine.memory} GiB: "
            f"{machine.price:.2f} USD an hour ({PRICES})."
        ]
        if self.hours is None:
            said.append(f"How long it takes, and so what it costs, is unknown: {self.basis}")
        else:
            said.append(f"About {format_seconds(HOUR * self.hours)}, {self.cost:.2f} USD: {self.basis}.")
            said.append("Building the image, downloads, starting up and repeated attempts come on top.")
        return said if self.warning is None else [*said, self.warning]


@dataclass(frozen=True)
class Work:
    """What is left to do of a run.

    Attributes:
        updates: Of the policy.
        evaluation_episodes: Episodes of all evaluations.
    """

    updates: int
    evaluation_episodes: int


def work_of(config: TrainConfig, tasks: int, done: int = 0) -> Work:
    """What a run has to do.

    Args:
        config: Its settings.
        tasks: How many tasks it trains on.
        done: Updates that a resumed run has done; it need not evaluate before training again.
    """
    evaluation = config.evaluation
    updates = max(0, config.grpo.updates - done)
    splits = 2 if evaluation.train_states else 1
    whole = splits * (2 if done == 0 else 1)
    between = (config.grpo.updates - 1) // evaluation.every - done // evaluation.every if evaluation.every else 0
    return Work(updates, tasks * evaluation.trials * (whole + max(0, between)))


def estimate(config: TrainConfig, machine: Machine, work: Work) -> Estimate:
    """What a training is going to take, by the plan of an update and the limit in minutes, whichever ends first.

    Args:
        config: Its settings.
        machine: What is rented for it.
        work: What is left to do.

    Raises:
        ConfigError: The GPU cannot compute what the configuration asks for.
    """
    minutes = config.grpo.minutes
    if machine.gpu.plan is None:
        return _by_the_clock(machine, minutes, f"vlacoach plan does not know the {machine.gpu.name}.")
    from vlacoach.agents.plan import choose, make_plan, verdict
    from vlacoach.agents.plan_devices import find_device
    from vlacoach.agents.plan_settings import settings_from
    from vlacoach.agents.plan_time import ROLLOUT, TOTAL

    try:
        settings = settings_from(config, find_device(machine.gpu.plan), workers=machine.cores)
    except CheckpointError as error:  # Published weights that are not on this machine have no sizes to plan with.
        return _by_the_clock(machine, minutes, error.message)
    plan = make_plan(choose(settings, checkpointing=False, micro_batch=config.grpo.micro_batch == "auto"))
    seconds = plan.timing.seconds
    evaluation = work.evaluation_episodes * seconds[ROLLOUT] / settings.episodes
    learning, learned = work.updates * seconds[TOTAL], f"{work.updates} updates of {seconds[TOTAL]:.0f} s"
    if minutes is not None and 60.0 * minutes < learning:
        learning, learned = 60.0 * minutes, f"{minutes:g} minutes of training"
    basis = (
        f"{learned} and {work.evaluation_episodes} evaluation episodes, as vlacoach plan computes for episodes that "
        "run to their limit"
    )
    return Estimate(machine, (learning + evaluation) / HOUR, basis, None if plan.fits else verdict(plan))


def _by_the_clock(machine: Machine, minutes: float | None, reason: str) -> Estimate:
    if minutes is None:
        return Estimate(machine, None, f"{reason} --minutes limits it.")
    return Estimate(machine, minutes / 60.0, f"{minutes:g} minutes of training; evaluations are not counted")
