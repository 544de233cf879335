from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlacoach.errors import ConfigError, UnknownNameError
from vlacoach.rewards.temporal import TemporalFusion, pool, pooling_weights, sinusoidal


def random_fusion(fusion: str, dim: int = 6) -> TemporalFusion:
    """A module whose last layer is not zero, as after training."""
    generator = torch.Generator().manual_seed(0)
    module = TemporalFusion(dim, fusion, generator=generator)
    torch.nn.init.normal_(module.outer.weight, generator=generator)
    return module


def test_the_code_in_closed_form():
    code = sinusoidal(torch.tensor([0, 3]), width=4, max_period=100.0)
    expected = [
        [0.0, 0.0, 1.0, 1.0],
        [math.sin(3), math.sin(0.3), math.cos(3), math.cos(0.3)],
    ]
    torch.testing.assert_close(code, torch.tensor(expected))


def test_looks_have_different_codes_and_bounded_values():
    code = sinusoidal(torch.arange(65))
    assert code.shape == (65, 256)
    assert float(code.abs().max()) <= 1.0
    distance = torch.cdist(code, code) + 100 * torch.eye(65)
    assert float(distance.min()) > 0.5


@pytest.mark.parametrize("fusion", ["film", "add"])
def test_about_two_hundred_thousand_parameters_at_full_width(fusion):
    count = sum(parameter.numel() for parameter in TemporalFusion(1152, fusion).parameters())
    assert 180_000 <= count <= 220_000


def test_the_bottleneck_shrinks_with_the_tower():
    counts = [sum(p.numel() for p in TemporalFusion(dim).parameters()) for dim in (96, 192, 384, 768, 1152)]
    assert counts == sorted(counts)
    assert counts[1] < 15_000


@pytest.mark.parametrize("fusion", ["film", "add"])
def test_an_untrained_module_changes_nothing(fusion):
    features = torch.randn(2, 5, 6)
    assert torch.equal(TemporalFusion(6, fusion)(features, torch.arange(5)), features)


def test_fusions_in_closed_form():
    features, time = torch.randn(2, 5, 6), torch.arange(5)
    for fusion in ("film", "add"):
        module = random_fusion(fusion)
        code = module.outer(torch.nn.functional.silu(module.inner(sinusoidal(time))))
        expected = features + code if fusion == "add" else features * (1 + code[:, :6]) + code[:, 6:]
        torch.testing.assert_close(module(features, time), expected)


def test_only_the_multiplicative_fusion_survives_pooling():
    # The defect of the additive embedding: after the mean, order is gone whatever the weights.
    features = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(1))
    weights = pooling_weights(torch.tensor([8]), 8)
    gaps = {}
    for fusion in ("film", "add"):
        module = random_fusion(fusion)
        forward, backward = (pool(module(one, torch.arange(8)), weights) for one in (features, features.flip(1)))
        gaps[fusion] = float((forward - backward).abs().max().detach())
    assert gaps["add"] < 1e-5
    assert gaps["film"] > 0.1


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.sampled_from(["mean", "last-k", "segments"]),
    st.integers(1, 6),
)
def test_pooling_weights_are_means_over_real_looks(lengths, pooling, k):
    weights = pooling_weights(torch.tensor(lengths), 20, pooling, k)
    assert weights.shape == (len(lengths), k if pooling == "segments" else 1, 20)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    for row, length in enumerate(lengths):
        assert torch.equal(weights[row, :, length:], torch.zeros_like(weights[row, :, length:]))
        # No look is forgotten, except by "last-k".
        assert bool((weights[row].sum(0)[:length] > 0).all()) or (pooling == "last-k" and k < length)


def test_poolings_in_closed_form():
    looks = torch.arange(6.0)[None, :, None]
    lengths = torch.tensor([6])
    assert pool(looks, pooling_weights(lengths, 6)).tolist() == [[2.5]]
    assert pool(looks, pooling_weights(lengths, 6, "last-k", 2)).tolist() == [[4.5]]
    torch.testing.assert_close(pool(looks, pooling_weights(lengths, 6, "segments", 3)), torch.tensor([[0.5, 2.5, 4.5]]))


def test_names_and_sizes_are_checked():
    with pytest.raises(UnknownNameError, match="film"):
        TemporalFusion(4, "fllm")
    with pytest.raises(UnknownNameError, match="segments"):
        pooling_weights(torch.tensor([1]), 1, "segment")
    with pytest.raises(ConfigError, match="k >= 1"):
        pooling_weights(torch.tensor([1]), 1, "last-k", 0)
    with pytest.raises(ConfigError, match="even"):
        sinusoidal(torch.tensor([1]), width=3)
