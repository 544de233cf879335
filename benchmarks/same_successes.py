"""The built-in policy's evaluation, and its very actions in LIBERO's own environment: are the successes the same?

    python benchmarks/same_successes.py
    python benchmarks/same_successes.py --tasks 1,8 --trials 5 --exact

First every episode is played as ``vlacoach eval`` plays it, and its actions are kept. Then LIBERO's environment (what
``OffScreenRenderEnv`` is without its renderer, since pictures move nothing; with it, for ``--render``) starts from the
same initial states, settles, and executes the same actions; one process a core, tasks in turn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from dataclasses import dataclass
from typing import Any

# ruff: noqa: E402 - NumPy and torch read these when they are imported.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np
from envs import libero, replay

from vlacoach.agents import evaluation
from vlacoach.agents.evaluation import EpisodeResult, evaluate, evaluation_plan, load_trained
from vlacoach.envs.rendering import find_gl_backend, select_gl_backend
from vlacoach.envs.suites import get_suite
from vlacoach.envs.vector import LiberoVectorEnv
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.indices import parse_indices


class RecordingEnvs(LiberoVectorEnv):
    """Keeps the actions of every episode, by task and initial state; of one played again, the last attempt's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.actions: dict[tuple[int, int], list[np.ndarray]] = {}
        self._recorded: dict[int, list[np.ndarray]] = {}

    def begin_reset(self, options: dict[str, Any] | None = None) -> Any:
        """Start episodes with no actions."""
        pending = super().begin_reset(options)
        assert options is not None
        for world in np.flatnonzero(options["reset_mask"]).tolist():
            episode = (int(options["task"][world]), int(options["init_state"][world]))
            self._recorded[world] = self.actions[episode] = []
        return pending

    def begin_step(self, actions: Any, worlds: Any) -> Any:
        """Execute chunks, and keep them."""
        for world in np.flatnonzero(worlds).tolist():
            self._recorded[world].append(np.array(actions[world], dtype=np.float64))
        return super().begin_step(actions, worlds)


@dataclass(frozen=True)
class Recorded:
    """An episode and what it did.

    Attributes:
        result: How it ended here.
        actions: (length, 7) what was executed.
    """

    result: EpisodeResult
    actions: np.ndarray


def played(config: TrainConfig, tasks: list[int]) -> list[Recorded]:
    """Evaluate on held-out states, as ``vlacoach eval`` does."""
    policy = load_trained(config)
    evaluation.LiberoVectorEnv = RecordingEnvs  # So that make_envs, which knows all settings, makes these.
    envs: Any = evaluation.make_envs(config, policy)
    try:
        plan = evaluation_plan(tasks, config.evaluation.states, config.evaluation.trials)
        results = evaluate(policy, envs, plan, config.evaluation.temperature, config.seed)
    finally:
        envs.close()
    recorded = []
    for result in results:
        actions = np.concatenate(envs.actions[result.task, result.init_state])
        recorded.append(Recorded(result, actions[: result.length]))
    return recorded


def replayed(job: tuple[str, int, int, bool, list[Recorded]]) -> list[int | None]:
    """The action after which LIBERO reports success in each episode of a task, or None."""
    suite, task, settle_steps, render, episodes = job
    if render:
        select_gl_backend(find_gl_backend())
    states = get_suite(suite).initial_states(task)
    with libero(get_suite(suite).task(task), ("agentview", "robot0_eye_in_hand") if render else (), size=128) as env:
        return [replay(env, states[one.result.init_state], one.actions, settle_steps) for one in episodes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="libero_goal")
    parser.add_argument("--tasks", help='such as "1,4,8"; all if left out')
    parser.add_argument("--trials", type=int, default=20, help="episodes a task, each of another held-out state")
    parser.add_argument("--max-steps", type=int, default=120)
    parser.add_argument("--exact", action="store_true", help="solve for contacts as LIBERO does")
    parser.add_argument("--render", action="store_true", help="let LIBERO draw both cameras at every step too: slow")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    suite = get_suite(arguments.suite)
    tasks = [task.index for task in suite.select(parse_indices(arguments.tasks) if arguments.tasks else None)]
    config = TrainConfig.model_validate(
        {
            "env": {"suite": suite.name, "tasks": tasks, "max_steps": arguments.max_steps, "exact": arguments.exact},
            "evaluation": {"trials": arguments.trials},
        }
    )
    if arguments.trials > len(config.evaluation.states):
        parser.error(f"there are {len(config.evaluation.states)} held-out states; --trials cannot be more")
    begin = time.perf_counter()
    episodes = played(config, tasks)
    here = time.perf_counter() - begin
    by_task = [[one for one in episodes if one.result.task == task] for task in tasks]
    settings = (config.env.settle_steps, arguments.render)
    jobs = [(suite.name, task, *settings, own) for task, own in zip(tasks, by_task, strict=True)]
    begin = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        steps = pool.map(replayed, jobs, chunksize=1)
    there = time.perf_counter() - begin
    report(jobs, steps, {"evaluation": here, "replay": there}, arguments.json)


def report(jobs: list[Any], steps: list[list[int | None]], seconds: dict[str, float], as_json: bool) -> None:
    """Print what agrees, and each episode that does not."""
    rows, others = [], []
    for (_, task, _, _, episodes), ends in zip(jobs, steps, strict=True):
        pairs = [(one.result, end) for one, end in zip(episodes, ends, strict=True)]
        rows.append(
            {
                "task": task,
                "episodes": len(pairs),
                "successes": sum(own.success for own, _ in pairs),
                "libero": sum(end is not None for _, end in pairs),
                "same success": sum(own.success == (end is not None) for own, end in pairs),
                "same step": sum((own.length if own.success else None) == end for own, end in pairs),
            }
        )
        others += [
            {"task": task, "state": own.init_state, "here": own.length if own.success else None, "libero": end}
            for own, end in pairs
            if (own.length if own.success else None) != end
        ]
    total = {name: sum(row[name] for row in rows) for name in rows[0]} | {"task": "all"}
    if as_json:
        print(json.dumps({"rows": rows, "all": total, "others": others, "seconds": seconds}, indent=2))
        return
    for row in [*rows, total]:
        print("| " + " | ".join(f"{name} {value}" for name, value in row.items()) + " |")
    for other in others:
        print(f"  task {other['task']} state {other['state']}: here {other['here']}, LIBERO {other['libero']}")
    print(", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))


if __name__ == "__main__":
    main()
