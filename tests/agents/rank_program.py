"""One rank of a small group, to be started by tests: plays, scores and learns on the toy world, and says what came out.

``python rank_program.py WHAT FOLDER`` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from toy_envs import ToyEnvs, toy_config, toy_policy

from vlacoach.agents.grpo import GRPOAgent
from vlacoach.agents.ranks import Ranks, join_ranks, leave_ranks
from vlacoach.errors import RankError
from vlacoach.rewards import make_scorer

HERE = Path(__file__).parent

SETTINGS: dict[str, dict[str, Any]] = {
    "siglip-t": {"reward": {"name": "siglip-t", "reference": "bank", "refit_every": 2}},
    "siglip": {"reward": {"name": "siglip"}, "grpo": {"keep_graded": True, "reduction": "token-mean", "epochs": 2}},
    "success": {"reward": {"name": "success"}, "grpo": {"prompts": 3, "kl_coefficient": 0.1}},
}
"""Configurations that are compared; three prompts leave two ranks with different numbers of trajectories."""


def make_agent(name: str, ranks: Ranks) -> GRPOAgent:
    config = toy_config(**SETTINGS[name])
    policy = toy_policy()
    params = {"steps": 20} if name == "siglip-t" else {}
    scorer = make_scorer(config.reward.name, policy=policy, **params)
    return GRPOAgent(policy, ToyEnvs(4), scorer, config, ranks=ranks)


def learned(name: str, ranks: Ranks, updates: int = 2) -> dict[str, torch.Tensor]:
    """Rewards and advantages by slot, the gradient of each step, the weights, and the bank, after some updates."""
    agent = make_agent(name, ranks)
    found: dict[str, torch.Tensor] = {}
    scored, compared, stepped = agent.reward, agent.advantage, agent.optimizer.step
    steps = 0

    def reward(trajectories: Any) -> Any:
        values = scored(trajectories)
        keep("reward", trajectories, values)
        return values

    def advantage(trajectories: Any, values: Any) -> Any:
        result = compared(trajectories, values)
        keep("advantage", trajectories, result)
        return result

    def keep(what: str, trajectories: Any, values: Any) -> None:
        for one, value in zip(trajectories, values, strict=True):
            found[f"{agent.update}.{what}.{one.slot}"] = torch.tensor(float(value), dtype=torch.float64)

    def step() -> None:
        nonlocal steps
        found[f"gradient.{steps}"] = torch.cat([p.grad.flatten() for p in agent.parameters if p.grad is not None])
        steps += 1
        stepped()

    agent.reward, agent.advantage, agent.optimizer.step = reward, advantage, step  # type: ignore[method-assign]
    for _ in range(updates):
        metrics = agent.learn_once()
        untimed = {key: value for key, value in metrics.items() if not key.startswith("time/")}
        for key, value in untimed.items():
            found[f"{agent.update}.metric.{key}"] = torch.tensor(value, dtype=torch.float64)
    found["weights"] = torch.cat([parameter.detach().flatten() for parameter in agent.parameters])
    if agent.bank is not None:
        embeddings, tasks = agent.bank.embeddings(agent.scorer)
        found["bank"] = torch.from_numpy(embeddings)
        found["bank_tasks"] = torch.from_numpy(tasks)
    return found


def exchange(ranks: Ranks) -> dict[str, Any]:
    """What each of the ways to exchange something gives."""
    mine = np.full((ranks.rank, 2), ranks.rank)  # Nothing at rank 0.
    tensors = [torch.full((2, 2), float(ranks.rank + 1)), torch.tensor([0.5])]
    before = ranks.sent
    ranks.add(tensors)
    size = ranks.sent - before
    return {
        "gathered": ranks.gather({"rows": mine})["rows"].tolist(),
        "json": ranks.gather_json({"rank": ranks.rank, "text": "ä" * ranks.rank}),
        "added": [tensor.flatten().tolist() for tensor in tensors],
        "bytes": size,
        "sent": ranks.send(b"from the leader" if ranks.leads else b"ignored").decode(),
        "any": [ranks.any(ranks.rank == 1), ranks.any(False)],
        "mine": list(ranks.mine(5)),
    }


def hang(ranks: Ranks) -> dict[str, Any]:
    """Rank 1 does nothing for a long time."""
    ranks.set_limit(1.5)
    ranks.enter("rollout of update 7")
    if ranks.rank == 1:
        time.sleep(5)
        return {}
    ranks.enter("reward of update 7")
    return failure(ranks)


def slow(ranks: Ranks) -> dict[str, Any]:
    """Rank 1 works for longer than the limit, and says so."""
    ranks.set_limit(1.5)
    if ranks.rank == 1:
        for _ in range(30):
            time.sleep(0.1)
            ranks.beat()
    return {"met": ranks.gather_json(ranks.rank)}


def stop(ranks: Ranks) -> dict[str, Any]:
    """Rank 1 fails."""
    ranks.enter("update of update 3")
    if ranks.rank == 1:
        ranks.abandon(ValueError("The disk is full.\nOr so it says."))
        return {}
    return failure(ranks)


def vanish(ranks: Ranks) -> dict[str, Any]:
    """The leading rank, and with it the store, is gone."""
    ranks.enter("rollout of update 1")
    ranks.gather_json(None)
    if ranks.leads:
        os._exit(0)
    return failure(ranks)


def failure(ranks: Ranks) -> dict[str, Any]:
    try:
        ranks.gather_json("here")
    except RankError as error:
        return {"error": str(error)}
    return {"error": ""}


def drift(ranks: Ranks) -> dict[str, Any]:
    """Rank 1 has come to other weights."""
    from vlacoach.agents.sharing import require_same_weights

    same = torch.ones(3)
    require_same_weights([same], ranks)
    try:
        require_same_weights([same + 1e-7 * ranks.rank], ranks)
    except RankError as error:
        return {"error": str(error)}
    return {"error": ""}


WHAT: dict[str, Callable[[Ranks], dict[str, Any]]] = {
    "exchange": exchange,
    "hang": hang,
    "slow": slow,
    "stop": stop,
    "vanish": vanish,
    "drift": drift,
}


def main() -> None:
    what, folder = sys.argv[1].split(","), Path(sys.argv[2])
    ranks = join_ranks(30.0)
    for one in what:
        if one in WHAT:
            (folder / f"{one}_{ranks.rank}.json").write_text(json.dumps(WHAT[one](ranks)))
        else:
            save_file(learned(one, ranks), folder / f"{one}_{ranks.rank}.safetensors")
    if what[-1] in ("hang", "stop", "vanish"):
        os._exit(0)  # Nobody is left to say good-bye to.
    leave_ranks()


if __name__ == "__main__":
    main()
