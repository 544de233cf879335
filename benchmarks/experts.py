"""Success, length, and label statistics of the scripted experts, one line a task.

python benchmarks/experts.py --suite libero_goal --states 50 --noise 0.2
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from vlacoach.envs.experts import ExpertEpisode, get_experts, run_expert
from vlacoach.envs.simulator import Simulator


def episodes(simulator: Simulator, task: int, states: int, noise: float, rotation_noise: float) -> list[ExpertEpisode]:
    # States are spread over the 50 official ones.
    chosen = np.linspace(0, 49, states).round().astype(int)
    return [
        run_expert(
            simulator,
            world=0,
            task=task,
            init_state=int(state),
            noise=noise,
            rotation_noise=rotation_noise,
            rng=np.random.default_rng((task, int(state))),
        )
        for state in chosen
    ]


def line(task: int, instruction: str, done: list[ExpertEpisode], seconds: float) -> str:
    lengths = [episode.length for episode in done if episode.success] or [0]
    labels = np.concatenate([episode.labels for episode in done])
    return (
        f"| {task} | {instruction} | {sum(e.success for e in done)}/{len(done)} "
        f"| {np.mean(lengths):.0f} ({min(lengths)}-{max(lengths)}) | {np.mean(labels[:, 3:6] == 0):.3f} "
        f"| {len(np.unique(labels[:, :3]))} | {seconds / len(done):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="libero_goal")
    parser.add_argument("--tasks", type=int, nargs="*", help="task indices; all that have an expert if left out")
    parser.add_argument("--states", type=int, default=10, help="initial states of each task, 1 to 50")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--rotation-noise", type=float, default=0.3)
    arguments = parser.parse_args()
    simulator = Simulator(arguments.suite)
    print("| task | instruction | success | length | rotations exactly 0 | translation values | s/episode |")
    print("|---|---|---|---|---|---|---|")
    for task in arguments.tasks or get_experts(arguments.suite):
        begin = time.perf_counter()
        done = episodes(simulator, task, arguments.states, arguments.noise, arguments.rotation_noise)
        instruction = simulator.suite.task(task).instruction
        print(line(task, instruction, done, time.perf_counter() - begin), flush=True)


if __name__ == "__main__":
    main()
