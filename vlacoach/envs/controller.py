"""The operational-space controller of LIBERO's arm, compiled.

Same law and constants as robosuite 1.4's ``OSC_POSE`` as LIBERO configures it (fixed impedance, kp 150, damping
ratio 1, decoupled position and orientation, delta actions, no interpolation, null-space posture gain 10), after
Khatib, "A unified approach for motion and force control of robot manipulators" (1987).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

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
) -> Any:
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

    Returns:
        (7,) torques in Nm, before the actuators' limits.
    """
    kp = 150.0
    kd = 2.0 * math.sqrt(kp)
    n = len(qvel_index)
    arm_mass, arm_jacobian, posture_error = np.empty((n, n)), np.empty((6, n)), np.empty(n)
    for i in range(n):
        posture_error[i] = 10.0 * (rest_position[i] - qpos[qpos_index[i]])
        posture_error[i] -= 2.0 * math.sqrt(10.0) * qvel[qvel_index[i]]
        for j in range(n):
            arm_mass[i, j] = mass[qvel_index[i], qvel_index[j]]
        for j in range(6):
            arm_jacobian[j, i] = jacobian[j, qvel_index[i]]
    velocity = np.dot(jacobian, qvel)

    # robosuite takes pseudo-inverses here; away from exact singularities these are the inverses, at a third the cost.
    inverse_mass = np.linalg.inv(arm_mass)
    mobility = np.dot(np.dot(arm_jacobian, inverse_mass), arm_jacobian.T)
    lambda_full = np.linalg.inv(mobility)
    lambda_pos = np.linalg.inv(np.ascontiguousarray(mobility[:3, :3]))
    lambda_rot = np.linalg.inv(np.ascontiguousarray(mobility[3:, 3:]))

    error = np.zeros(3)
    for k in range(3):
        # Half the sum of the cross products of current and desired axes: the rotation vector for small angles.
        a0, a1, a2 = rotation[k], rotation[3 + k], rotation[6 + k]
        b0, b1, b2 = goal_rotation[0, k], goal_rotation[1, k], goal_rotation[2, k]
        error[0] += 0.5 * (a1 * b2 - a2 * b1)
        error[1] += 0.5 * (a2 * b0 - a0 * b2)
        error[2] += 0.5 * (a0 * b1 - a1 * b0)

    wrench = np.empty(6)
    wrench[:3] = np.dot(lambda_pos, kp * (goal_position - position) - kd * velocity[:3])
    wrench[3:] = np.dot(lambda_rot, kp * error - kd * velocity[3:])

    posture = np.dot(arm_mass, posture_error)
    consistent_inverse = np.dot(np.dot(inverse_mass, arm_jacobian.T), lambda_full)
    null_space = np.eye(n) - np.dot(consistent_inverse, arm_jacobian)
    torque = np.dot(arm_jacobian.T, wrench) + np.dot(null_space.T, posture)
    for i in range(n):
        torque[i] += bias[qvel_index[i]]
    return torque


def rotation_matrix(vector: Array) -> Array:
    """Rotation matrix of a rotation vector, through the same quaternion formula as robosuite.

    Args:
        vector: (3,) axis times angle, radians.

    Returns:
        (3, 3) float64.
    """
    angle = float(np.linalg.norm(vector))
    if math.isclose(angle, 0.0):
        return np.eye(3)
    x, y, z = vector / angle * math.sin(angle / 2.0)
    w = math.cos(angle / 2.0)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
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
