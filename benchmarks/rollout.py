"""What an episode costs, and where the time goes: simulation, rendering, policy, reward, update.

Run on an idle machine:

    python benchmarks/rollout.py --episodes 64

Parts are timed one at a time in this process; the rollout is timed as training runs it, in worker processes. Figures
are seconds of one core, but for "all cores", which is wall-clock time with every worker and torch thread at work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from vlacoach.agents.evaluation import make_envs
from vlacoach.agents.grpo import GRPOAgent
from vlacoach.agents.training import build_scorer
from vlacoach.envs.rendering import find_gl_backend, select_gl_backend
from vlacoach.envs.simulator import Simulator
from vlacoach.policies import load_policy
from vlacoach.rewards import make_scorer
from vlacoach.runs.config import TrainConfig

STEPS = 80
"""Length of the episode that costs are quoted for."""


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def parts(policy_path: str) -> dict[str, float]:
    """Seconds of each part for one episode of ``STEPS`` steps, on one core."""
    torch.set_num_threads(1)
    select_gl_backend(find_gl_backend())
    policy = load_policy(policy_path)
    profile = policy.config.render_profile
    simulator = Simulator("libero_goal", image_size=policy.image_size, render_profile=profile)
    simulator.reset(0, task=8, init_state=0)
    rng = np.random.default_rng(0)
    looks = -(-STEPS // policy.chunk_size)
    picture = torch.from_numpy(np.stack([simulator.render(0)["agentview"]] * 8))
    state = torch.from_numpy(np.stack([simulator.proprioception(0)] * 8))
    instructions = [simulator.suite.task(8).instruction] * 8

    def act() -> None:
        policy.act(policy.encode(picture), instructions, state, 1.0)

    return {
        "reset": median_seconds(lambda: simulator.reset(0, 8, 0), 10),
        "simulation": STEPS * median_seconds(lambda: simulator.step(0, rng.uniform(-0.3, 0.3, 7)), 60),
        "rendering": (looks + 1) * median_seconds(lambda: simulator.render(0), 20),
        "policy": looks * median_seconds(act, 10) / 8,
    }


def training(policy_path: str, episodes: int, tasks: list[int]) -> dict[str, float]:
    """Seconds an episode of the stages of one update, all cores, after a warm-up update."""
    torch.set_num_threads(os.cpu_count() or 1)
    config = TrainConfig.model_validate(
        {
            "policy": {"path": policy_path},
            "env": {"tasks": tasks, "max_steps": STEPS, "workers": os.cpu_count()},
            "grpo": {"prompts": episodes // 8, "filter_low": 0.0, "filter_high": 1.0},
        }
    )
    policy = load_policy(policy_path)
    envs = make_envs(config, policy)
    try:
        agent = GRPOAgent(policy, envs, build_scorer(config.reward, policy), config)
        agent.learn_once()
        metrics = agent.learn_once()
    finally:
        envs.close()
    steps = metrics["rollout/env_steps"]
    stages = {key.removeprefix("time/"): value for key, value in metrics.items() if key.startswith("time/")}
    return {stage: seconds / steps * STEPS for stage, seconds in stages.items()}


def scoring(policy_path: str, episodes: int, tasks: list[int]) -> dict[str, dict[str, float]]:
    """What scoring one rollout costs with each scorer, beside what the rollout cost; all on the same episodes."""
    config = TrainConfig.model_validate(
        {"env": {"tasks": tasks, "max_steps": STEPS, "workers": os.cpu_count()}, "grpo": {"prompts": episodes // 8}}
    )
    policy = load_policy(policy_path)
    envs = make_envs(config, policy)
    try:
        agent = GRPOAgent(policy, envs, make_scorer("pixels"), config)  # Keeps frames, for V-JEPA.
        agent.rollout()
        start = time.perf_counter()
        trajectories = agent.rollout()
        rollout = time.perf_counter() - start
    finally:
        envs.close()
    figures = {}
    for name in ("siglip", "siglip-t", "v-jepa", "success"):
        scorer = make_scorer(name, policy=policy)
        start = time.perf_counter()
        if scorer.can_fit(trajectories):
            scorer.fit(trajectories)
        fit = time.perf_counter() - start
        scorer.rewards(trajectories)
        encoded = policy.frames_encoded
        seconds = median_seconds(lambda chosen=scorer: chosen.rewards(trajectories), 5)
        figures[name] = {
            "ms_an_episode": 1000 * seconds / len(trajectories),
            "share_of_rollout": seconds / rollout,
            "fit_seconds": fit,
            "frames_through_the_tower": float(policy.frames_encoded - encoded),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="tiny")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--tasks", default="1,4,6,8")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tasks = [int(task) for task in arguments.tasks.split(",")]
    result = {"one_core": parts(arguments.policy), "all_cores": training(arguments.policy, arguments.episodes, tasks)}
    scorers = scoring(arguments.policy, arguments.episodes, tasks)
    if arguments.json:
        print(json.dumps({**result, "scoring": scorers}, indent=2))
        return
    for title, figures in result.items():
        print(f"{title.replace('_', ' ')}: seconds for an episode of {STEPS} steps")
        total = sum(value for key, value in figures.items() if key != "total")
        for key, value in figures.items():
            print(f"  {key:<12} {value:7.3f}  {value / total:6.1%}")
    print("scoring a rollout")
    for name, cost in scorers.items():
        print(
            f"  {name:<12} {cost['ms_an_episode']:7.2f} ms an episode, {cost['share_of_rollout']:.2%} of its rollout; "
            f"fit {cost['fit_seconds']:.2f} s; frames encoded again: {cost['frames_through_the_tower']:.0f}"
        )


if __name__ == "__main__":
    main()
