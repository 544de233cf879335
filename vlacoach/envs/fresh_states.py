"""Initial states beyond the fifty official ones, drawn as LIBERO drew those."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlacoach.envs import libero_package
from vlacoach.envs.scene import Scene
from vlacoach.envs.suites import Task


class FreshStates:
    """Draws initial states of one task from the regions of its BDDL file, free of collisions.

    LIBERO's own samplers do it, in an environment of its own, whose construction takes seconds and which holds another
    compiled model. They place fixtures too; here fixtures stay where the compiled scene has them. The arm's joints vary
    by 0.02 rad (standard deviation), as in the official states, though not in a LIBERO environment that is just reset.

    Args:
        task: The task; others of the same scene have the same regions.
        scene: The scene that the states are for.
        seed: Seed that the scene was built with.

    Attributes:
        numbered: :meth:`sample`, which remembers: the episodes of a group begin alike.
    """

    def __init__(self, task: Task, scene: Scene, seed: int) -> None:
        self._control_env = libero_package.control_env(task.bddl_file, seed, arm_noise=True)
        self._env = self._control_env.env
        for name, fixture in self._env.fixtures_dict.items():
            sampler = self._env.placement_initializer.samplers.get(f"{name}_sampler")
            if sampler is not None:
                body = self._env.obj_body_id[name]
                pose = (scene.model.body_pos[body].copy(), scene.model.body_quat[body].copy(), fixture)
                sampler.sample = _Pinned(name, pose)
        self.numbered = lru_cache(maxsize=256)(self.sample)

    def sample(self, seed: int) -> NDArray[np.float64]:
        """(1 + nq + nv,) state: time, joint positions and velocities; the same for the same seed.

        Args:
            seed: 0 to 2**32 - 1.

        Raises:
            SimulatorError: LIBERO finds no room for the objects.
        """
        libero_package.reset(self._control_env, seed)
        data = self._env.sim.data
        return np.concatenate([[0.0], data.qpos, data.qvel]).astype(np.float64)


class _Pinned:
    """Stands for a fixture's sampler: says where the fixture is."""

    def __init__(self, name: str, pose: tuple[Any, Any, Any]) -> None:
        self._name, self._pose = name, pose

    def __call__(self, fixtures: Any = None, reference: Any = None, on_top: bool = True) -> dict[str, Any]:
        return {**(fixtures or {}), self._name: self._pose}
