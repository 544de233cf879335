"""One rank with two simulator processes beside two ranks with one each: episodes a second, and what crosses.

    python benchmarks/scale.py --turns 3

Both sides train the built-in policy on LIBERO on the same prompts, in turns, and share the cores out among torch's
threads; a side's first update, in which scenes are read and kernels chosen, is left out. Bytes
are those that a rank hands to the transport, over all ranks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile

from vlacoach.runs.folder import RunFolder

SIDES = {"1 rank x 2 workers": (1, 2), "2 ranks x 1 worker": (2, 1)}
Figures = dict[str, float]


def train(ranks: int, workers: int, arguments: argparse.Namespace) -> Figures:
    """Medians over the updates of one training."""
    settings = {
        "env.workers": workers,
        "env.num_envs": arguments.envs // ranks,
        "grpo.prompts": arguments.prompts,
        "grpo.filter_low": 0,
        "grpo.filter_high": 1,
        "evaluation.trials": 1,
        "evaluation.train_states": "false",
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, *launcher, "-m", "vlacoach", "-q", "train", "--reward", arguments.reward]
        command += ["--updates", str(arguments.updates), "--runs-dir", runs]
        command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        run = RunFolder.open("latest", runs)
        adapter = run.checkpoints.last() / "adapter" / "adapter_model.safetensors"
        lines = run.metrics()
        return {**summary(lines, ranks), "adapter_bytes": float(adapter.stat().st_size)}


def summary(lines: list[dict[str, float]], ranks: int) -> Figures:
    updates = [line for line in lines if "time/total" in line][1:]
    sent = [line.get("ranks/bytes_sent", 0) for line in lines if "time/elapsed" in line]
    crossed = [ranks * (after - before) for before, after in itertools.pairwise(sent)]
    return {
        "episodes_per_second": statistics.median(one["rollout/episodes"] / one["time/rollout"] for one in updates),
        "update_episodes_per_second": statistics.median(one["rollout/episodes"] / one["time/total"] for one in updates),
        "bytes_per_update": statistics.median(crossed),
        "steps_per_update": statistics.median(one["train/steps"] for one in updates),
        "episodes": statistics.median(one["rollout/episodes"] for one in updates),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8, help="of eight episodes each, on all ranks together")
    parser.add_argument("--envs", type=int, default=16, help="worlds, on all ranks together")
    parser.add_argument("--reward", default="siglip")
    arguments = parser.parse_args()
    found: dict[str, list[Figures]] = {name: [] for name in SIDES}
    for _ in range(arguments.turns):
        for name, (ranks, workers) in SIDES.items():
            found[name].append(train(ranks, workers, arguments))
            print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    one, two = found.values()
    keys = ("episodes_per_second", "update_episodes_per_second")
    ratios = {key: [b[key] / a[key] for a, b in zip(one, two, strict=True)] for key in keys}
    medians = {
        name: {key: statistics.median(turn[key] for turn in turns) for key in turns[0]} for name, turns in found.items()
    }
    print(json.dumps({"medians": medians, "two_over_one": ratios}, indent=2))


if __name__ == "__main__":
    main()
