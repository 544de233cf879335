"""Gymnasium ids of the LIBERO suites."""

from __future__ import annotations

import gymnasium

ENV_IDS = {
    "libero_spatial": "vlacoach/LiberoSpatial-v0",
    "libero_object": "vlacoach/LiberoObject-v0",
    "libero_goal": "vlacoach/LiberoGoal-v0",
    "libero_10": "vlacoach/Libero10-v0",
    "libero_90": "vlacoach/Libero90-v0",
}
"""Gymnasium id of each suite."""


def register_envs() -> None:
    """Register every LIBERO suite with Gymnasium; calling it again changes nothing."""
    for suite, env_id in ENV_IDS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point="vlacoach.envs.libero:LiberoEnv",
                vector_entry_point="vlacoach.envs.vector:LiberoVectorEnv",
                kwargs={"suite": suite},
            )
