"""The micro-batch that training chooses where nobody does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_envs import toy_policy

from vlacoach.agents.grpo import GRPOAgent
from vlacoach.agents.micro_batch import choose_micro_batch, memory_of
from vlacoach.agents.plan import fitting_micro_batch, plan_memory
from vlacoach.agents.plan_devices import DEVICES, GIB
from vlacoach.agents.plan_settings import MOST_LOOKS, settings_of
from vlacoach.agents.plan_sizes import find_config
from vlacoach.rewards.scorers import SuccessScorer
from vlacoach.runs.config import TrainConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
OFT = find_config("openvla-oft-7b")


def config_of(micro_batch: int | str = "auto", checkpointing: bool = False) -> TrainConfig:
    """The run of docs/a10g.md."""
    return TrainConfig.model_validate(
        {
            "env": {"suite": "libero_goal", "workers": 4},
            "policy": {"gradient_checkpointing": checkpointing},
            "grpo": {"micro_batch": micro_batch},
        }
    )


def fitting(memory: int, checkpointing: bool = False) -> int:
    gpu = memory_of(memory, "made up")
    return fitting_micro_batch(settings_of(config_of(checkpointing=checkpointing), OFT, "nf4", gpu, workers=1))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_largest_that_leaves_a_fifth_of_the_memory_is_taken(checkpointing: bool):
    a10g = DEVICES["a10g"]
    settings = settings_of(config_of(checkpointing=checkpointing), OFT, "nf4", a10g, workers=1)
    looks = fitting_micro_batch(settings)
    assert looks == fitting(a10g.memory, checkpointing) == (61 if checkpointing else 5)
    for size, fits in ((looks, True), (looks + 1, False)):
        assert (plan_memory(replace(settings, micro_batch=size)).peak.total <= 0.8 * a10g.memory) is fits


def test_it_is_bounded_and_at_least_one():
    assert fitting(DEVICES["h200"].memory, checkpointing=True) == MOST_LOOKS == 64
    # One look takes 9.7 GiB: here nothing is left to spare, and there it does not fit.
    assert fitting(10 * GIB) == 1
    assert fitting(GIB) == 1
    assert fitting(16 * GIB) == 2


def test_a_number_is_taken_as_it_is_and_a_cpu_takes_the_most():
    for device in (CPU, CUDA):
        assert choose_micro_batch(config_of(200), OFT, "nf4", device) == 200
    assert choose_micro_batch(config_of(), OFT, "nf4", CPU) == MOST_LOOKS


def test_a_cuda_device_is_asked_for_what_is_free_and_what_is_this_processs(monkeypatch: pytest.MonkeyPatch):
    memory = DEVICES["a10g"].memory
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A10G")
    # Before the policy is loaded, after that, and beside another process.
    for free, reserved, looks in ((memory, 0, 5), (memory - 6 * GIB, 6 * GIB, 5), (memory - 6 * GIB, 0, 2)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, memory))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device, reserved=reserved: reserved)
        assert choose_micro_batch(config_of(), OFT, "nf4", CUDA) == looks


def test_an_agent_of_its_own_chooses_too():
    for micro_batch, looks in (("auto", MOST_LOOKS), (7, 7)):
        agent = GRPOAgent(toy_policy(), None, SuccessScorer(), config_of(micro_batch))
        assert agent.micro_batch == looks
