"""A compiled LIBERO scene: one read-only MuJoCo model and what is needed to drive any number of worlds in it.

Compiling takes seconds and LIBERO's own environment; :mod:`vlacoach.envs.scene_cache` keeps the result on disk.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from vlacoach.envs import libero_package
from vlacoach.envs.goals import Predicate, Term, compile_goal, describe_goal
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
    """A site that LIBERO shows only while its stove is on.

    Attributes:
        site: Index of the site.
        terms: When it is on, as :func:`vlacoach.envs.goals.describe_goal` says it.
    """

    site: int
    terms: list[Term]

    @functools.cached_property
    def is_on(self) -> Predicate:
        """Whether the stove is on in an ``mujoco.MjData``."""
        return compile_goal(self.terms)


@dataclass(frozen=True)
class Scene:
    """One compiled scene; several tasks may share it. Nothing in it needs LIBERO's environment.

    Attributes:
        model: The MuJoCo model. Shared by all worlds; only what is drawn of it is ever written to.
        arm: Indices of the robot.
        home: The controller's state after a reset; its joint position is also the null space's posture.
        burners: Sites shown while a stove is on.
        goals: Described goals of the tasks that live in the scene, by name.
    """

    model: mujoco.MjModel
    arm: ArmIndices
    home: HomePose
    burners: tuple[Burner, ...]
    goals: dict[str, list[Term]]

    def show_burners(self, data: mujoco.MjData) -> None:
        """Set the burners' visibility to the state of one world, before it is rendered."""
        for burner in self.burners:
            self.model.site_rgba[burner.site, 3] = 1.0 if burner.is_on(data) else 0.0


def scene_key(task: Task) -> str:
    """A key that two tasks share exactly when they can share a compiled scene.

    All but the goal decides. The initial placement of movable objects does too, although initial states come as full
    simulator states: LIBERO draws it from the generator that then places the fixtures, so tasks that differ in it have
    their cabinet and stove elsewhere.
    """
    sections = libero_package.bddl_sections(task.bddl_file)
    return json.dumps([section for section in sections if section[0] not in (":goal", ":language", ":obj_of_interest")])


def build_scene(tasks: Sequence[Task], seed: int = 0) -> Scene:
    """Compile the scene of some tasks.

    Args:
        tasks: Tasks of LIBERO that share a scene (see :func:`scene_key`).
        seed: Seed of the fixtures' placement, which LIBERO's initial states do not hold.

    Returns:
        The compiled scene; takes a few seconds, the first time in a process.
    """
    env = libero_package.control_env(tasks[0].bddl_file, seed).env
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
        goals={
            task.name: describe_goal(env, model, libero_package.parse_problem(task.bddl_file)["goal_state"])
            for task in tasks
        },
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
            terms = describe_goal(env, model, [("turnon", name)])
            found += [Burner(int(model.site(site).id), terms) for site, _ in sites.values()]
    return tuple(found)
