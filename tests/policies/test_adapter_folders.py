"""A folder of an adapter is a policy: its base, with the adapter on it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from openvla_folders import OFT, oracle_folder

from vlacoach.agents.evaluation import check_trainable, load_trained
from vlacoach.errors import CheckpointError, ConfigError
from vlacoach.policies import OpenVLAOptions, load_policy, lora
from vlacoach.policies.checkpoint import check_policy
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.hub import write_hub_folder


def perturbed(policy):
    """The policy, with an adapter that has learned something."""
    lora.add_lora(policy, rank=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in lora.trainable_parameters(policy).values():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    return policy


def logits(policy, size):
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    state = np.zeros((1, 8), dtype=np.float32) if policy.config.proprio_dim else None
    with torch.no_grad():
        return policy.logits(policy.encode(image), ["open the drawer"], state)


def run_of(root, policy, settings):
    config = TrainConfig.model_validate({"policy": settings})
    with RunFolder.create(root, "one", config) as folder:
        folder.checkpoints.save(3, lambda path: lora.save_adapter(policy, path / "adapter"))
    return folder, config


def test_an_exported_run_acts_as_the_runs_adapter_does(tmp_path):
    learner = perturbed(load_policy("tiny"))
    run, config = run_of(tmp_path / "runs", learner, {"path": "tiny", "precision": "fp32"})
    checkpoint = run.checkpoints.named("last")
    target = write_hub_folder(run, checkpoint, tmp_path / "out", "me/bowls")
    expected = logits(load_trained(config, checkpoint), 128)
    loaded = load_policy(target)
    assert torch.equal(logits(loaded, 128), expected)
    assert torch.equal(expected, logits(learner, 128))
    assert (expected - logits(load_policy("tiny"), 128)).abs().max() > 0.01
    assert lora.trainable_parameters(loaded) == {}
    evaluated = TrainConfig.model_validate({"policy": {"path": str(target), "precision": "fp32"}})
    assert torch.equal(logits(load_trained(evaluated), 128), expected)


def test_the_base_is_used_as_the_run_has_used_it(tmp_path):
    base = oracle_folder(OFT)
    learner = perturbed(load_policy(base, options=OpenVLAOptions(head="oft-discrete", num_images=2)))
    settings = {"path": str(base), "head": "oft-discrete", "num_images": 2, "proprio": False, "quantize": "none"}
    run, _ = run_of(tmp_path / "runs", learner, settings)
    checkpoint = run.checkpoints.named("last")
    target = write_hub_folder(run, checkpoint, tmp_path / "out", "me/drawers", base="me/base")
    # In the place of me/base, which is on no Hub here.
    stored = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**stored, "base_model_name_or_path": str(base)}))
    found = check_policy(target)
    assert (found.options.head, found.options.num_images, found.adapter) == ("oft-discrete", 2, target)
    loaded = load_policy(target)
    images = np.full((1, 2, 256, 256, 3), 70, dtype=np.uint8)
    with torch.no_grad():
        one, other = (p.logits(p.encode(images), ["open the drawer"], None) for p in (loaded, learner))
    assert torch.equal(one, other)
    with pytest.raises(ConfigError, match="trained with the head 'oft-discrete', not 'openvla'"):
        check_policy(target, options=OpenVLAOptions(head="openvla"))


def test_training_goes_on_from_the_base(tmp_path):
    folder = lora.save_adapter(perturbed(load_policy("tiny")), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="is an adapter") as caught:
        check_trainable(TrainConfig.model_validate({"policy": {"path": str(folder)}}))
    assert "--set policy.adapter=FOLDER" in caught.value.hint


@pytest.mark.parametrize(
    ("base", "message"), [(None, "does not say which policy"), ("gone", "belongs on 'gone', which is not here")]
)
def test_an_adapter_whose_base_is_not_to_be_found_is_an_error(tmp_path, base, message):
    folder = lora.save_adapter(perturbed(load_policy("tiny")), tmp_path / "adapter")
    stored = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**stored, "base_model_name_or_path": base}))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_policy(folder)
    assert "--set policy.adapter=FOLDER" in caught.value.hint
