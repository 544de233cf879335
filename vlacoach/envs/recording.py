"""What an episode looks like before each of its actions, recorded from a simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vlacoach.envs.simulator import Simulator


class EpisodeRecorder:
    """Collects what is seen before each action of an episode that has just been reset.

    Args:
        simulator: The simulator.
        world: Index of the world that the episode is played in.
        render: Whether to record the simulator's cameras.
    """

    def __init__(self, simulator: Simulator, world: int, render: bool = True) -> None:
        self._simulator = simulator
        self._world = world
        self._render = render
        model = simulator.view(world).model
        self._bodies = [
            body
            for body in range(1, model.nbody)
            if model.body(body).name.endswith("_main") and not model.body_parentid[body]
        ]
        self._names = tuple(model.body(body).name.removesuffix("_main") for body in self._bodies)
        self._joint_qpos = [int(model.joint(f"robot0_joint{number}").qposadr[0]) for number in range(1, 8)]
        self._states: list[NDArray[np.float64]] = []
        self._proprioception: list[NDArray[np.float32]] = []
        self._joints: list[NDArray[np.float64]] = []
        self._positions: list[NDArray[np.float32]] = []
        self._images: dict[str, list[NDArray[np.uint8]]] = {}

    def observe(self) -> dict[str, NDArray[np.uint8]]:
        """Record the present moment.

        Returns:
            Camera to picture, as ``Simulator.render``; empty if nothing is rendered.
        """
        data = self._simulator.view(self._world).data
        self._states.append(self._simulator.state(self._world))
        self._proprioception.append(self._simulator.proprioception(self._world))
        self._joints.append(data.qpos[self._joint_qpos].copy())
        self._positions.append(data.xpos[self._bodies].astype(np.float32))
        pictures = self._simulator.render(self._world) if self._render else {}
        for camera, image in pictures.items():
            self._images.setdefault(camera, []).append(image)
        return pictures

    def arrays(self) -> dict[str, Any]:
        """What was recorded, by the names of ``Demonstration``; row t belongs to the moment before action t."""
        return {
            "states": np.stack(self._states),
            "proprioception": np.stack(self._proprioception),
            "joints": np.stack(self._joints),
            "object_names": self._names,
            "object_positions": np.stack(self._positions),
            "images": {camera: np.stack(frames) for camera, frames in self._images.items()},
        }
