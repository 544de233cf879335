"""LoRA: neutral at first, trains only itself, switches off, and travels in peft's format."""

from __future__ import annotations

import os

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from vlacoach.errors import CheckpointError, ConfigError
from vlacoach.policies import action_log_prob, load_policy, new_tiny_policy
from vlacoach.policies.lora import (
    add_lora,
    load_adapter,
    merge_lora,
    reference,
    save_adapter,
    train_language_model,
    trainable_parameters,
)


@pytest.fixture
def adapted():
    return add_lora(new_tiny_policy(seed=0))


def disturb(policy, scale=0.05):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable_parameters(policy).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def test_a_fresh_adapter_changes_nothing(policy, inputs, adapted):
    """Invariant 2: B = 0, so the first ratio is exactly 1."""
    sample = policy.act(*inputs.arguments(), 1.0)
    logits = adapted.logits(*inputs.arguments())
    assert torch.equal(logits, policy.logits(*inputs.arguments()))
    assert torch.equal(action_log_prob(logits, sample.tokens)[0].detach(), sample.log_prob)


def test_only_the_language_models_linear_layers_are_adapted(adapted):
    names = trainable_parameters(adapted)
    # 4 blocks, 7 linear layers each, factors A and B.
    assert len(names) == 4 * 7 * 2
    assert all(name.startswith("language_model.model.layers.") and ".lora_" in name for name in names)
    with_projector = trainable_parameters(add_lora(new_tiny_policy(), projector=True))
    assert len(with_projector) == 4 * 7 * 2 + 4
    # r (in + out) for four 192 x 192 and three 192 x 512 layers a block.
    assert sum(p.numel() for p in names.values()) == 4 * 16 * (4 * 384 + 3 * 704)


def test_a_step_changes_the_adapter_and_nothing_else(inputs, adapted):
    frozen = {key: value.clone() for key, value in adapted.model.state_dict().items() if "lora_" not in key}
    parameters = trainable_parameters(adapted)
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0)
    before = adapted.logits(*inputs.arguments()).detach()
    before_loss = -before.log_softmax(-1)[..., 0].mean()
    (-adapted.logits(*inputs.arguments()).log_softmax(-1)[..., 0].mean()).backward()
    assert all(p.grad is not None for p in parameters.values())
    optimizer.step()
    after = adapted.logits(*inputs.arguments()).detach()
    assert -after.log_softmax(-1)[..., 0].mean() < before_loss - 1e-3
    state = adapted.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in frozen.items())
    with reference(adapted):
        assert torch.equal(adapted.logits(*inputs.arguments()), before)
    assert torch.equal(adapted.logits(*inputs.arguments()), after)


def test_peft_itself_reproduces_the_logits(inputs, adapted, tmp_path):
    disturb(adapted)
    expected = adapted.logits(*inputs.arguments())
    folder = save_adapter(adapted, tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    base = new_tiny_policy(seed=0)
    assert not torch.allclose(base.logits(*inputs.arguments()), expected, atol=1e-3)
    PeftModel.from_pretrained(base.model, str(folder))
    assert torch.equal(base.logits(*inputs.arguments()), expected)


def test_a_stored_adapter_is_attached_or_exchanged(inputs, adapted, tmp_path):
    disturb(adapted)
    expected = adapted.logits(*inputs.arguments()).detach()
    folder = save_adapter(adapted, tmp_path / "adapter")
    fresh = load_adapter(new_tiny_policy(seed=0), folder)
    assert torch.equal(fresh.logits(*inputs.arguments()), expected)
    assert trainable_parameters(fresh).keys() == trainable_parameters(adapted).keys()
    disturb(fresh)
    assert not torch.equal(fresh.logits(*inputs.arguments()), expected)
    load_adapter(fresh, folder, trainable=False)
    assert torch.equal(fresh.logits(*inputs.arguments()), expected)
    assert not trainable_parameters(fresh)
    assert fresh.adapter.peft_config["default"].base_model_name_or_path == "tiny"


def test_merging_keeps_the_logits_and_can_be_saved(inputs, adapted, tmp_path):
    disturb(adapted)
    expected = adapted.logits(*inputs.arguments()).detach()
    with pytest.raises(ConfigError, match="adapter"):
        adapted.save(tmp_path / "merged")
    merge_lora(adapted)
    torch.testing.assert_close(adapted.logits(*inputs.arguments()), expected, atol=1e-4, rtol=0)
    loaded = load_policy(adapted.save(tmp_path / "merged"))
    torch.testing.assert_close(loaded.logits(*inputs.arguments()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_or_damaged_file_is_named(adapted, tmp_path, name):
    folder = save_adapter(adapted, tmp_path / "adapter")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not a peft adapter"):
        load_adapter(new_tiny_policy(), folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_adapter(new_tiny_policy(), folder)


def test_an_adapter_of_other_shapes_is_refused(inputs, policy, adapted, tmp_path):
    folder = save_adapter(adapted, tmp_path / "adapter")
    state = load_file(folder / "adapter_model.safetensors")
    key = sorted(state)[0]
    state[key] = state[key][:3].contiguous()
    save_file(state, folder / "adapter_model.safetensors")
    target = new_tiny_policy(seed=0)
    with pytest.raises(CheckpointError, match=r"has shape \(3, "):
        load_adapter(target, folder)
    assert target.adapter is None
    assert torch.equal(target.logits(*inputs.arguments()), policy.logits(*inputs.arguments()))


def test_a_failed_save_leaves_the_old_adapter(adapted, tmp_path, monkeypatch):
    folder = save_adapter(adapted, tmp_path / "adapter")
    before = (folder / "adapter_model.safetensors").read_bytes()
    disturb(adapted)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_adapter(adapted, folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_full_fine_tuning_trains_the_language_model_alone(tmp_path):
    policy = train_language_model(new_tiny_policy())
    names = trainable_parameters(policy)
    assert names
    assert all(name.startswith("language_model.") for name in names)
    with pytest.raises(ConfigError, match="no reference policy"), reference(policy):
        pass
    with pytest.raises(ConfigError, match="no adapter to save"):
        save_adapter(policy, tmp_path / "adapter")


def test_two_adapters_are_refused(adapted):
    with pytest.raises(ConfigError, match="already has an adapter"):
        add_lora(adapted)
    with pytest.raises(ConfigError, match="rank"):
        add_lora(new_tiny_policy(), rank=0)


def test_the_seed_of_an_adapter_decides_its_factors(adapted):
    again, other = add_lora(new_tiny_policy(seed=0)), add_lora(new_tiny_policy(seed=0), seed=1)
    first, second, third = (next(iter(trainable_parameters(p).values())) for p in (adapted, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
