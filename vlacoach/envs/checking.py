"""Checks that a suite's environment does here what it promises: Gymnasium's own, and each task in the simulator."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from vlacoach.envs.libero import LiberoEnv
from vlacoach.envs.registration import ENV_IDS
from vlacoach.envs.scene import scene_key
from vlacoach.envs.suites import Task, get_suite

STEPS = 10
"""Random actions that each task is stepped with."""

_GYMNASIUM_COLORS = re.compile(r"\x1b\[\d+m")

_LEAST_CONTRAST = 8.0
"""Standard deviation of the pixel values, 0 to 255, below which a picture shows no scene."""


@dataclass(frozen=True)
class EnvCheck:
    """What one check found.

    Attributes:
        task: Index of the task; None for Gymnasium's checks of the environment as a whole.
        name: The task's instruction, or what was checked.
        problems: What is wrong; empty if nothing is.
        seconds: Wall-clock time it took.
    """

    task: int | None
    name: str
    problems: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_suite(suite: str, tasks: Sequence[int] | None = None, image_size: int = 128) -> Iterator[EnvCheck]:
    """Check a suite: Gymnasium's ``check_env`` on its environment, then each task.

    Args:
        suite: Name of the suite.
        tasks: Tasks to check; None for all.
        image_size: Height and width of pictures in pixels.

    Yields:
        What was found, one check at a time.

    Raises:
        UnknownNameError: There is no such suite.
        ConfigError: The suite has no such task.
    """
    chosen = get_suite(suite).select(tasks)
    yield _timed(None, "Gymnasium's check_env", lambda: check_spaces(suite, chosen[0].index, image_size))
    env, scene = None, ""
    for task in chosen:
        if env is None or scene_key(task) != scene:
            # A scene has some 200 MB: those of one suite are not all kept.
            env, scene = LiberoEnv(suite, image_size=image_size, render_mode="rgb_array"), scene_key(task)
        yield check_task(env, task)


def check_spaces(suite: str, task: int, image_size: int) -> list[str]:
    """What Gymnasium's ``check_env`` complains of, warnings included."""
    env = gymnasium.make(ENV_IDS[suite], task=task, image_size=image_size, render_mode="rgb_array")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return [_GYMNASIUM_COLORS.sub("", text).removeprefix("WARN: ") for text in texts]


def check_task(env: LiberoEnv, task: Task) -> EnvCheck:
    """Reset a task to its first initial state, step it at random, and look at its picture."""
    return _timed(task.index, task.instruction, lambda: _play(env, task))


def _timed(task: int | None, name: str, check: Callable[[], list[str]]) -> EnvCheck:
    begin = time.monotonic()
    try:
        problems = check()
    except Exception as error:  # Whatever the simulator, a driver, or Gymnasium's assertions raise is the finding.
        problems = [f"{type(error).__name__}: {error}"]
    return EnvCheck(task, name, tuple(problems), time.monotonic() - begin)


def _play(env: LiberoEnv, task: Task) -> list[str]:
    first, info = env.reset(seed=0, options={"task": task.index, "init_state": 0})
    problems = ["its picture shows nothing"] if shows_nothing(env.render()) else []
    if info["instruction"] != task.instruction:
        problems.append(f"its instruction is {info['instruction']!r}")
    if first not in env.observation_space:
        problems.append("its first observation is not in the observation space")
    idle = np.array([0.0] * 6 + [-1.0], dtype=np.float32)
    if env.step(idle)[2]:
        problems.append("its goal holds before anything was done")
    generator = np.random.default_rng(task.index)
    observation = first
    for _ in range(STEPS):
        action = generator.uniform(-1.0, 1.0, idle.shape).astype(np.float32)
        observation, _, _, _, info = env.step(action)
        if info.get("invalid"):
            return [*problems, "its simulation became unstable"]
    if observation not in env.observation_space:
        problems.append("an observation after a step is not in the observation space")
    if np.allclose(observation["state"], first["state"], atol=1e-4):
        problems.append("the arm does not move")
    return problems


def shows_nothing(picture: NDArray[np.uint8] | None) -> bool:
    """Whether a picture (H, W, 3) is missing, black, or of one color."""
    return picture is None or bool(picture.std() < _LEAST_CONTRAST)
