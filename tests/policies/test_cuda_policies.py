"""Policies on a CUDA device: the numbers of the CPU, ratios of 1, and quantized layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vlacoach.agents.plan_devices import DEVICES
from vlacoach.agents.plan_measure import build_policy
from vlacoach.agents.plan_settings import PlanSettings
from vlacoach.agents.plan_sizes import find_config
from vlacoach.policies import VLAPolicy, action_log_prob, load_policy, lora
from vlacoach.policies.configuration import VLAConfig
from vlacoach.policies.quantization import Quantization, language_linear_layers, restored_weight

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

TEXTS = ["turn on the stove", "put the bowl on the plate", "open the middle drawer of the cabinet"]


def look(policy: VLAPolicy, rows: int = 3) -> tuple[np.ndarray, np.ndarray | None]:
    """Noise: (rows, views, H, W, 3) uint8 pictures and (rows, 8) proprioception."""
    random, side = np.random.default_rng(0), policy.image_size
    images = random.integers(0, 256, (rows, policy.config.num_images, side, side, 3), dtype=np.uint8)
    state = None if policy.config.proprio_dim is None else random.normal(0, 0.1, (rows, 8)).astype(np.float32)
    return images[:, 0] if policy.config.num_images == 1 else images, state


def wide_config() -> VLAConfig:
    """Two blocks of OpenVLA-OFT's language model, and one block of each tower."""
    full = find_config("openvla-oft-7b")
    changes = {
        "language": full.language.model_copy(update={"num_layers": 2}),
        "vision": full.vision.model_copy(update={"num_layers": 2}),
        "dino": None if full.dino is None else full.dino.model_copy(update={"num_layers": 2}),
    }
    return full.model_copy(update=changes)


def noise_policy(quantization: Quantization, device: str, precision: str = "bf16") -> VLAPolicy:
    settings = PlanSettings(
        "noise", wide_config(), DEVICES["h100-80"], precision=precision, quantization=quantization, rank=8
    )
    return build_policy(settings, torch.device(device))


@torch.no_grad()
def test_the_built_in_policy_computes_what_it_computes_on_the_cpu():
    here, there = load_policy("tiny", "cpu", "fp32"), load_policy("tiny", "cuda", "fp32")
    images, state = look(here)
    tokens = here.act(here.encode(images), TEXTS, state, 0.0).tokens
    expected = here.logits(here.encode(images), TEXTS, state, tokens)
    found = there.logits(there.encode(images), TEXTS, state, tokens)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, atol=2e-3, rtol=1e-3)
    assert torch.equal(there.act(there.encode(images), TEXTS, state, 0.0).tokens.cpu(), tokens)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_scoring_the_tokens_that_were_drawn_gives_a_ratio_of_one(precision: str, tolerance: float):
    """Invariants 1 and 2; in bfloat16 a batch of another size may choose other kernels, which round otherwise."""
    policy = load_policy("tiny", "cuda", precision)
    images, state = look(policy)
    features = policy.encode(images)
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    sample = policy.act(features, TEXTS, state, 1.0, generators)
    again, _ = action_log_prob(policy.logits(features, TEXTS, state, sample.tokens), sample.tokens.cuda())
    difference = (again.cpu() - sample.log_prob.cpu()).abs()
    assert difference.mean() < tolerance
    one = slice(0, 1)
    alone = policy.act(features[one], TEXTS[one], state[one], 1.0, [torch.Generator().manual_seed(0)])
    if precision == "fp32":
        assert torch.equal(alone.tokens, sample.tokens[one])


@torch.no_grad()
def test_nf4_weights_stand_for_the_same_numbers_as_on_the_cpu():
    here, there = noise_policy("nf4", "cpu"), noise_policy("nf4", "cuda")
    layers = quantized(there)
    assert len(layers) == 14
    for name, one in quantized(here).items():
        other = layers[name]
        assert (other.weight.device.type, other.weight.quant_state.quant_type) == ("cuda", "nf4")
        expected, found = restored_weight(one).float(), restored_weight(other).float().cpu()
        # The scales are quantized too, and their mean is added up in another order.
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-2)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_layers_compute_with_the_weights_they_stand_for_and_their_adapter_learns(quantization: Quantization):
    policy, plain = noise_policy(quantization, "cuda"), noise_policy("none", "cuda")
    layers = quantized(policy)
    with torch.no_grad():
        for name, layer in language_linear_layers(lora.merge_lora(plain).model).items():
            other = layers[name]
            if quantization == "nf4":
                layer.weight.copy_(restored_weight(other))
            else:
                layer.weight.copy_(other.state.CB.float() * other.state.SCB[:, None] / 127)
    images, state = look(policy)
    features = policy.encode(images)
    tokens = torch.full((3, policy.config.num_action_tokens), policy.config.first_choice)
    found, expected = (one.logits(features, TEXTS, state, tokens) for one in (policy, plain))
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]).float())[0, 1] > 0.999
    log_prob, _ = action_log_prob(found, tokens.cuda())
    log_prob.mean().backward()
    gradients = [parameter.grad for parameter in lora.trainable_parameters(policy).values()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def quantized(policy: VLAPolicy) -> dict[str, Any]:
    """The quantized layers under the adapter, by the names they had before it came."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in policy.model.named_modules()
        if name.endswith(".base_layer") and type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    }


def test_an_adapter_goes_from_the_gpu_to_a_cpu_and_computes_the_same_there(tmp_path):
    policy = lora.add_lora(load_policy("tiny", "cuda", "fp32"), 4)
    for number, parameter in enumerate(lora.trainable_parameters(policy).values()):
        torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator("cuda").manual_seed(number))
    lora.save_adapter(policy, tmp_path / "adapter")
    other = lora.load_adapter(load_policy("tiny", "cpu", "fp32"), tmp_path / "adapter")
    images, state = look(policy)
    with torch.no_grad():
        found = policy.logits(policy.encode(images), TEXTS, state)
        expected = other.logits(other.encode(images), TEXTS, state)
    torch.testing.assert_close(found.cpu(), expected, atol=2e-3, rtol=1e-3)
