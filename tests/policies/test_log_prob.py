"""Token log-probabilities against siiRL's own, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vlacoach.errors import ConfigError
from vlacoach.policies import action_log_prob


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_equals_siirl(oracle, temperature):
    case = oracle("srpo/action_logprob")
    logits, bins = torch.from_numpy(case["action_logits"]), torch.from_numpy(case["bins"])
    log_prob, entropy = action_log_prob(logits, bins, temperature)
    np.testing.assert_allclose(log_prob, case[f"logprob_T{temperature}"], atol=2e-5)
    np.testing.assert_allclose(entropy, case[f"entropy_T{temperature}"], atol=2e-5)


def test_uniform_logits():
    log_prob, entropy = action_log_prob(torch.zeros(2, 3, 256), torch.zeros(2, 3, dtype=torch.long))
    assert log_prob.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(log_prob, torch.full((2, 3), -math.log(256)))
    torch.testing.assert_close(entropy, torch.full((2, 3), math.log(256)))


def test_gradient_is_one_hot_minus_probability():
    logits = torch.randn(5, 256, dtype=torch.float64).float().requires_grad_()
    bins = torch.tensor([0, 1, 128, 254, 255])
    action_log_prob(logits, bins, 2.0)[0].sum().backward()
    expected = (torch.nn.functional.one_hot(bins, 256) - torch.softmax(logits.detach() / 2, -1)) / 2
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.randn(4, 256).bfloat16()
    bins = torch.arange(4)
    assert torch.equal(action_log_prob(logits, bins)[0], action_log_prob(logits.float(), bins)[0])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_refuses_a_temperature_without_distribution(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        action_log_prob(torch.zeros(1, 256), torch.zeros(1, dtype=torch.long), temperature)
