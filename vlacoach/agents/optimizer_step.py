"""One optimizer step: its gradient, summed over micro-batches, is checked, clipped, and followed.

Where memory runs out, the micro-batch is halved and the whole step done again from zeroed gradients: no trajectory is
left out, and the numbers are those of a run that had the smaller micro-batch from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from vlacoach.agents.batching import cut, look_batches
from vlacoach.agents.metrics import add_ranks, add_statistics
from vlacoach.agents.objectives import require_finite
from vlacoach.agents.sharing import StepSizes
from vlacoach.errors import RatioError, UpdateMemoryError
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs import constants as names
from vlacoach.runs.guards import Finding, warn

if TYPE_CHECKING:
    from vlacoach.agents.grpo import GRPOAgent

RATIO_TOLERANCE = {"fp32": 1e-2, "bf16": 5e-2}
"""How far log-probabilities may be from the recorded ones, on average over the tokens, in the first step of an update
before training stops: the ratio is 1 up to rounding, unless something else than what acted is being trained
(invariant 2). The ratio's mean would not tell: over tokens that the old policy drew it is 1 for any new policy."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
"""How errors of torch's allocators read, in lower case: those of the CPU and of CUDA's libraries are plain
RuntimeErrors."""


def optimizer_step(
    agent: GRPOAgent,
    trajectories: Sequence[Trajectory],
    advantage: NDArray[np.float32],
    sizes: StepSizes,
    first: bool,
) -> dict[str, float]:
    """Improve the policy by one step on some trajectories.

    Args:
        agent: Gives the loss, the optimizer, the size of micro-batches, and the other ranks.
        trajectories: B trajectories, this rank's share of those that the step learns from; there may be none.
        advantage: (B,) float32.
        sizes: Of all that the step learns from.
        first: Whether this is the first step since the rollout, whose probability ratio must be 1.

    Returns:
        Statistics over the executed tokens.

    Raises:
        NonFiniteError: A loss, ratio, or gradient is NaN or infinite; the weights are as before.
        RatioError: The first ratio is not 1; the weights are as before.
        UpdateMemoryError: Memory ran out a second time.
    """
    stats = _gradient(agent, trajectories, advantage, sizes)
    stats = add_ranks(agent.ranks.gather_json(stats))
    deviation, tolerance = stats["train/ratio_deviation"], RATIO_TOLERANCE[agent.policy.precision]
    if first and deviation > tolerance:
        raise RatioError(
            f"The first probability ratio of update {agent.update + 1} is not 1: log-probabilities differ from the "
            f"recorded ones by {deviation:.4f} on average.",
            "What is being trained is not what acted: is dropout on, or was the policy changed?",
        )
    try:
        _add_gradients(agent)
        norm = _clip(agent)
        agent.optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Some weights may have taken the step and others not, so it cannot be done again.
        raise _give_up(agent, error) from error
    agent.optimizer.zero_grad(set_to_none=True)  # Rollout and reward have better use for the memory.
    return {**stats, names.TRAIN_GRADIENT_NORM: norm}


def _add_gradients(agent: GRPOAgent) -> None:
    """Sum the gradient over the ranks; one that had nothing to learn from takes part with zeros."""
    if agent.ranks.size == 1:
        return
    for parameter in agent.parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    agent.ranks.add([parameter.grad for parameter in agent.parameters if parameter.grad is not None])


def _clip(agent: GRPOAgent) -> float:
    """Scale the gradient down to its greatest norm; returns the norm it had."""
    gradients = [parameter.grad for parameter in agent.parameters if parameter.grad is not None]
    # Looked at before it is clipped, which would make NaN of what is infinite and spoil the evidence.
    norm = require_finite("The gradient's norm", torch.nn.utils.get_total_norm(gradients))
    torch.nn.utils.clip_grads_with_norm_(agent.parameters, agent.config.grpo.max_grad_norm, norm)
    return float(norm)


def _gradient(
    agent: GRPOAgent, trajectories: Sequence[Trajectory], advantage: NDArray[np.float32], sizes: StepSizes
) -> dict[str, float]:
    """Sum the gradient up, if need be once more with half the micro-batch; returns the statistics."""
    try:
        return _accumulate(agent, trajectories, advantage, sizes)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        used = min(agent.micro_batch, sum(trajectory.num_looks for trajectory in trajectories))
        if used == 1:
            raise _give_up(agent, error) from error
        reason = str(error).partition("\n")[0] or type(error).__name__
    # Only here: while it is handled, the error holds on to whatever the pass had computed.
    _shrink(agent, used, reason)
    try:
        return _accumulate(agent, trajectories, advantage, sizes)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _give_up(agent, error) from error


def _shrink(agent: GRPOAgent, used: int, reason: str) -> None:
    agent.micro_batch = used // 2
    agent.optimizer.zero_grad(set_to_none=True)
    if agent.policy.device.type == "cuda":
        torch.cuda.empty_cache()
    finding = Finding(
        "memory_in_update",
        f"Memory ran out in update {agent.update + 1} with {used} looks in a micro-batch; the step is done again, and "
        f"all that follow, with {agent.micro_batch}. {reason}",
        f"No result changes, but time was lost: set grpo.micro_batch to {agent.micro_batch}.",
    )
    if agent.folder is None:
        agent.reporter.message(f"{finding.message} {finding.advice}", "warning")
    else:
        warn(agent.folder, agent.reporter, finding, update=agent.update + 1, micro_batch=agent.micro_batch)


def _give_up(agent: GRPOAgent, error: BaseException) -> UpdateMemoryError:
    smaller = max(1, agent.micro_batch // 2)
    failure = UpdateMemoryError(
        f"Memory ran out in update {agent.update + 1} with {agent.micro_batch} looks in a micro-batch: "
        f"{str(error).partition(chr(10))[0] or type(error).__name__}",
        "Free some memory, or ask for less of it, and go on from the last checkpoint: vlacoach train --resume latest "
        f"--set grpo.micro_batch={smaller} --set policy.gradient_checkpointing=true",
    )
    if agent.folder is not None:
        agent.folder.alert(
            "error", failure.message, failure.hint, kind="memory_in_update", micro_batch=agent.micro_batch
        )
    return failure


def _accumulate(
    agent: GRPOAgent, trajectories: Sequence[Trajectory], advantage: NDArray[np.float32], sizes: StepSizes
) -> dict[str, float]:
    """Sum the gradient up from zero over micro-batches of looks; returns the statistics of all."""
    agent.optimizer.zero_grad(set_to_none=True)
    agent.witness.log_prob.clear()
    total: dict[str, float] = {}
    looks, weights = [t.num_looks for t in trajectories], agent.token_weights(sizes)[sizes.own]
    actions, done = int(sizes.actions.sum()), 0
    try:
        for pieces in look_batches(looks, agent.micro_batch):
            part = [cut(trajectories[row], start, stop) for row, start, stop in pieces]
            rows = [row for row, _, _ in pieces]
            loss, stats = agent.loss(part, torch.from_numpy(advantage[rows]), weights[rows])
            require_finite("The loss", loss)
            # Where the ratio is clipped, an infinite one need not show in the loss.
            require_finite("The logarithm of the probability ratio", torch.tensor(stats["ratio_deviation"]))
            torch.autograd.backward(loss)
            add_statistics(total, {"loss": loss.item(), **stats}, sum(t.length for t in part) / actions)
            done += (ended := sum(stop == looks[row] for row, _, stop in pieces))
            agent.reporter.advance(ended)
            agent.beat()
    except (RuntimeError, MemoryError):
        agent.reporter.advance(-done)
        raise
    return total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)
