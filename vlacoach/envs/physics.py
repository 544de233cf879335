"""The robot in one world: what its controller remembers between control steps, and the memory they work on."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.controller import control_step
from vlacoach.envs.scene import Scene
from vlacoach.errors import ExitCode


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # type: ignore[untyped-decorator]
def _fatal(text: bytes) -> None:
    """End the process, as MuJoCo would, but with the simulator's exit status and without a prompt and a log file.

    The bindings turn MuJoCo's fatal errors into exceptions around their own calls only; from compiled code there is no
    way back. A worker that ends so is replaced.
    """
    sys.stderr.write(f"MuJoCo cannot go on: {text.decode(errors='replace')}\n")
    sys.stderr.flush()
    os._exit(ExitCode.SIMULATOR)


for _library in Path(mujoco.__file__).parent.glob("libmujoco*"):
    _handler = ctypes.c_void_p.in_dll(ctypes.CDLL(str(_library)), "mju_user_error")
    _handler.value = ctypes.cast(_fatal, ctypes.c_void_p).value


@dataclass
class Arm:
    """The robot in one world: its controller's memory, and the arrays that a control step reads and writes.

    Attributes:
        scene: The compiled scene.
        data: The world's state.
        exact: Solve for contacts twice a physics step, as LIBERO does.
        at_home: The controller has not looked at the state since the reset.
    """

    scene: Scene
    data: mujoco.MjData
    exact: bool = False
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
        solved = bool(control_step(command, *self._arrays, self.at_home, self.exact))
        self.at_home = False
        return solved
