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
    velocity: Any,
    joint_position: Any,
    joint_velocity: Any,
    goal_position: Any,
    goal_rotation: Any,
    rest_position: Any,
    bias: Any,
) -> Any:
    """Joint torques that pull the hand to its goal pose; all arrays float64.

    Args:
        mass: (7, 7) joint-space inertia of the arm.
        jacobian: (6, 7) of the grip site, translation above rotation.
        position: (3,) of the grip site, meters.
        rotation: (3, 3) of the grip site.
        velocity: (6,) of the grip site, m/s and rad/s.
        joint_position: (7,) radians.
        joint_velocity: (7,) rad/s.
        goal_position: (3,) meters.
        goal_rotation: (3, 3).
        rest_position: (7,) posture held in the null space, radians.
        bias: (7,) Coriolis, centrifugal and gravity torques.

    Returns:
        (7,) torques in Nm, before the actuators' limits.
    """
    kp = 150.0
    kd = 2.0 * math.sqrt(kp)
    inverse_mass = np.linalg.inv(mass)
    j_pos = np.ascontiguousarray(jacobian[:3])
    j_rot = np.ascontiguousarray(jacobian[3:])
    lambda_full = np.linalg.pinv(np.dot(np.dot(jacobian, inverse_mass), jacobian.T))
    lambda_pos = np.linalg.pinv(np.dot(np.dot(j_pos, inverse_mass), j_pos.T))
    lambda_rot = np.linalg.pinv(np.dot(np.dot(j_rot, inverse_mass), j_rot.T))

    error = np.zeros(3)
    for k in range(3):
        # Half the sum of the cross products of current and desired axes: the rotation vector for small angles.
        a, b = rotation[:, k], goal_rotation[:, k]
        error[0] += 0.5 * (a[1] * b[2] - a[2] * b[1])
        error[1] += 0.5 * (a[2] * b[0] - a[0] * b[2])
        error[2] += 0.5 * (a[0] * b[1] - a[1] * b[0])

    wrench = np.empty(6)
    wrench[:3] = np.dot(lambda_pos, kp * (goal_position - position) - kd * velocity[:3])
    wrench[3:] = np.dot(lambda_rot, kp * error - kd * velocity[3:])

    posture = np.dot(mass, 10.0 * (rest_position - joint_position) - 2.0 * math.sqrt(10.0) * joint_velocity)
    dynamically_consistent = np.dot(np.dot(inverse_mass, jacobian.T), lambda_full)
    null_space = np.eye(7) - np.dot(dynamically_consistent, jacobian)
    return np.dot(jacobian.T, wrench) + bias + np.dot(null_space.T, posture)


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
