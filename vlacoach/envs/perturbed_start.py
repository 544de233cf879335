"""How a perturbed episode starts: the arm bent otherwise, the objects elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import mujoco
import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.appearance import is_arena
from vlacoach.envs.perturbations import PerturbedEpisode
from vlacoach.envs.scene import HomePose, Scene
from vlacoach.errors import SimulatorError

ATTEMPTS = 100
"""Arms, and directions of one object, that are tried."""

LAYOUTS = 30
"""Layouts that are settled before an episode is given up."""

SLACK = 0.01
"""Meters by which an object may come to rest off the place where it was put, and higher or lower than before."""

_JOINT_MARGIN = 0.05
_FALL = 0.1
"""Meters that are more than the center of an object sinks when it tips over, and less than when it leaves the table."""

_UPRIGHT = float(np.cos(np.deg2rad(10.0)))


def bend_arm(scene: Scene, data: mujoco.MjData, state: NDArray[np.float64], episode: PerturbedEpisode) -> HomePose:
    """Bend the arm away from where an initial state has it, by a joint vector of a fixed length.

    LIBERO's controller believes, in its first physics step, in the home pose, and would pull the arm back to it. Here
    it is told of the pose in which the arm really is.

    Args:
        scene: The scene.
        data: Memory to try poses in; its state is lost.
        state: (1 + nq + nv,) initial state; the arm's joints in it are changed.
        episode: The episode.

    Returns:
        What the controller starts with.

    Raises:
        SimulatorError: Every pose that was tried hits something, or a joint's end.
    """
    model, joints = scene.model, scene.arm.qpos
    generator, length = episode.generator("robot"), episode.along("robot").magnitude("joints_rad")
    places = np.array([np.flatnonzero(model.jnt_qposadr == address)[0] for address in joints])
    low, high = model.jnt_range[places].T + np.array([[_JOINT_MARGIN], [-_JOINT_MARGIN]])
    robot = int(model.body_rootid[scene.arm.hand_body])
    straight = state[1 + joints]
    for _ in range(ATTEMPTS):
        drawn = generator.normal(size=len(joints))
        bent = straight + length * drawn / np.linalg.norm(drawn)
        state[1 + joints] = bent
        write_state(scene, data, state)
        if np.all((low < bent) & (bent < high)) and not _touched(model, data, robot):
            return _home_of(scene, data)
    raise SimulatorError(
        f"No pose of the arm that is {length:g} rad away and free of collisions was found in {ATTEMPTS} attempts.",
        "Use another perturbation seed, or a lower severity of robot.",
    )


def write_state(scene: Scene, data: mujoco.MjData, state: NDArray[np.float64]) -> None:
    """Put a state (1 + nq + nv,) into a world, with all that follows from it; nothing of what was there is left."""
    model = scene.model
    mujoco.mj_resetData(model, data)
    data.time = state[0]
    data.qpos[:] = state[1 : 1 + model.nq]
    data.qvel[:] = state[1 + model.nq :]
    mujoco.mj_forward(model, data)


def _home_of(scene: Scene, data: mujoco.MjData) -> HomePose:
    """The controller's view of the arm as it is in a state."""
    model, arm = scene.model, scene.arm
    full, jacobian = np.zeros((model.nv, model.nv)), np.zeros((6, model.nv))
    mujoco.mj_fullM(model, full, data.qM)
    mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], arm.site)
    home = scene.home
    qpos, mass, jacobians = (np.zeros_like(values) for values in (home.qpos, home.mass, home.jacobian))
    qpos[arm.qpos] = data.qpos[arm.qpos]
    mass[np.ix_(arm.qvel, arm.qvel)] = full[np.ix_(arm.qvel, arm.qvel)]
    jacobians[:, arm.qvel] = jacobian[:, arm.qvel]
    return replace(
        home,
        position=data.site_xpos[arm.site].copy(),
        rotation=data.site_xmat[arm.site].reshape(3, 3).copy(),
        joint_position=data.qpos[arm.qpos].copy(),
        qpos=qpos,
        mass=mass,
        jacobian=jacobians,
    )


def _touched(model: mujoco.MjModel, data: mujoco.MjData, root: int) -> set[int]:
    """What a body that hangs on the world touches, by the bodies that hang on the world."""
    pairs = model.body_rootid[model.geom_bodyid[data.contact.geom.reshape(-1, 2)]]
    ours = pairs[(pairs == root).any(axis=1)]
    return {int(body) for body in ours.ravel()} - {root}


def _upward(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) where an object's upward axis points."""
    axis = np.empty(3)
    mujoco.mju_rotVecQuat(axis, np.array([0.0, 0.0, 1.0]), quaternion)
    return axis


@dataclass(frozen=True)
class _Movable:
    """An object that stands on the table or the floor, by itself."""

    body: int
    qpos: int


class Layouts:
    """Layouts of an episode: each object that stands by itself is shifted on the table, free of collisions.

    What stands on another thing or carries one stays, since instructions speak of it: "the bowl on the stove".

    Args:
        scene: The scene.
        state: (1 + nq + nv,) plain initial state.
        settled: What has become of it after settling.
        episode: The episode.

    Raises:
        SimulatorError: No object stands by itself.
    """

    def __init__(
        self, scene: Scene, state: NDArray[np.float64], settled: mujoco.MjData, episode: PerturbedEpisode
    ) -> None:
        model = scene.model
        self._scene = scene
        self._generator = episode.generator("layout")
        self._length = episode.along("layout").magnitude("shift_m")
        free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        self._objects = [int(body) for body in model.jnt_bodyid[free]]
        self._arena = {body for body in range(model.nbody) if is_arena(model, body)}
        self._movable = [
            _Movable(int(model.jnt_bodyid[joint]), int(model.jnt_qposadr[joint]))
            for joint in free
            if _touched(model, settled, int(model.jnt_bodyid[joint])) <= self._arena
        ]
        if not self._movable:
            raise SimulatorError("No object of the task stands by itself.", "Leave out the perturbation layout.")
        self._state = state
        self._places = np.stack([state[1 + address : 3 + address] for address in model.jnt_qposadr[free]])
        self._heights, self._upward = self._stance(settled)
        self._shift = np.zeros((model.nbody, 2))
        # Some objects of official states slide on landing, and some tip over; more than that is not asked of them.
        self._slack = np.maximum(SLACK, self._slide(settled))
        placed = np.stack([_upward(state[4 + address : 8 + address]) for address in model.jnt_qposadr[free]])
        self._steady = np.sum(self._upward * placed, axis=1) > _UPRIGHT

    def draw(self, data: mujoco.MjData) -> Iterator[NDArray[np.float64]]:
        """Initial states with objects elsewhere; whether one is good shows after it has settled (:meth:`holds`).

        Args:
            data: Memory to try places in; its state is lost.
        """
        for _ in range(LAYOUTS):
            self._shift[:] = 0.0
            moved = self._state.copy()
            for item in self._generator.permutation(np.arange(len(self._movable))):
                self._move(self._movable[item], data, moved)
            if self._shift.any():
                yield moved

    def _move(self, item: _Movable, data: mujoco.MjData, state: NDArray[np.float64]) -> None:
        """Shift one object in a random direction in which it hits nothing; without one it stays."""
        place = slice(1 + item.qpos, 3 + item.qpos)
        before = state[place].copy()
        for _ in range(ATTEMPTS):
            angle = self._generator.uniform(0.0, 2.0 * np.pi)
            shift = self._length * np.array([np.cos(angle), np.sin(angle)])
            state[place] = before + shift
            write_state(self._scene, data, state)
            if _touched(self._scene.model, data, item.body) <= self._arena:
                self._shift[item.body] = shift
                return
        state[place] = before

    def holds(self, data: mujoco.MjData) -> bool:
        """Whether all stand, settled, where they were put: none has slid, tipped over, or fallen off the table."""
        heights, upward = self._stance(data)
        upright = np.sum(upward * self._upward, axis=1) > _UPRIGHT
        level = np.abs(heights - self._heights) < SLACK
        stands = np.where(self._steady, upright & level, heights - self._heights > -_FALL)
        return bool(np.all(stands & (self._slide(data) <= self._slack)))

    def _slide(self, data: mujoco.MjData) -> NDArray[np.float64]:
        """(objects,) meters on the table between where an object was put and where it is."""
        ways = data.xpos[self._objects, :2] - self._places - self._shift[self._objects]
        return np.asarray(np.linalg.norm(ways, axis=1))

    def _stance(self, data: mujoco.MjData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Heights (objects,) and upward axes (objects, 3) of the objects."""
        return data.xpos[self._objects, 2].copy(), data.xmat.reshape(-1, 3, 3)[self._objects, :, 2].copy()
