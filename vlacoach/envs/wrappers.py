"""Gymnasium wrappers of the LIBERO environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.libero import LiberoEnv, Observation
from vlacoach.envs.perturbations import Perturbation, check_perturbations
from vlacoach.errors import ConfigError


class PerturbedLibero(gymnasium.Wrapper[Observation, NDArray[np.float32], Observation, NDArray[np.float32]]):
    """A LIBERO world whose episodes are perturbed.

    The same as ``LiberoEnv(perturbations=...)``, around an environment that was made already. The vector environment
    takes ``perturbations`` itself.

    Args:
        env: A :class:`~vlacoach.envs.libero.LiberoEnv`, wrapped or not.
        perturbations: At most one of each axis.

    Raises:
        ConfigError: The environment is another, or an axis comes twice.
    """

    def __init__(
        self, env: gymnasium.Env[Observation, NDArray[np.float32]], perturbations: Sequence[Perturbation]
    ) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, LiberoEnv):
            raise ConfigError(
                f"PerturbedLibero cannot wrap {type(env.unwrapped).__name__}.", "It wraps a LiberoEnv, one world."
            )
        self.perturbations = check_perturbations(perturbations)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a perturbed episode; see :meth:`LiberoEnv.reset`."""
        return self.env.reset(seed=seed, options={"perturbations": self.perturbations, **(options or {})})
