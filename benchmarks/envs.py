"""This simulator against LIBERO's own environment: the same motion, goals, and pictures, and how much faster.

Run on an idle machine; with software GL the whole takes about half an hour, most of it LIBERO's:

    python benchmarks/envs.py
    python benchmarks/envs.py --only motion,speed --json

LIBERO is called as published stacks call it, ``OffScreenRenderEnv.step`` with two cameras at 256 pixels, and with one.
Everything is timed on one core, each side in a process of its own, taking turns; ratios are of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

# ruff: noqa: E402 - NumPy reads these when it is imported: one core for either side.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import mujoco
import numpy as np
import psutil

from vlacoach.envs import libero_package
from vlacoach.envs.experts import get_experts, run_expert
from vlacoach.envs.goals import compile_goal, describe_goal
from vlacoach.envs.rendering import find_gl_backend, select_gl_backend
from vlacoach.envs.simulator import Simulator
from vlacoach.envs.suites import STANDARD_SUITES, Task, get_suite
from vlacoach.envs.vector import LiberoVectorEnv
from vlacoach.profiles import RENDER_PROFILES

CHUNK = 8
IDLE = np.array([0.0] * 6 + [-1.0])

Row = tuple[str, str, str, bool | None]
"""What, figure, target, and whether it is met (None without a target)."""


@contextmanager
def libero(task: Task, cameras: tuple[str, ...] = (), size: int = 256) -> Iterator[Any]:
    """LIBERO's environment, its generator at 0 as in published evaluations; without cameras it draws nothing."""
    with libero_package.quiet():
        from libero.libero.envs import OffScreenRenderEnv

        if cameras:
            env = OffScreenRenderEnv(
                bddl_file_name=task.bddl_file, camera_names=list(cameras), camera_heights=size, camera_widths=size,
                hard_reset=False,
            )  # fmt: skip
            libero_package.reset(env, 0)
        else:
            env = libero_package.control_env(task.bddl_file, 0)
    try:
        yield env
    finally:
        with libero_package.quiet():
            env.close()


def start_episode(env: Any, state: np.ndarray) -> None:
    """Reset and ``set_init_state``, without drawing."""
    libero_package.reset(env, 0)
    # LIBERO rebuilds everything at a reset, which takes seconds. Without that, the gripper alone would remember.
    env.env.robots[0].gripper.current_action[:] = 0.0
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    env.env._check_success()
    env.env._post_process()
    env.env._update_observables(force=True)


def free_space(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 7) random actions that first lift the hand, and then keep it up."""
    actions = rng.uniform(-1, 1, (count, 7))
    actions[:, 2] = 0.3 * actions[:, 2] + np.where(np.arange(count) < 25, 0.5, 0.0)
    return actions


def motion(arguments: argparse.Namespace) -> Iterator[Row]:
    """Random actions in free space, joint for joint."""
    for exact in (False, True):
        yield from _motion(exact)


def _motion(exact: bool) -> Iterator[Row]:
    worst: dict[int, float] = dict.fromkeys((50, 100, 200), 0.0)
    for suite, task in (("libero_goal", 8), ("libero_object", 2), ("libero_spatial", 3)):
        simulator = Simulator(suite, exact=exact)
        with libero(simulator.suite.task(task)) as env:
            for state in range(2):
                simulator.reset(0, task, state, settle_steps=0)
                start_episode(env, simulator.suite.initial_states(task)[state])
                for number, action in enumerate(free_space(np.random.default_rng(state), 200), start=1):
                    env.env.step(action)
                    simulator.step(0, action)
                    if number in worst:
                        off = np.abs(env.sim.data.qpos - simulator.view(0).data.qpos).max()
                        worst[number] = max(worst[number], float(off))
    for number, off in worst.items():
        target = "<= 1e-6" if number == 50 else ""
        what = f"largest qpos difference, {number} random actions{', exact' * exact}"
        yield what, f"{off:.1e}", target, off <= 1e-6 if target else None


def experts(arguments: argparse.Namespace) -> Iterator[Row]:
    """Episodes of the scripted experts, replayed in LIBERO; and LIBERO against itself where the two disagree."""
    for suite in ("libero_goal", "libero_spatial", "libero_object"):
        for exact in (False, True):
            yield from _experts(suite, exact, arguments.episodes)


def _experts(suite: str, exact: bool, episodes: int) -> Iterator[Row]:
    same = played = 0
    slips = []
    for task in get_experts(suite):
        simulator = Simulator(suite, exact=exact)
        with libero(simulator.suite.task(task)) as env:
            for state in np.linspace(0, 49, episodes).round().astype(int):
                episode = run_expert(simulator, 0, task, int(state))
                start = simulator.suite.initial_states(task)[state]
                at = replay(env, start, episode.actions)
                agrees = (at is not None) == episode.success and (at is None or abs(at - episode.length) <= 1)
                same, played = same + agrees, played + 1
                if agrees:
                    continue
                nudged = []
                for joint in range(7):
                    # The last entries are velocities; the arm's come first among them.
                    other = start.copy()
                    other[1 + simulator.view(0).model.nq + joint] += 1e-12
                    nudged.append(replay(env, other, episode.actions))
                slips.append(
                    f"{suite} {task} state {state}: step {episode.length}, LIBERO {at}, LIBERO with one joint's "
                    f"speed off by 1e-12 rad/s: {nudged}"
                )
    what = f"expert episodes alike (success, step +-1), {suite}{', exact' * exact}"
    yield what, f"{same}/{played}", "all", same == played
    for slip in slips:
        yield f"  {slip}", "", "", None


def replay(env: Any, state: np.ndarray, actions: np.ndarray, settle_steps: int = 10) -> int | None:
    """The step at which LIBERO reports success, or None."""
    start_episode(env, state)
    for _ in range(settle_steps):
        env.env.step(IDLE)
    for number, action in enumerate(actions, start=1):
        env.env.step(action)
        if env.env._check_success():
            return number
    return None


def goals(arguments: argparse.Namespace) -> Iterator[Row]:
    """Goal predicates on states near the goal and far from it, term by term."""
    for suite in STANDARD_SUITES:
        tasks = get_suite(suite).tasks[: arguments.goal_tasks]
        visits = -(-1000 // len(tasks))
        equal = seen = held = 0
        for task in tasks:
            with libero(task) as env:
                rng = np.random.default_rng(task.index)
                model, data = env.sim.model._model, env.sim.data._data
                goal = libero_package.parse_problem(task.bddl_file)["goal_state"]
                terms = [compile_goal(describe_goal(env.env, model, [state])) for state in goal]
                states = get_suite(suite).initial_states(task.index)
                for visit in range(visits):
                    env.sim.set_state_from_flattened(states[rng.integers(len(states))])
                    if visit % 4:
                        for state in goal:
                            _bring_about(env.env, model, data, state, rng)
                    mujoco.mj_step(model, data, nstep=int(rng.integers(1, 6)))
                    mujoco.mj_forward(model, data)
                    for state, term in zip(goal, terms, strict=True):
                        theirs = bool(env.env._eval_predicate(state))
                        equal, seen, held = equal + (theirs == term(data)), seen + 1, held + theirs
        what = f"goal predicates equal, {suite} (true in {held / seen:.0%})"
        yield what, f"{equal}/{seen}", "all", equal == seen


def _bring_about(env: Any, model: Any, data: Any, state: list[str], rng: np.random.Generator) -> None:
    """Move things to about where a predicate becomes true: just inside, or just outside."""
    name, first = state[0].lower(), state[1]
    thing = env.object_states_dict[first]
    if name in ("on", "in"):
        joint = model.joint(env.get_object(first).joints[-1])
        address = int(joint.qposadr[0])
        other = env.object_states_dict[state[2]]
        if other.object_state_type == "site":
            site = model.site(state[2]).id
            size = np.array(env.object_sites_dict[state[2]].size, dtype=float)
            offset = rng.uniform(-1.3, 1.3, 3) * size + [0, 0, rng.choice([0.0, size[2] + 0.03])]
            data.qpos[address : address + 3] = data.site_xpos[site] + offset
        else:
            body = env.obj_body_id[state[2]]
            offset = np.append(rng.normal(0, 0.02, 2), rng.uniform(-0.01, 0.08))
            data.qpos[address : address + 3] = data.xpos[body] + offset
        data.qvel[int(joint.dofadr[0]) :][:6] = 0
    else:
        is_site = thing.object_state_type == "site"
        names = env.object_sites_dict[first].joints if is_site else env.get_object(first).joints
        for each in names:
            joint = model.joint(each)
            low, high = joint.range
            data.qpos[int(joint.qposadr[0])] = rng.uniform(low - 0.1 * (high - low), high + 0.1 * (high - low))
    mujoco.mj_kinematics(model, data)


def pictures(arguments: argparse.Namespace) -> Iterator[Row]:
    """The reference picture against LIBERO's, both cameras."""
    cameras = ("agentview", "robot0_eye_in_hand")
    largest, share = 0, 0.0
    for suite, task in (("libero_goal", 1), ("libero_object", 2), ("libero_spatial", 3)):
        simulator = Simulator(suite, cameras=cameras, image_size=256, render_profile="reference")
        with libero(simulator.suite.task(task), cameras) as env:
            observation = env.set_init_state(simulator.suite.initial_states(task)[5])
            simulator.reset(0, task, 5, settle_steps=0)
            for camera, ours in simulator.render(0).items():
                off = np.abs(ours.astype(int) - observation[f"{camera}_image"][::-1, ::-1].astype(int))
                largest, share = max(largest, int(off.max())), max(share, float((off > 0).mean()))
    met = largest <= 1 and share <= 1e-3
    yield "reference picture: largest difference, share", f"{largest}, {share:.2%}", "<= 1, <= 0.1 %", met


def _speed_side(name: str, connection: Connection) -> None:
    """One side of the comparison, in a process of its own: two GL contexts in one process disturb each other."""
    select_gl_backend(find_gl_backend())
    suite, task = get_suite("libero_goal"), 8
    actions = free_space(np.random.default_rng(0), CHUNK)
    with contextlib.ExitStack() as stack:
        if name.startswith("LIBERO"):
            cameras = ("agentview", "robot0_eye_in_hand")[: 2 if "two" in name else 1]
            env = stack.enter_context(libero(suite.task(task), cameras))
            env.set_init_state(suite.initial_states(task)[0])

            def work() -> None:
                env.step(actions[0])
        else:
            profile: Any = name if name in RENDER_PROFILES else "fast"
            simulator = Simulator(suite, image_size=224, render_profile=profile)
            simulator.reset(0, task, 0)

            def work() -> None:
                if name == "reset":
                    simulator.reset(0, task, 1, settle_steps=0)
                elif name == "mj_step":
                    view = simulator.view(0)
                    mujoco.mj_step(view.model, view.data, nstep=CHUNK * 25)
                else:
                    for action in actions:
                        simulator.step(0, action)
                    if name in RENDER_PROFILES:
                        simulator.render(0)

        work()
        connection.send(None)
        while connection.recv():
            begin = time.perf_counter()
            work()
            connection.send(time.perf_counter() - begin)


def speed(arguments: argparse.Namespace) -> Iterator[Row]:
    """Control steps a second on one core; every side in its own process, one at work at a time, taking turns."""
    context = multiprocessing.get_context("spawn")
    sides = {}
    for name in ("LIBERO, two cameras", "LIBERO, one camera", *RENDER_PROFILES, "no pictures", "mj_step", "reset"):
        ours, theirs = context.Pipe()
        context.Process(target=_speed_side, args=(name, theirs), daemon=True).start()
        ours.recv()
        sides[name] = ours
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.turns):
        for name, connection in sides.items():
            connection.send(True)
            times[name].append(connection.recv())
    for connection in sides.values():
        connection.send(False)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    milliseconds = 1e3 * seconds.pop("reset")
    rates = {name: (1 if name.startswith("LIBERO") else CHUNK) / value for name, value in seconds.items()}
    slow, slow_one, alone = rates["LIBERO, two cameras"], rates["LIBERO, one camera"], rates.pop("mj_step")
    for name, rate in rates.items():
        target, met = {
            "fast": (">= 25x", rate >= 25 * slow),
            "reference": (">= 12x", rate >= 12 * slow),
            "no pictures": (">= 300", rate >= 300),
        }.get(name, ("", None))
        ratios = "" if name.startswith("LIBERO") else f"; {rate / slow:.1f}x two cameras, {rate / slow_one:.1f}x one"
        yield f"control steps/s: {name}", f"{rate:.1f}{ratios}", target, met
    share = rates["no pictures"] / alone
    yield "control steps/s: MuJoCo's 25 steps alone", f"{alone:.0f}; without pictures {share:.0%} of it", "", None
    yield "reset to an official state, warm, no settling", f"{milliseconds:.1f} ms", "<= 20 ms", milliseconds <= 20


def start(arguments: argparse.Namespace) -> Iterator[Row]:
    """From ``make_vec`` to the first observation, and what 64 worlds take."""
    # One start fills the cache.
    for what in ("cold or warm cache", "warm cache"):
        begin = time.perf_counter()
        envs = LiberoVectorEnv(num_envs=16, workers=2, image_size=224, chunk_size=CHUNK)
        envs.reset(options={"task": 8, "init_state": 0})
        seconds = time.perf_counter() - begin
        envs.close()
        target = "<= 5 s" if what == "warm cache" else ""
        yield (
            f"16 worlds to the first observation, {what}",
            f"{seconds:.1f} s",
            target,
            seconds <= 5 if target else None,
        )
    envs = LiberoVectorEnv(num_envs=64, workers=2, image_size=224, chunk_size=CHUNK)
    envs.reset(options={"task": 8, "init_state": np.arange(64) % 50})
    for _ in range(3):
        envs.step(np.zeros((64, CHUNK, 7), dtype=np.float32))
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    size = sum(process.memory_full_info().pss for process in family) / 2**30
    envs.close()
    yield "64 worlds, 2 workers: memory (PSS)", f"{size:.2f} GiB", "<= 5 GB", size * 2**30 <= 5e9


def leaks(arguments: argparse.Namespace) -> Iterator[Row]:
    """Resident memory over 200 resets and 5,000 steps."""
    simulator = Simulator("libero_goal", num_worlds=2)
    process = psutil.Process()

    def work(resets: int) -> None:
        for number in range(resets):
            simulator.reset(number % 2, number % 10, number % 50)
            for _ in range(25):
                simulator.step(number % 2, IDLE)
            simulator.render(number % 2)

    work(20)
    gc.collect()
    before = process.memory_info().rss
    work(200)
    gc.collect()
    grown = (process.memory_info().rss - before) / 2**20
    yield "memory grown in 200 resets and 5,000 steps", f"{grown:.1f} MiB", "flat (< 20 MiB)", grown < 20


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "motion": motion,
    "pictures": pictures,
    "speed": speed,
    "start": start,
    "leaks": leaks,
    "goals": goals,
    "experts": experts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"sections, of {','.join(SECTIONS)}")
    parser.add_argument("--episodes", type=int, default=5, help="expert episodes of each task")
    parser.add_argument("--goal-tasks", type=int, help="tasks of a suite whose goals are compared; all if left out")
    parser.add_argument("--turns", type=int, default=40, help="timings of each side")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(SECTIONS)
    select_gl_backend(find_gl_backend())
    rows: list[Row] = []
    for name in chosen:
        for row in SECTIONS[name](arguments):
            rows.append(row)
            if not arguments.json:
                what, figure, target, met = row
                verdict = "" if met is None else "met" if met else "MISSED"
                print(f"| {what} | {figure} | {target} | {verdict} |", flush=True)
    if arguments.json:
        print(json.dumps([dict(zip(("what", "figure", "target", "met"), row, strict=True)) for row in rows], indent=2))


if __name__ == "__main__":
    main()
