"""Training on a CUDA device: updates as on the CPU, resumption, and the command line on real LIBERO."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_envs import ToyEnvs, toy_config, toy_policy
from typer.testing import CliRunner

from vlacoach.agents.grpo import GRPOAgent
from vlacoach.cli.main import app
from vlacoach.policies import lora
from vlacoach.rewards import make_scorer
from vlacoach.runs.folder import RunFolder

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def make_agent(device: str, precision: str = "fp32", reward: str = "success") -> GRPOAgent:
    config = toy_config(policy={"precision": precision}, reward={"name": reward})
    policy = toy_policy().to(device)
    policy.precision = precision
    params = {"steps": 20} if reward == "siglip-t" else {}
    return GRPOAgent(policy, ToyEnvs(4), make_scorer(reward, policy=policy, **params), config)


def adapter(agent: GRPOAgent) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in lora.trainable_parameters(agent.policy).items()}


def test_an_update_is_that_of_the_cpu():
    here, there = make_agent("cpu"), make_agent("cuda")
    trajectories = here.rollout()
    reward = here.reward(trajectories)
    kept = here.informative(trajectories, reward)
    advantage = here.advantage(trajectories, reward)[kept]
    ours, theirs = (agent.improve([trajectories[i] for i in kept], advantage) for agent in (here, there))
    assert ours["train/gradient_norm"] > 0
    # Weights are not compared: where a gradient is next to nothing, AdamW steps as far as its sign says.
    for key in ("train/loss", "train/gradient_norm", "train/entropy", "train/ratio_first"):
        assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("reward", ["success", "siglip-t"])
def test_updates_begin_at_a_ratio_of_one_and_stay_finite(precision: str, reward: str):
    agent = make_agent("cuda", precision, reward)
    for _ in range(2):
        metrics = agent.learn_once()
        assert metrics["train/ratio_first"] == pytest.approx(1.0, abs=1e-4 if precision == "fp32" else 0.05)
        assert all(np.isfinite(list(metrics.values())))


def test_the_same_seed_gives_the_same_numbers_and_so_does_a_resumed_run(tmp_path: Path):
    first, second, resumed = (make_agent("cuda") for _ in range(3))
    for agent in (first, second):
        agent.learn_once()
    first.save(tmp_path)
    resumed.load(tmp_path)
    for agent in (first, second, resumed):
        agent.learn_once()
    for other in (second, resumed):
        assert all(torch.equal(value, adapter(other)[name]) for name, value in adapter(first).items())


NCCL = """
import torch, torch.distributed as dist
from vlacoach.agents.ranks import RankGroup
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
ranks = RankGroup(0, 1, store)
tensors = [torch.arange(3.0, device="cuda"), torch.ones(2, 2, device="cuda", dtype=torch.bfloat16)]
ranks.add(tensors)
assert tensors[0].tolist() == [0.0, 1.0, 2.0] and tensors[1].float().sum() == 4
assert ranks.sent == 7 * 4 and ranks.gather_json({"a": 1}) == [{"a": 1}]
dist.destroy_process_group()
"""


def test_gradients_are_summed_by_nccl():
    """With one rank, which is all that one GPU allows."""
    subprocess.run([sys.executable, "-c", NCCL], check=True, timeout=120)


@pytest.mark.sim
def test_two_ranks_that_share_a_gpu_train_in_libero(tmp_path: Path):
    settings = ["env.tasks=[8]", "env.num_envs=4", "env.workers=2", "grpo.prompts=4", "grpo.group_size=4"]
    settings += ["evaluation.trials=2", "evaluation.train_states=false", "grpo.filter_low=0", "grpo.filter_high=1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "vlacoach", "train", "--updates", "1", "--runs-dir", str(tmp_path)]
    subprocess.run([*command, *(word for one in settings for word in ("--set", one))], check=True, timeout=300)
    run = RunFolder.open("latest", tmp_path)
    (line,) = [line for line in run.metrics() if "train/ratio_first" in line]
    assert line["train/ratio_first"] == pytest.approx(1.0, abs=0.05)
    assert sorted(episode["slot"] for episode in run.episodes()) == list(range(16))


@pytest.mark.sim
def test_the_command_trains_on_the_gpu_in_libero(tmp_path: Path):
    settings = {
        "policy.device": "cuda",
        "policy.precision": "bf16",
        "env.tasks": "[8]",
        "env.num_envs": 4,
        "env.workers": 2,
        "grpo.prompts": 2,
        "grpo.group_size": 4,
        "evaluation.trials": 2,
        "evaluation.train_states": "false",
    }
    arguments = ["train", "--updates", "1", "--runs-dir", str(tmp_path), "--json"]
    for key, value in settings.items():
        arguments += ["--set", f"{key}={value}"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = [line for line in RunFolder.open("latest", tmp_path).metrics() if "train/ratio_first" in line]
    assert lines[0]["train/ratio_first"] == pytest.approx(1.0, abs=0.05)
    assert json.loads(result.stdout)
