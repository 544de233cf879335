"""How many looks go through the language model at once, where the configuration leaves it to the machine."""

from __future__ import annotations

import math
import os

import torch

from vlacoach.agents.plan import fitting_micro_batch
from vlacoach.agents.plan_devices import Device
from vlacoach.agents.plan_settings import MOST_LOOKS, settings_of
from vlacoach.policies.configuration import VLAConfig
from vlacoach.policies.quantization import Quantization
from vlacoach.runs.config import TrainConfig


def choose_micro_batch(config: TrainConfig, sizes: VLAConfig, quantization: Quantization, device: torch.device) -> int:
    """What ``grpo.micro_batch`` stands for on a device.

    Args:
        config: Of the run.
        sizes: The policy's.
        quantization: Of its language model's linear layers.
        device: Where it computes. On a CPU ``"auto"`` is :data:`MOST_LOOKS`; on a CUDA device as many of them as fit
            into what other processes leave of its memory, by the estimate of :mod:`vlacoach.agents.plan`.
    """
    if config.grpo.micro_batch != "auto":
        return config.grpo.micro_batch
    if device.type != "cuda":
        return MOST_LOOKS
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds already is this process's own: the policy, if it has been loaded.
    gpu = memory_of(free + torch.cuda.memory_reserved(device), torch.cuda.get_device_name(device))
    return fitting_micro_batch(settings_of(config, sizes, quantization, gpu, workers=os.cpu_count() or 1))


def memory_of(size: int, title: str) -> Device:
    """A GPU with this many bytes, of which nothing else is known."""
    return Device("this", title, size, half=math.nan, single=math.nan, bandwidth=math.nan)
