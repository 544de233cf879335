"""One control step of one world, compiled: MuJoCo's own steps and the controller between them, without Python.

The interpreter's lock is free meanwhile, so that threads step several worlds of a process at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding
import mujoco
import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from vlacoach.envs.controller import GRIPPER_SPEED, POSITION_SCALE, ROTATION_SCALE, osc_torque, rotation_matrix
from vlacoach.envs.scene import PHYSICS_STEPS, Scene

# Compiled code finds MuJoCo's functions by name in the library that the Python bindings have loaded already. By name
# rather than by address, so that numba can keep the machine code on disk.
for _library in Path(mujoco.__file__).parent.glob("libmujoco*"):
    llvmlite.binding.load_library_permanently(str(_library))

_pointer = types.intp
_step1 = types.ExternalFunction("mj_step1", types.void(_pointer, _pointer))
_step2 = types.ExternalFunction("mj_step2", types.void(_pointer, _pointer))
_full_mass = types.ExternalFunction("mj_fullM", types.void(_pointer, _pointer, _pointer))
_site_jacobian = types.ExternalFunction("mj_jacSite", types.void(_pointer, _pointer, _pointer, _pointer, types.int32))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _control_step(
    command: Any,
    model: int,
    data: int,
    qpos: Any,
    qvel: Any,
    ctrl: Any,
    packed_mass: Any,
    bias: Any,
    site: int,
    site_position: Any,
    site_rotation: Any,
    qpos_index: Any,
    qvel_index: Any,
    actuators: Any,
    limits: Any,
    gripper_actuators: Any,
    gripper_limits: Any,
    home_position: Any,
    home_rotation: Any,
    rest_position: Any,
    home_qpos: Any,
    home_qvel: Any,
    home_mass: Any,
    home_jacobian: Any,
    mass: Any,
    jacobian: Any,
    torque: Any,
    goal_position: Any,
    goal_rotation: Any,
    gripper: Any,
    at_home: bool,
) -> bool:
    for step in range(PHYSICS_STEPS):
        # mj_step1, control, mj_step2 is mj_step with the control computed on the state it will act on.
        _step1(model, data)
        first = at_home and step == 0
        position, rotation = (home_position, home_rotation) if first else (site_position, site_rotation)
        if step == 0:
            turn = np.empty(3)
            for i in range(3):
                goal_position[i] = position[i] + POSITION_SCALE * min(1.0, max(-1.0, command[i]))
                turn[i] = ROTATION_SCALE * min(1.0, max(-1.0, command[3 + i]))
            # robosuite keeps the previous orientation goal where no rotation is commanded.
            if turn[0] != 0.0 or turn[1] != 0.0 or turn[2] != 0.0:
                goal_rotation[:] = np.dot(rotation_matrix(turn), rotation.reshape(3, 3))
        if first:
            solved = osc_torque(
                home_mass, home_jacobian, position, rotation, home_qpos, home_qvel, bias, qpos_index, qvel_index,
                goal_position, goal_rotation, rest_position, torque,
            )  # fmt: skip
        else:
            _site_jacobian(model, data, jacobian[:3].ctypes.data, jacobian[3:].ctypes.data, site)
            _full_mass(model, mass.ctypes.data, packed_mass.ctypes.data)
            solved = osc_torque(
                mass, jacobian, position, rotation, qpos, qvel, bias, qpos_index, qvel_index,
                goal_position, goal_rotation, rest_position, torque,
            )  # fmt: skip
        if not solved:
            return False
        for i, actuator in enumerate(actuators):
            ctrl[actuator] = min(limits[i, 1], max(limits[i, 0], torque[i]))
        for i, actuator in enumerate(gripper_actuators):
            # The gripper's command creeps toward its end by one notch a physics step; the fingers oppose each other.
            notch = (2 * i - 1) * GRIPPER_SPEED * np.sign(command[6])
            gripper[i] = min(1.0, max(-1.0, gripper[i] + notch))
            low, high = gripper_limits[i]
            ctrl[actuator] = 0.5 * (low + high) + 0.5 * (high - low) * gripper[i]
        _step2(model, data)
    return True


@dataclass
class Arm:
    """The robot in one world: its controller's memory, and the arrays that a control step reads and writes.

    Attributes:
        scene: The compiled scene.
        data: The world's state.
        at_home: The controller has not looked at the state since the reset.
    """

    scene: Scene
    data: mujoco.MjData
    at_home: bool = True

    def __post_init__(self) -> None:
        model, data, arm, home = self.scene.model, self.data, self.scene.arm, self.scene.home
        # Views of MuJoCo's memory, looked up once. They hold the data's memory alive; ``self`` holds the model's.
        self._arrays: tuple[Any, ...] = (
            model._address,
            data._address,
            data.qpos,
            data.qvel,
            data.ctrl,
            data.qM,
            data.qfrc_bias,
            arm.site,
            data.site_xpos[arm.site],
            data.site_xmat[arm.site],
            arm.qpos,
            arm.qvel,
            arm.actuators,
            np.ascontiguousarray(model.actuator_ctrlrange[arm.actuators]),
            arm.gripper_actuators,
            np.ascontiguousarray(model.actuator_ctrlrange[arm.gripper_actuators]),
            home.position,
            np.ascontiguousarray(home.rotation).ravel(),
            home.joint_position,
            home.qpos,
            home.qvel,
            home.mass,
            home.jacobian,
            np.empty((model.nv, model.nv)),
            np.empty((6, model.nv)),
            np.empty(len(arm.qvel)),
            data.site_xpos[arm.site].copy(),
            np.array(home.rotation, order="C"),
            np.zeros(len(arm.gripper_actuators)),
        )

    def move(self, command: NDArray[np.float64]) -> bool:
        """Let the world pass one control step of 50 ms under a command.

        Args:
            command: (7,) float64 action.

        Returns:
            False if the controller met a singular arm and stopped; the world's state means nothing then.
        """
        solved = bool(_control_step(command, *self._arrays, self.at_home))
        self.at_home = False
        return solved
