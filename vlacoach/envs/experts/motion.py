"""Closed-loop hand motion for scripted experts: from a target pose to one clean action.

An expert's actions become classification targets, one of 256 bins per dimension, so they are kept to a handful of
distinct values: a translation is one of seven levels, a rotation is exactly 0 unless the task turns the hand, and
the gripper is exactly -1 or +1. Every value is a function of the current state alone, so that the same picture
always carries the same label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Vector = NDArray[np.float64]
Action = NDArray[np.float64]
Steps = Iterator[Action]

OPEN = -1.0
CLOSE = 1.0

DOWN: Vector = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Nominal hand rotation: pointing straight down, fingers opening along world y."""

TRANSLATION_LEVELS: tuple[tuple[float, float], ...] = ((0.004, 0.0), (0.010, 0.25), (0.022, 0.5))
"""``(error below, |action|)`` pairs in meters; a larger error moves at full speed, 1.0.

The operational-space controller settles near 0.0135 m per step at full speed and coasts about 0.02 m after it.
"""

ROTATION_LEVELS: tuple[tuple[float, float], ...] = ((0.08, 0.0), (0.2, 0.25), (0.5, 0.5))
"""``(error below, |action|)`` pairs in radians, for tasks that turn the hand."""

DRIFT_TOLERANCE = 0.2
"""Orientation error (rad) up to which a hand that points down is left alone.

Initial states start up to 0.1 rad away from the nominal rotation and the controller holds whatever rotation it has.
"""


class Scene(Protocol):
    """Privileged state that an expert may read; ``SceneView`` of the simulator has these members."""

    @property
    def model(self) -> Any:
        """Compiled MuJoCo model."""

    @property
    def data(self) -> Any:
        """MuJoCo data of the world."""

    def end_effector(self) -> tuple[Vector, Vector]:
        """Position (3,) in m and rotation matrix (3, 3) of the grip site."""

    def body_position(self, name: str) -> Vector:
        """World position (3,) of a body in m."""

    def site_position(self, name: str) -> Vector:
        """World position (3,) of a site in m."""

    def geom_position(self, name: str) -> Vector:
        """World position (3,) of a geom in m."""

    def gripper_opening(self) -> float:
        """Distance between the fingers in m, 0 to 0.08."""


Expert = Callable[[Scene], Steps]
"""A scripted expert: from privileged state to actions, for as long as it is asked."""


def snap(error: Vector, levels: tuple[tuple[float, float], ...]) -> Vector:
    """Turn an error into one of a few speeds, per component.

    Args:
        error: Signed error (n,), in the unit of the thresholds.
        levels: ``(error below, |action|)`` pairs in rising order; beyond the last one the action is +-1.

    Returns:
        Action components (n,) in [-1, 1]; exactly 0.0 inside the first threshold if its level is 0.
    """
    thresholds = np.array([threshold for threshold, _ in levels])
    speeds = np.array([*(speed for _, speed in levels), 1.0])
    # Adding 0.0 turns the -0.0 of a negative error inside the deadband into 0.0.
    action: Vector = np.sign(error) * speeds[np.searchsorted(thresholds, np.abs(error), side="right")] + 0.0
    return action


def rotation_error(target: Vector, current: Vector) -> Vector:
    """Rotation vector (3,) in rad, world frame, that takes ``current`` (3, 3) to ``target`` (3, 3)."""
    return np.asarray(Rotation.from_matrix(target @ current.T).as_rotvec(), dtype=np.float64)


@dataclass
class Hand:
    """The robot's hand in one world, and how it is held while it moves.

    Args:
        scene: Privileged view of the world.
        rotation: Hand rotation to keep (3, 3).
        turning: Whether the task turns the hand, which is then held to 0.05 rad; otherwise only drifts larger than
            ``DRIFT_TOLERANCE`` are corrected.
    """

    scene: Scene
    rotation: Vector
    turning: bool = False

    @property
    def position(self) -> Vector:
        """Position (3,) of the grip site in m."""
        return self.scene.end_effector()[0]

    def turn(self, rotation: Vector) -> None:
        """Hold the rotation ``rotation`` (3, 3) from now on."""
        self.rotation = rotation
        self.turning = True

    def misalignment(self) -> float:
        """Angle (rad) between the hand's rotation and the one it should hold."""
        return float(np.linalg.norm(rotation_error(self.rotation, self.scene.end_effector()[1])))

    def toward(self, target: Vector, gripper: float, speed: float = 1.0) -> Action:
        """Action (7,) that brings the grip site toward ``target`` (3,) m, at most at ``speed`` in [0, 1]."""
        position, rotation = self.scene.end_effector()
        action = np.zeros(7)
        action[:3] = np.clip(snap(target - position, TRANSLATION_LEVELS), -speed, speed)
        error = rotation_error(self.rotation, rotation)
        if self.turning or np.linalg.norm(error) > DRIFT_TOLERANCE:
            action[3:6] = snap(error, ROTATION_LEVELS)
        action[6] = gripper
        return action


def hold(hand: Hand, gripper: float, steps: int) -> Steps:
    """Stay where the hand is for ``steps`` steps, with the gripper command ``gripper``."""
    still = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper])
    for _ in range(steps):
        yield still.copy()


def reach(
    hand: Hand,
    target: Callable[[], Vector],
    gripper: float,
    tolerance: float = 0.01,
    angle: float = np.inf,
    speed: float = 1.0,
    steps: int = 80,
) -> Steps:
    """Move to ``target()`` (3,) m until within ``tolerance`` m and ``angle`` rad, or for ``steps`` steps."""
    for _ in range(steps):
        goal = target()
        if np.linalg.norm(goal - hand.position) < tolerance and hand.misalignment() < angle:
            return
        yield hand.toward(goal, gripper, speed)


def rise(hand: Hand, gripper: float, height: float) -> Steps:
    """Move straight up by ``height`` m."""
    above = hand.position + np.array([0.0, 0.0, height])
    yield from reach(hand, lambda: above, gripper, tolerance=0.02, steps=15)


def funnel(goal: Vector, position: Vector, clearance: float, radius: float = 0.012, slope: float = 2.5) -> Vector:
    """Lift ``goal`` (3,) along a cone, so that a straight approach comes down only once it is above the goal.

    Args:
        goal: Where to end, m.
        position: Where the moving point is now, m.
        clearance: Greatest height above the goal, m.
        radius: Horizontal error (m) below which the goal is not lifted.
        slope: Height gained per meter of horizontal error.
    """
    away = float(np.linalg.norm(goal[:2] - position[:2]))
    lifted = goal.copy()
    lifted[2] += min(max(away - radius, 0.0) * slope, clearance)
    return lifted
