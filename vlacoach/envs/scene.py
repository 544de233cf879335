"""A compiled LIBERO scene: one read-only MuJoCo model and what is needed to drive any number of worlds in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from vlacoach.envs import libero_package
from vlacoach.envs.goals import Predicate, compile_goal
from vlacoach.envs.suites import Task

PHYSICS_STEPS = 25
"""Physics steps of 2 ms in one control step: control runs at 20 Hz."""


@dataclass(frozen=True)
class ArmIndices:
    """Where the robot sits in the model's arrays."""

    qpos: NDArray[np.int64]
    qvel: NDArray[np.int64]
    actuators: NDArray[np.int64]
    gripper_qpos: NDArray[np.int64]
    gripper_actuators: NDArray[np.int64]
    site: int
    hand_body: int


@dataclass(frozen=True)
class HomePose:
    """What robosuite's controller believes just after a reset: the robot's home pose, at rest.

    LIBERO sets the initial state behind the controller's back, so the first physics step after a reset is still
    computed from these values, and its first goal starts from this position. Kept, to move as LIBERO moves.
    """

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]
    joint_position: NDArray[np.float64]
    qpos: NDArray[np.float64]
    qvel: NDArray[np.float64]
    mass: NDArray[np.float64]
    jacobian: NDArray[np.float64]


@dataclass(frozen=True)
class Burner:
    """A site that LIBERO shows only while its stove is on."""

    site: int
    is_on: Predicate


@dataclass
class Scene:
    """One compiled scene; several tasks may share it.

    Attributes:
        model: The MuJoCo model. Shared by all worlds and never written to, but for the burners' visibility.
        arm: Indices of the robot.
        home: The controller's state after a reset; its joint position is also the null space's posture.
        burners: Sites shown while a stove is on.
    """

    model: mujoco.MjModel
    arm: ArmIndices
    home: HomePose
    burners: tuple[Burner, ...]
    _env: Any
    _goals: dict[str, Predicate] = field(default_factory=dict)

    def goal(self, task: Task) -> Predicate:
        """The goal predicate of a task that lives in this scene."""
        if task.bddl_file not in self._goals:
            goal = libero_package.parse_problem(task.bddl_file)["goal_state"]
            self._goals[task.bddl_file] = compile_goal(self._env, self.model, goal)
        return self._goals[task.bddl_file]

    def show_burners(self, data: mujoco.MjData) -> None:
        """Set the burners' visibility to the state of one world, before it is rendered."""
        for burner in self.burners:
            self.model.site_rgba[burner.site, 3] = 1.0 if burner.is_on(data) else 0.0


def scene_key(task: Task) -> str:
    """A key that two tasks share exactly when they can share a compiled scene.

    Objects, fixtures, and regions decide; the goal and the initial placement of movable objects do not, since
    goals are compiled separately and initial states come as full simulator states.
    """
    problem = libero_package.parse_problem(task.bddl_file)
    fixtures = {name for names in problem["fixtures"].values() for name in names}
    placement = [state for state in problem["initial_state"] if state[1] in fixtures]
    parts = [problem[key] for key in ("problem_name", "fixtures", "objects", "scene_properties", "regions")]
    return json.dumps([*parts, placement], sort_keys=True, default=str)


def build_scene(task: Task, seed: int = 0) -> Scene:
    """Compile the scene of a task.

    Args:
        task: A task of a LIBERO suite.
        seed: Seed of the fixtures' placement, which LIBERO's initial states do not hold.

    Returns:
        The compiled scene; takes a few seconds, the first time in a process.
    """
    env = libero_package.control_env(task.bddl_file, seed).env
    model: mujoco.MjModel = env.sim.model._model
    robot = env.robots[0]

    def ids(values: Sequence[int]) -> NDArray[np.int64]:
        return np.asarray(values, dtype=np.int64)

    arm = ArmIndices(
        qpos=ids(robot._ref_joint_pos_indexes),
        qvel=ids(robot._ref_joint_vel_indexes),
        actuators=ids(robot._ref_joint_actuator_indexes),
        gripper_qpos=ids(robot._ref_gripper_joint_pos_indexes),
        gripper_actuators=ids([model.actuator(name).id for name in robot.gripper.actuators]),
        site=int(robot.eef_site_id),
        hand_body=int(model.body(robot.robot_model.eef_name).id),
    )
    return Scene(
        model=model,
        arm=arm,
        home=_home_pose(robot.controller, model, arm),
        burners=_burners(env, model),
        _env=env,
    )


def _home_pose(controller: Any, model: mujoco.MjModel, arm: ArmIndices) -> HomePose:
    """The controller's values, laid out as the whole model's arrays; entries of other joints stay zero."""
    qpos, qvel = np.zeros(model.nq), np.zeros(model.nv)
    mass, jacobian = np.zeros((model.nv, model.nv)), np.zeros((6, model.nv))
    qpos[arm.qpos] = controller.initial_joint
    mass[np.ix_(arm.qvel, arm.qvel)] = controller.mass_matrix
    jacobian[:, arm.qvel] = controller.J_full
    return HomePose(
        position=np.array(controller.ee_pos),
        rotation=np.array(controller.ee_ori_mat),
        joint_position=np.array(controller.initial_joint),
        qpos=qpos,
        qvel=qvel,
        mass=mass,
        jacobian=jacobian,
    )


def _burners(env: Any, model: mujoco.MjModel) -> tuple[Burner, ...]:
    found = []
    for name, state in env.object_states_dict.items():
        if state.object_state_type == "object" and state.has_turnon_affordance:
            sites = env.get_object(name).object_properties["vis_site_names"]
            is_on = compile_goal(env, model, [("turnon", name)])
            found += [Burner(int(model.site(site).id), is_on) for site, _ in sites.values()]
    return tuple(found)
