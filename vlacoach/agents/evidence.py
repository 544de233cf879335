"""What is kept of an update that a guard stopped: the batch as it was, and the state of what was being trained."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from vlacoach.agents.objectives import token_mask
from vlacoach.errors import DivergedError, VlacoachError
from vlacoach.policies import lora
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs import constants as names
from vlacoach.runs.evidence import new_evidence
from vlacoach.runs.files import plain
from vlacoach.runs.state import save_state

if TYPE_CHECKING:
    from vlacoach.agents.grpo import GRPOAgent


@dataclass
class Witness:
    """Sees what an update works on, as far as it has come.

    Attributes:
        trajectories: B episodes of the rollout.
        reward: (B,) scores, or None before there are any.
        advantage: (B,) advantages, or None.
        steps: Optimizer steps of the update that were begun.
        log_prob: What the present step has computed so far: log-probabilities of the looks it has seen, by slot.
    """

    trajectories: Sequence[Trajectory] = ()
    reward: NDArray[np.float64] | None = None
    advantage: NDArray[np.float32] | None = None
    steps: int = 0
    log_prob: dict[int, list[Tensor]] = field(default_factory=dict)

    def pass_over(self, trajectories: Sequence[Trajectory], log_prob: Tensor) -> None:
        """Take what one pass computed for pieces of trajectories, (sum of T, tokens a chunk)."""
        pieces = torch.split(log_prob.detach(), [trajectory.num_looks for trajectory in trajectories])
        for trajectory, piece in zip(trajectories, pieces, strict=True):
            self.log_prob.setdefault(trajectory.slot, []).append(piece)


@contextmanager
def keeping_evidence(agent: GRPOAgent, stage: str) -> Iterator[None]:
    """While work goes on: where a guard stops it, keep the evidence and write an alert before the error goes on."""
    try:
        yield
    except DivergedError as error:
        if agent.folder is not None:
            _keep(agent, agent.folder.path, stage, error)
        raise


def _keep(agent: GRPOAgent, run: Path, stage: str, error: DivergedError) -> None:
    assert agent.folder is not None
    update = agent.update + 1
    try:
        kept = save_evidence(agent, run, stage, error)
    except (OSError, VlacoachError, SafetensorError) as refusal:
        # Why the training stopped matters more than why that could not be kept.
        agent.reporter.message(f"The evidence could not be kept: {refusal}", "warning")
        place, advice = None, error.hint
    else:
        place = str(kept.relative_to(run))
        look = f"What it worked on: vlacoach runs show {run.name} --evidence"
        advice = look if error.hint is None else f"{error.hint} {look}"
        agent.reporter.message(f"Evidence is in {kept}. {look}")
    agent.folder.alert("error", error.message, advice, kind=error.what, update=update, stage=stage, evidence=place)


def save_evidence(agent: GRPOAgent, run: Path, stage: str, error: DivergedError) -> Path:
    """Write what an update that was stopped worked on.

    Args:
        agent: Whose update it was.
        run: The run folder.
        stage: In which it stopped.
        error: Why.

    Returns:
        The folder: ``state.json`` with what a person reads, ``state.safetensors`` with what a program reads.

    Raises:
        OSError: The disk refuses; so do CheckpointError and SafetensorError.
    """
    witness, parameters = agent.witness, lora.trainable_parameters(agent.policy)
    tensors = {f"batch/{name}": value for name, value in _batch(witness, agent).items()}
    if agent.policy.adapter is not None:  # All weights would be as large as the policy.
        tensors |= {f"weight/{name}": value for name, value in parameters.items()}
        tensors |= {f"gradient/{name}": value.grad for name, value in parameters.items() if value.grad is not None}
    steps = [int(state["step"]) for state in agent.optimizer.state.values() if "step" in state]
    facts = {
        "what": error.what,
        "message": error.message,
        "hint": error.hint,
        names.TIME: round(time.time(), 3),
        "update": agent.update + 1,
        "stage": stage,
        "step": witness.steps,
        "optimizer_steps": max(steps, default=0),
        "learning_rate": agent.optimizer.param_groups[0]["lr"],
        "micro_batch": agent.micro_batch,
        "precision": agent.policy.precision,
        "episodes": [plain(_episode(row, witness, agent)) for row in range(len(witness.trajectories))],
        "parameters": [plain(_parameter(name, value)) for name, value in parameters.items()],
        "tensors": {name: list(value.shape) for name, value in tensors.items()},
    }
    with new_evidence(run, agent.update + 1, error.what) as (working, target):
        save_state(working, tensors, plain(facts))
    return target


def _batch(witness: Witness, agent: GRPOAgent) -> dict[str, Tensor]:
    """Episodes as rows, padded to the longest; new log-probabilities are NaN where none were computed."""
    episodes = witness.trajectories
    if not episodes:
        return {}
    chunk, action_dim = agent.policy.chunk_size, agent.policy.action_dim
    looks = max(1, *(trajectory.num_looks for trajectory in episodes))

    def rows(parts: Sequence[Tensor], fill: float) -> Tensor:
        padded = torch.full((len(parts), looks * chunk * action_dim), fill, dtype=parts[0].dtype)
        for row, part in zip(padded, parts, strict=True):
            row[: part.numel()] = part.flatten()
        return padded

    nothing = torch.empty(0)
    computed = [witness.log_prob.get(trajectory.slot, []) for trajectory in episodes]
    executed = torch.zeros(len(episodes), looks, dtype=torch.int64)
    for row, trajectory in zip(executed, episodes, strict=True):
        row[: trajectory.num_looks] = trajectory.executed
    columns = {
        "tokens": rows([trajectory.tokens for trajectory in episodes], 0),
        "old_log_prob": rows([trajectory.log_prob for trajectory in episodes], 0.0),
        "new_log_prob": rows([torch.cat(parts).float().cpu() if parts else nothing for parts in computed], torch.nan),
        "mask": token_mask(executed, chunk, action_dim),
        "executed": executed,
    }
    for name in ("slot", "group", "task", "init_state", "success", "valid", "length"):
        columns[name] = torch.tensor([getattr(trajectory, name) for trajectory in episodes])
    given = {"reward": witness.reward, "advantage": witness.advantage}
    return columns | {name: torch.from_numpy(values) for name, values in given.items() if values is not None}


def _episode(row: int, witness: Witness, agent: GRPOAgent) -> dict[str, Any]:
    """One episode as a person reads it: outcome, scores, and how far its log-probabilities are from the recorded."""
    trajectory = witness.trajectories[row]
    facts: dict[str, Any] = {
        name: getattr(trajectory, name)
        for name in ("slot", "group", "task", "init_state", "success", "valid", "length")
    }
    facts["reward"] = None if witness.reward is None else float(witness.reward[row])
    facts["advantage"] = None if witness.advantage is None else float(witness.advantage[row])
    parts = witness.log_prob.get(trajectory.slot)
    facts["in_step"] = parts is not None
    if parts is not None:
        new = torch.cat(parts).float().cpu()
        alive = token_mask(trajectory.executed[: len(new)], agent.policy.chunk_size, agent.policy.action_dim)
        change = (new - trajectory.log_prob[: len(new)]).flatten()[alive]
        facts["log_prob_change"] = float(change.abs().mean())
        facts["nonfinite_tokens"] = int((~torch.isfinite(change)).sum())
    return facts


def _parameter(name: str, value: Tensor) -> dict[str, Any]:
    gradient = value.grad
    return {
        "name": name,
        "shape": list(value.shape),
        "norm": float(value.detach().float().norm()),
        "gradient_norm": None if gradient is None else float(gradient.float().norm()),
        "nonfinite_elements": int((~torch.isfinite(value)).sum()),
        "nonfinite_gradient_elements": 0 if gradient is None else int((~torch.isfinite(gradient)).sum()),
    }
