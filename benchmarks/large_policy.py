"""One update of a 7 B policy in LIBERO on this machine's GPU, beside what ``vlacoach plan`` says of it.

    python benchmarks/large_policy.py --prompts 4

The policy has OpenVLA-OFT's shapes and noise for weights, so that nothing need be downloaded: it reaches no goal, every
episode runs to its limit, and every group is kept. Time and memory do not depend on what the numbers are. The first
update warms up; the second is reported.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace

import torch

from vlacoach.agents.evaluation import make_envs
from vlacoach.agents.grpo import GRPOAgent
from vlacoach.agents.micro_batch import choose_micro_batch
from vlacoach.agents.plan import make_plan
from vlacoach.agents.plan_devices import find_device
from vlacoach.agents.plan_measure import build_policy
from vlacoach.agents.plan_settings import PlanSettings, settings_from
from vlacoach.agents.training import build_scorer
from vlacoach.runs.config import TrainConfig


def configuration(arguments: argparse.Namespace) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "policy": {"path": arguments.policy, "precision": "bf16", "quantize": arguments.quantize},
            "reward": {"name": "siglip"},
            "env": {"num_envs": arguments.envs, "workers": arguments.workers, "max_steps": arguments.steps},
            "grpo": {"prompts": arguments.prompts, "group_size": 8, "filter_low": 0.0, "filter_high": 1.0},
        }
    )


def measure(config: TrainConfig, settings: PlanSettings) -> tuple[PlanSettings, dict[str, float]]:
    """The settings with the micro-batch that training took, and an update's metrics."""
    device = torch.device("cuda")
    policy = build_policy(settings, device)
    micro_batch = choose_micro_batch(config, policy.config, policy.quantization, device)
    envs = make_envs(config, policy)
    try:
        agent = GRPOAgent(policy, envs, build_scorer(config.reward, policy), config)
        agent.learn_once()
        torch.cuda.reset_peak_memory_stats()
        metrics = agent.learn_once()
    finally:
        envs.close()
    metrics["memory/allocated"] = float(torch.cuda.max_memory_allocated())
    metrics["memory/reserved"] = float(torch.cuda.max_memory_reserved())
    return replace(settings, micro_batch=micro_batch), metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="openvla-oft-7b")
    parser.add_argument("--gpu", default="h100-80", help="the GPU to plan for; that of this machine")
    parser.add_argument("--quantize", default="nf4")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of eight episodes")
    parser.add_argument("--steps", type=int, default=300, help="step limit of an episode")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    config = configuration(arguments)
    settings = settings_from(config, find_device(arguments.gpu), workers=arguments.workers)
    settings, metrics = measure(config, settings)
    plan = make_plan(settings)
    measured = {
        key: value for key, value in metrics.items() if key.startswith(("time/", "memory/", "rollout/", "train/"))
    }
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name(),
                "episodes": settings.episodes,
                "looks": settings.episodes * settings.looks,
                "micro_batch": settings.micro_batch,
                "computed_seconds": plan.timing.seconds,
                "computed_flops": plan.timing.flops,
                "computed_bytes": {stage.name: stage.tensors for stage in plan.memory.stages},
                "measured": measured,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
