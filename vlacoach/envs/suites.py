"""LIBERO's task suites: names, instructions, step limits, and initial states.

Reading a suite loads neither MuJoCo nor robosuite.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlacoach.envs import libero_package
from vlacoach.errors import ConfigError, UnknownNameError

SUITES: dict[str, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Step limit of each suite, as OpenVLA and OpenVLA-OFT evaluate them (control steps at 20 Hz, settling excluded)."""

NUM_INITIAL_STATES = 50
"""Official initial states a task."""

FRESH_STATE = -1
"""Instead of the index of an official state: draw one from the task's regions, as LIBERO draws them."""


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        index: Position in the suite, as LIBERO orders it.
        name: LIBERO's file stem, for example ``"put_the_bowl_on_the_stove"``.
        instruction: Natural-language instruction, lower case.
        bddl_file: Path of the BDDL file that defines objects and goal.
    """

    index: int
    name: str
    instruction: str
    bddl_file: str


@dataclass(frozen=True)
class Suite:
    """A task suite.

    Attributes:
        name: For example ``"libero_goal"``.
        tasks: The tasks in LIBERO's order.
        max_steps: Step limit of an episode in control steps.
    """

    name: str
    tasks: tuple[Task, ...]
    max_steps: int

    def task(self, index: int) -> Task:
        """The task at an index.

        Raises:
            ConfigError: There is no such task; the message lists those there are.
        """
        if not 0 <= int(index) < len(self.tasks):
            listing = "\n".join(f"  {task.index}  {task.instruction}" for task in self.tasks)
            raise ConfigError(f"{self.name} has no task {index}.", f"Tasks are 0 to {len(self.tasks) - 1}:\n{listing}")
        return self.tasks[int(index)]

    def select(self, indices: Iterable[int] | None) -> tuple[Task, ...]:
        """The tasks at the given indices, in that order; all of them for None."""
        return self.tasks if indices is None else tuple(self.task(index) for index in indices)

    def initial_states(self, task: int) -> NDArray[np.float64]:
        """The official initial states of a task.

        Returns:
            (50, 1 + nq + nv) float64: time, joint positions and velocities, flattened as MuJoCo orders them.
        """
        return _initial_states(self.name, self.task(task).index)


@functools.cache
def _initial_states(suite: str, task: int) -> NDArray[np.float64]:
    states = np.asarray(libero_package.benchmark(suite).get_task_init_states(task), dtype=np.float64)
    states.setflags(write=False)
    return states


@functools.cache
def get_suite(name: str) -> Suite:
    """Look a suite up by name.

    Raises:
        UnknownNameError: No suite has this name.
    """
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES)
    benchmark = libero_package.benchmark(name)
    tasks = tuple(
        Task(i, task.name, task.language.lower(), benchmark.get_task_bddl_file_path(i))
        for i, task in enumerate(benchmark.tasks)
    )
    return Suite(name, tasks, SUITES[name])
