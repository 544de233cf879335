"""The operational-space controller of LIBERO's arm, compiled.

Same law and constants as robosuite 1.4's ``OSC_POSE`` as LIBERO configures it (fixed impedance, kp 150, damping
ratio 1, decoupled position and orientation, delta actions, no interpolation, null-space posture gain 10), after
Khatib, "A unified approach for motion and force control of robot manipulators" (1987).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import llvmlite.binding
import mujoco
import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from vlacoach.envs.scene import PHYSICS_STEPS

Array = NDArray[np.float64]

POSITION_SCALE = 0.05
"""Meters commanded by a translation of 1."""
ROTATION_SCALE = 0.5
"""Radians commanded by a rotation of 1."""
GRIPPER_SPEED = 0.01
"""Change of the gripper's command in one physics step."""


@njit(cache=True)  # type: ignore[untyped-decorator]
def osc_torque(
    mass: Any,
    jacobian: Any,
    position: Any,
    rotation: Any,
    qpos: Any,
    qvel: Any,
    bias: Any,
    qpos_index: Any,
    qvel_index: Any,
    goal_position: Any,
    goal_rotation: Any,
    rest_position: Any,
    torque: Any,
) -> bool:
    """Joint torques that pull the hand to its goal pose; all arrays float64, indices int64.

    Takes the whole model's arrays, so that picking the arm's entries is compiled too.

    Args:
        mass: (nv, nv) joint-space inertia.
        jacobian: (6, nv) of the grip site, translation above rotation.
        position: (3,) of the grip site, meters.
        rotation: (9,) of the grip site, row by row.
        qpos: (nq,) joint positions.
        qvel: (nv,) joint velocities.
        bias: (nv,) Coriolis, centrifugal and gravity torques.
        qpos_index: (7,) where the arm's joints are in ``qpos``.
        qvel_index: (7,) where the arm's joints are in ``qvel``.
        goal_position: (3,) meters.
        goal_rotation: (3, 3).
        rest_position: (7,) posture held in the null space, radians.
        torque: (7,) receives the torques in Nm, before the actuators' limits.

    Returns:
        False where the arm is stretched out and its hand cannot move in some direction; the torques mean nothing then.
    """
    kp = 150.0
    kd = 2.0 * math.sqrt(kp)
    n = len(qvel_index)
    inertia, arm_jacobian, acceleration = np.empty((n, n)), np.empty((6, n)), np.empty(n)
    for i in range(n):
        acceleration[i] = 10.0 * (rest_position[i] - qpos[qpos_index[i]])
        acceleration[i] -= 2.0 * math.sqrt(10.0) * qvel[qvel_index[i]]
        for j in range(n):
            inertia[i, j] = mass[qvel_index[i], qvel_index[j]]
        for j in range(6):
            arm_jacobian[j, i] = jacobian[j, qvel_index[i]]
    velocity = np.dot(jacobian, qvel)

    # With M = L L', the hand's mobility J M^-1 J' is X X' for X = J L'^-1. robosuite takes pseudo-inverses of M and of
    # the mobility; away from exact singularities solving is the same, at a tenth of the cost.
    factor, scaled = inertia.copy(), arm_jacobian.copy()
    if not _cholesky(factor):
        return False
    for k in range(6):
        _forward(factor, scaled[k])
    mobility = np.dot(scaled, scaled.T)
    linear, angular = mobility[:3, :3].copy(), mobility[3:, 3:].copy()
    if not (_cholesky(mobility) and _cholesky(linear) and _cholesky(angular)):
        return False

    wrench = np.empty(6)
    for k in range(3):
        # Half the sum of the cross products of current and desired axes: the rotation vector for small angles.
        i, j = (k + 1) % 3, (k + 2) % 3
        turn = 0.0
        for axis in range(3):
            turn += rotation[3 * i + axis] * goal_rotation[j, axis] - rotation[3 * j + axis] * goal_rotation[i, axis]
        wrench[k] = kp * (goal_position[k] - position[k]) - kd * velocity[k]
        wrench[3 + k] = kp * 0.5 * turn - kd * velocity[3 + k]
    _solve(linear, wrench[:3])
    _solve(angular, wrench[3:])

    # The posture torque M a, less what of it would move the hand: (I - J' Lambda J M^-1) M a = M a - J' Lambda J a.
    moved = np.dot(arm_jacobian, acceleration)
    _solve(mobility, moved)
    torque[:] = np.dot(arm_jacobian.T, wrench - moved) + np.dot(inertia, acceleration)
    for i in range(n):
        torque[i] += bias[qvel_index[i]]
    return True


@njit(cache=True)  # type: ignore[untyped-decorator]
def _cholesky(matrix: Any) -> bool:
    """Replace the lower triangle by the Cholesky factor; False if the matrix is not positive definite, or NaN."""
    n = len(matrix)
    for j in range(n):
        for i in range(j, n):
            value = matrix[i, j]
            for k in range(j):
                value -= matrix[i, k] * matrix[j, k]
            if i > j:
                matrix[i, j] = value / matrix[j, j]
            elif value > 0.0:
                matrix[j, j] = math.sqrt(value)
            else:
                return False
    return True


@njit(cache=True)  # type: ignore[untyped-decorator]
def _forward(factor: Any, vector: Any) -> None:
    """Replace b by the solution of L x = b."""
    for i in range(len(factor)):
        for k in range(i):
            vector[i] -= factor[i, k] * vector[k]
        vector[i] /= factor[i, i]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _solve(factor: Any, vector: Any) -> None:
    """Replace b by the solution of L L' x = b."""
    _forward(factor, vector)
    for i in range(len(factor) - 1, -1, -1):
        for k in range(i + 1, len(factor)):
            vector[i] -= factor[k, i] * vector[k]
        vector[i] /= factor[i, i]


@njit(cache=True)  # type: ignore[untyped-decorator]
def rotation_matrix(vector: Any) -> Any:
    """Rotation matrix of a rotation vector, through a quaternion in single precision, as robosuite computes it.

    The rounding is worth keeping: a goal that differs by 1e-8 is where paths begin to part that contact drives apart.

    Args:
        vector: (3,) axis times angle, radians.

    Returns:
        (3, 3) float64.
    """
    angle = math.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2)
    if angle == 0.0:
        return np.eye(3)
    sine = math.sin(angle / 2.0)
    q = np.empty(4, dtype=np.float32)
    q[0] = math.cos(angle / 2.0)
    for i in range(3):
        q[1 + i] = vector[i] / angle * sine
    q *= math.sqrt(2.0 / np.dot(q, q))
    p = np.outer(q, q)
    return np.array(
        [
            [1.0 - p[2, 2] - p[3, 3], p[1, 2] - p[3, 0], p[1, 3] + p[2, 0]],
            [p[1, 2] + p[3, 0], 1.0 - p[1, 1] - p[3, 3], p[2, 3] - p[1, 0]],
            [p[1, 3] - p[2, 0], p[2, 3] + p[1, 0], 1.0 - p[1, 1] - p[2, 2]],
        ]
    )


def axis_angle(quaternion: Array) -> Array:
    """Axis times angle of a unit quaternion, as OpenVLA-OFT's proprioception has it.

    Args:
        quaternion: (4,) in MuJoCo's order w, x, y, z. Its sign is kept, so angles reach from 0 to 2 pi.

    Returns:
        (3,) float64, radians.
    """
    w = min(1.0, max(-1.0, float(quaternion[0])))
    sine = math.sqrt(1.0 - w * w)
    if math.isclose(sine, 0.0):
        return np.zeros(3)
    return np.asarray(quaternion[1:] * (2.0 * math.acos(w) / sine), dtype=np.float64)


# Compiled code finds MuJoCo's functions by name in the library that the Python bindings have loaded already. By name
# rather than by address, so that numba can keep the machine code on disk.
for _library in Path(mujoco.__file__).parent.glob("libmujoco*"):
    llvmlite.binding.load_library_permanently(str(_library))

_pointer = types.intp
_step1 = types.ExternalFunction("mj_step1", types.void(_pointer, _pointer))
_step2 = types.ExternalFunction("mj_step2", types.void(_pointer, _pointer))
_solve_again = types.ExternalFunction("mj_forwardSkip", types.void(_pointer, _pointer, types.int32, types.int32))
_full_mass = types.ExternalFunction("mj_fullM", types.void(_pointer, _pointer, _pointer))
_site_jacobian = types.ExternalFunction("mj_jacSite", types.void(_pointer, _pointer, _pointer, _pointer, types.int32))


_AFTER_VELOCITY = int(mujoco.mjtStage.mjSTAGE_VEL)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def control_step(
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
    exact: bool,
) -> bool:
    """25 physics steps under one command, without Python between them and without holding the interpreter's lock.

    Everything that is compiled together stands in this file: numba looks at no other when it decides whether the code
    it has kept on disk is still right.

    Args:
        command: (7,) action.
        model: Address of the ``mjModel``.
        data: Address of the ``mjData``; the arrays from ``qpos`` to ``bias``, and the site's pose, are views of it.
        qpos: (nq,).
        qvel: (nv,).
        ctrl: (nu,), written to.
        packed_mass: (nM,) ``qM``.
        bias: (nv,) ``qfrc_bias``.
        site: Index of the grip site.
        site_position: (3,).
        site_rotation: (9,).
        qpos_index: (7,) where the arm's joints are in ``qpos``.
        qvel_index: (7,) where the arm's joints are in ``qvel``.
        actuators: (7,) indices of the arm's actuators.
        limits: (7, 2) of their torques.
        gripper_actuators: (2,) indices.
        gripper_limits: (2, 2) of their controls.
        home_position: (3,); this and the next six are what the controller believes just after a reset.
        home_rotation: (9,).
        rest_position: (7,) posture held in the null space.
        home_qpos: (nq,).
        home_qvel: (nv,).
        home_mass: (nv, nv).
        home_jacobian: (6, nv).
        mass: (nv, nv) room to work in.
        jacobian: (6, nv) room to work in.
        torque: (7,) room to work in.
        goal_position: (3,) remembered from one control step to the next, as are the next two.
        goal_rotation: (3, 3).
        gripper: (2,) the fingers' commands, -1 to 1.
        at_home: Whether the world has just been reset.
        exact: First solve for the accelerations under the previous control, as robosuite does: the solver then starts
            from there.

    Returns:
        False if the arm is singular; see :func:`osc_torque`.
    """
    for step in range(PHYSICS_STEPS):
        # mj_step1, control, mj_step2 is mj_step with the control computed on the state it will act on.
        _step1(model, data)
        if exact:
            _solve_again(model, data, _AFTER_VELOCITY, 1)
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
