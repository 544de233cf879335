"""Many LIBERO worlds in one process, on compiled models that they share.

A world is an ``MjData`` and the little state the controller has: a goal pose and the gripper's command. Physics and
control follow robosuite 1.4 step by step, without its Python in the hot path.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlacoach.envs.appearance import Appearance, perturbed_appearance
from vlacoach.envs.controller import axis_angle
from vlacoach.envs.fresh_states import FreshStates
from vlacoach.envs.goals import Predicate, compile_goal
from vlacoach.envs.perturbations import PerturbedEpisode
from vlacoach.envs.perturbed_start import LAYOUTS, Layouts, bend_arm, write_state
from vlacoach.envs.physics import Arm
from vlacoach.envs.rendering import Renderer
from vlacoach.envs.scene import HomePose, Scene, scene_key
from vlacoach.envs.scene_cache import get_scene
from vlacoach.envs.sensor_noise import disturb_picture, disturb_state
from vlacoach.envs.suites import FIRST_FRESH_STATE, FRESH_STATE, Suite, Task, check_init_state, get_suite
from vlacoach.errors import ConfigError, SimulatorError
from vlacoach.profiles import RenderProfile

logger = logging.getLogger(__name__)

ACTION_DIM = 7
PROPRIOCEPTION_DIM = 8
SETTLE_STEPS = 10
"""Control steps of ``[0, 0, 0, 0, 0, 0, -1]`` after a reset, in which objects come to rest; never counted."""

_UNSTABLE = tuple(
    int(kind)
    for kind in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
        mujoco.mjtWarning.mjWARN_CONTACTFULL,
        mujoco.mjtWarning.mjWARN_CNSTRFULL,
    )
)


def _log_warning(text: str) -> None:
    logger.debug("MuJoCo: %s", text)


class UnstableSimulationError(SimulatorError):
    """MuJoCo reset or truncated a world's state; its episode is neither a success nor a failure."""


@dataclass
class _World:
    scene: Scene
    data: mujoco.MjData
    task: Task
    goal: Predicate
    arm: Arm
    episode: PerturbedEpisode | None = None
    appearance: Appearance | None = None

    def noise(self, sensor: int) -> np.random.Generator | None:
        """A generator for what a sensor sees now, if noise perturbs the episode: the same however often it is read."""
        if self.episode is None or not self.episode.along("noise").severity:
            return None
        return self.episode.generator("noise", round(self.data.time / self.scene.model.opt.timestep), sensor)


class SceneView:
    """Privileged, read-only sight of one world, for scripted experts and captions; positions in meters.

    Attributes:
        model: The MuJoCo model.
        data: The world's MuJoCo state.
        task: The task the world was reset to.
    """

    def __init__(self, world: _World) -> None:
        self._world = world
        self.model = world.scene.model
        self.data = world.data
        self.task = world.task

    def end_effector(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (3,) and rotation (3, 3) of the grip site."""
        site = self._world.scene.arm.site
        return self.data.site_xpos[site].copy(), self.data.site_xmat[site].reshape(3, 3).copy()

    def gripper_opening(self) -> float:
        """Distance between the fingers, about 0 (closed) to 0.08 (open)."""
        left, right = self.data.qpos[self._world.scene.arm.gripper_qpos]
        return float(left - right)

    def body_position(self, name: str) -> NDArray[np.float64]:
        """(3,) position of a body's frame."""
        return np.array(self.data.body(name).xpos)

    def body_rotation(self, name: str) -> NDArray[np.float64]:
        """(3, 3) rotation of a body's frame."""
        return np.array(self.data.body(name).xmat).reshape(3, 3)

    def site_position(self, name: str) -> NDArray[np.float64]:
        """(3,) position of a site."""
        return np.array(self.data.site(name).xpos)

    def geom_position(self, name: str) -> NDArray[np.float64]:
        """(3,) position of a geom."""
        return np.array(self.data.geom(name).xpos)


class Simulator:
    """``num_worlds`` worlds of one suite, each at a task and state of its own.

    Args:
        suite: Name of a suite.
        num_worlds: Number of worlds.
        cameras: Cameras that ``render`` draws.
        image_size: Height and width of pictures in pixels.
        render_profile: One of ``RENDER_PROFILES``.
        seed: Seed of the fixtures' placement, which LIBERO's initial states do not hold; its evaluations use 0.
        exact: Solve for contacts twice a physics step, as LIBERO does. Objects then move as there to 3e-11 m, not
            7e-7, and a step takes 20 to 33 % longer.

    Raises:
        UnknownNameError: The suite does not exist.
    """

    def __init__(
        self,
        suite: str | Suite,
        num_worlds: int = 1,
        cameras: Sequence[str] = ("agentview",),
        image_size: int = 128,
        render_profile: RenderProfile = "fast",
        seed: int = 0,
        exact: bool = False,
    ) -> None:
        self.suite = get_suite(suite) if isinstance(suite, str) else suite
        if mujoco.get_mju_user_warning() is None:
            # MuJoCo's own handler writes a log file into the working directory.
            mujoco.set_mju_user_warning(_log_warning)
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self._profile: RenderProfile = render_profile
        self._exact = exact
        self._seed = seed
        self._scenes: dict[str, Scene] = {}
        self._keys: dict[int, str] = {}
        self._fresh: dict[str, FreshStates] = {}
        self._renderers: dict[str, Renderer] = {}
        self._worlds: list[_World | None] = [None] * num_worlds

    @property
    def num_worlds(self) -> int:
        """Number of worlds."""
        return len(self._worlds)

    def _scene(self, task: Task) -> Scene:
        key = self._key(task)
        if key not in self._scenes:
            sharing = [other for other in self.suite.tasks if self._key(other) == key]
            self._scenes[key] = get_scene(sharing, self._seed)
        return self._scenes[key]

    def _key(self, task: Task) -> str:
        if task.index not in self._keys:
            self._keys[task.index] = scene_key(task)
        return self._keys[task.index]

    def _world(self, index: int) -> _World:
        world = self._worlds[index]
        if world is None:
            raise SimulatorError(f"World {index} has not been reset.", "Call reset() before anything else.")
        return world

    def reset(
        self,
        world: int,
        task: int,
        init_state: int,
        settle_steps: int = SETTLE_STEPS,
        state_seed: int = 0,
        episode: PerturbedEpisode | None = None,
    ) -> None:
        """Put one world into an initial state of a task, and let objects settle.

        Nothing of the world's previous episode is left: controller goal, gripper command, and warm start go too.

        Args:
            world: Index of the world.
            task: Index of the task in the suite.
            init_state: 0 to 49 for the official ones, -1 for a fresh one, 1000 and up for the fresh one of that number.
                The first fresh one of a scene takes seconds.
            settle_steps: Control steps of doing nothing with the gripper open.
            state_seed: Decides the fresh state where ``init_state`` is -1, 0 to 2**32 - 1.
            episode: How the episode is perturbed; None for not at all. No other world is.

        Raises:
            ConfigError: There is no such task or state.
            SimulatorError: A perturbed start without collisions is not found.
            UnstableSimulationError: MuJoCo reports a bad state.
        """
        chosen = self.suite.task(task)
        state = self._initial_state(chosen, init_state, state_seed)
        scene = self._scene(chosen)
        previous = self._worlds[world]
        # Worlds that stay in their scene keep their MjData: making one costs milliseconds.
        data = previous.data if previous and previous.scene is scene else mujoco.MjData(scene.model)
        home = scene.home
        if episode is not None and episode.along("robot").severity:
            state = state.copy()
            home = bend_arm(scene, data, state, episode)
        self._start(world, chosen, data, state, home, settle_steps)
        if episode is not None and episode.along("layout").severity:
            self._lay_out(world, state, home, settle_steps, episode)
        if episode is not None:
            started = self._world(world)
            started.episode = episode
            started.appearance = perturbed_appearance(scene.model, data, episode)

    def _start(
        self,
        world: int,
        task: Task,
        data: mujoco.MjData,
        state: NDArray[np.float64],
        home: HomePose,
        settle_steps: int,
    ) -> None:
        scene = self._scene(task)
        write_state(scene, data, state)
        self._worlds[world] = _World(
            scene=scene,
            data=data,
            task=task,
            goal=compile_goal(scene.goals[task.name]),
            arm=Arm(scene if home is scene.home else replace(scene, home=home), data, self._exact),
        )
        idle = np.array([0.0] * 6 + [-1.0])
        for _ in range(settle_steps):
            self.step(world, idle)

    def _lay_out(
        self, world: int, state: NDArray[np.float64], home: HomePose, settle_steps: int, episode: PerturbedEpisode
    ) -> None:
        """Start a world anew, from its settled plain start, with its objects elsewhere."""
        plain = self._world(world)
        layouts = Layouts(plain.scene, state, plain.data, episode)
        for moved in layouts.draw(plain.data):
            self._start(world, plain.task, plain.data, moved, home, settle_steps)
            if layouts.holds(plain.data) and not self.success(world):
                return
        raise SimulatorError(
            f"No layout of {plain.task.name} that settles was found in {LAYOUTS} attempts.",
            "Use another perturbation seed, or a lower severity of layout.",
        )

    def _initial_state(self, task: Task, init_state: int, state_seed: int) -> NDArray[np.float64]:
        if init_state == FRESH_STATE:
            return self._fresh_states(task).sample(state_seed)
        if init_state >= FIRST_FRESH_STATE:
            return self._fresh_states(task).numbered(init_state)
        check_init_state(init_state)
        state: NDArray[np.float64] = self.suite.initial_states(task.index)[init_state]
        return state

    def _fresh_states(self, task: Task) -> FreshStates:
        key = self._key(task)
        if key not in self._fresh:
            self._fresh[key] = FreshStates(task, self._scene(task), self._seed)
        return self._fresh[key]

    def step(self, world: int, action: ArrayLike) -> bool:
        """One control step of 50 ms.

        Args:
            world: Index of the world.
            action: (7,) translation (x 0.05 m), rotation vector (x 0.5 rad), gripper (negative opens, positive
                closes); the first six are clipped to [-1, 1], as LIBERO does.

        Returns:
            Whether the task's goal holds after the step.

        Raises:
            ConfigError: The action has another shape or is not finite.
            UnstableSimulationError: MuJoCo reports a bad state.
        """
        state = self._world(world)
        command = np.asarray(action, dtype=np.float64)
        _check_action(command, world)
        # MuJoCo answers a bad state by resetting it to zero, where the arm is stretched out and singular.
        stable = state.arm.move(command) and not any(state.data.warning[kind].number for kind in _UNSTABLE)
        if not stable or not np.all(np.isfinite(state.data.qpos)):
            raise UnstableSimulationError(
                f"The simulation of world {world} ({state.task.name}) became unstable at {state.data.time:.2f} s.",
                "Reset the world and discard the episode; it is neither a success nor a failure.",
            )
        return state.goal(state.data)

    def render(self, world: int) -> dict[str, NDArray[np.uint8]]:
        """Pictures of every camera, turned as published policies and data sets have them.

        Returns:
            Camera name to (size, size, 3) uint8 RGB: LIBERO's raw picture rotated by 180 degrees, which is upright
            and mirrored left to right.
        """
        state = self._world(world)
        key = self._keys[state.task.index]
        if key not in self._renderers:
            self._renderers[key] = Renderer(state.scene, self.image_size, self._profile)
        renderer = self._renderers[key]
        # Contiguous copies: callers put them into shared memory and tensors.
        pictures = {}
        for sensor, camera in enumerate(self.cameras, start=1):
            picture = np.ascontiguousarray(renderer.render(state.data, camera, state.appearance)[:, ::-1])
            generator = state.noise(sensor)
            if state.episode is not None and generator is not None:
                picture = disturb_picture(picture, state.episode.along("noise"), generator)
            pictures[camera] = picture
        return pictures

    def proprioception(self, world: int) -> NDArray[np.float32]:
        """(8,) float32: grip site position (m), hand orientation as axis-angle (rad), finger positions (m)."""
        state = self._world(world)
        arm = state.scene.arm
        values = np.concatenate(
            [
                state.data.site_xpos[arm.site],
                axis_angle(state.data.xquat[arm.hand_body]),
                state.data.qpos[arm.gripper_qpos],
            ]
        ).astype(np.float32)
        generator = state.noise(0)
        if state.episode is not None and generator is not None:
            values = disturb_state(values, state.episode.along("noise"), generator)
        return values

    def state(self, world: int) -> NDArray[np.float64]:
        """(1 + nq + nv,) float64: time, positions, velocities, in the layout of LIBERO's initial states."""
        data = self._world(world).data
        return np.concatenate([[data.time], data.qpos, data.qvel])

    def success(self, world: int) -> bool:
        """Whether the task's goal holds now."""
        state = self._world(world)
        return state.goal(state.data)

    def view(self, world: int) -> SceneView:
        """Privileged sight of a world; valid until its next reset."""
        return SceneView(self._world(world))


def _check_action(action: NDArray[np.float64], world: int) -> None:
    if action.shape != (ACTION_DIM,):
        raise ConfigError(
            f"The action of world {world} has shape {action.shape}.", f"An action has shape ({ACTION_DIM},)."
        )
    if not np.all(np.isfinite(action)):
        index = int(np.flatnonzero(~np.isfinite(action))[0])
        raise ConfigError(
            f"The action of world {world} is {action[index]} at index {index}.", "Actions must be finite."
        )
