"""Reinforcement learning for vision-language-action models in LIBERO.

The public face is small::

    import gymnasium, vlacoach

    if __name__ == "__main__":  # The simulator's processes import this file again.
        policy = vlacoach.load_policy("tiny")
        envs = gymnasium.make_vec("vlacoach/LiberoGoal-v0", num_envs=16, chunk_size=policy.chunk_size)
        scorer = vlacoach.make_scorer("siglip-t", policy=policy)
        agent = vlacoach.GRPOAgent(policy, envs, scorer)
        agent.learn(updates=40)

Importing this package loads neither torch nor mujoco nor textual nor Gymnasium; the names below load what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlacoach.envs.registration import register_envs_when_needed

if TYPE_CHECKING:
    from vlacoach.agents.grpo import GRPOAgent
    from vlacoach.policies import load_policy
    from vlacoach.rewards import make_scorer

__version__ = "0.1.0"
__all__ = ["GRPOAgent", "__version__", "load_policy", "make_scorer"]

_LAZY = {
    "GRPOAgent": "vlacoach.agents.grpo",
    "load_policy": "vlacoach.policies",
    "make_scorer": "vlacoach.rewards",
}

register_envs_when_needed()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlacoach' has no attribute {name!r}")
