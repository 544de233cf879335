"""An agent in the folder of a checkpoint: adapter (or weights), scorer, references, and optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlacoach.policies import lora
from vlacoach.policies.checkpoint import load_policy
from vlacoach.runs import constants as names
from vlacoach.runs.state import load_tree, save_tree

if TYPE_CHECKING:
    from vlacoach.agents.grpo import GRPOAgent


def save_agent(agent: GRPOAgent, folder: Path) -> None:
    """Write all that :func:`load_agent` needs into a checkpoint's folder."""
    if agent.policy.adapter is not None:
        lora.save_adapter(agent.policy, folder / names.ADAPTER_FOLDER)
    else:
        agent.policy.save(folder / names.POLICY_FOLDER)
    agent.scorer.save(folder / names.SCORER_FOLDER)
    if agent.bank is not None:
        agent.bank.save(folder / names.SCORER_FOLDER)
    state: dict[str, Any] = {"update": agent.update, "optimizer": agent.optimizer.state_dict()}
    if agent.micro_batch != agent.planned_micro_batch:
        state["micro_batch"] = {"planned": agent.planned_micro_batch, "found": agent.micro_batch}
    save_tree(folder / names.TRAINING_STATE_FOLDER, state)


def load_agent(agent: GRPOAgent, folder: Path) -> None:
    """Let an agent go on from what :func:`save_agent` wrote.

    Raises:
        CheckpointError: Something in it is missing, corrupt, or does not fit.
    """
    if agent.policy.adapter is not None:
        lora.load_adapter(agent.policy, folder / names.ADAPTER_FOLDER)
    else:
        stored = load_policy(folder / names.POLICY_FOLDER)
        agent.policy.model.load_state_dict(stored.model.state_dict())
    # A loaded adapter has parameters of its own; the optimizer must not hold those of the one it replaced.
    agent.take_parameters()
    agent.scorer.load(folder / names.SCORER_FOLDER)
    if agent.bank is not None:
        agent.bank.load(folder / names.SCORER_FOLDER)
    state = load_tree(folder / names.TRAINING_STATE_FOLDER)
    agent.optimizer.load_state_dict(state["optimizer"])
    agent.update = int(state["update"])
    shrunk = state.get("micro_batch")
    # Whoever asks for another size by now has a reason, such as another machine.
    same_plan = shrunk is not None and shrunk["planned"] == agent.planned_micro_batch
    agent.micro_batch = int(shrunk["found"]) if same_plan else agent.planned_micro_batch
