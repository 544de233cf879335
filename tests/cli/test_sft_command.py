"""``vlacoach sft`` on a published policy and a LeRobot data set: what it writes, and that training starts from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from lerobot_folders import make_episodes, write
from openvla_folders import OFT, oracle_folder

from vlacoach.agents.evaluation import load_trained
from vlacoach.errors import ExitCode
from vlacoach.policies import load_policy, lora
from vlacoach.runs.config import TrainConfig

pytest.importorskip("bitsandbytes")

TEXT = ["open the drawer"]


@pytest.fixture
def clone(invoke, tmp_path):
    """Run a few steps on a LeRobot data set; the arguments are further options."""
    demos = write(tmp_path / "demos", make_episodes())

    def run(*options):
        head = ["--policy", oracle_folder(OFT), "--demos", demos, "--steps", 2, "--batch-size", 2]
        return invoke("sft", *head, "--out", "out", *options)

    return run


def logits(policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.logits(policy.encode(np.full((1, 256, 256, 3), 70, dtype=np.uint8)), TEXT, None)


def test_a_lora_is_merged_into_a_policy_of_its_own(clone, tmp_path):
    result = clone("--lora-rank", 4, "--learning-rate", 0.01, "--json")
    assert result.exit_code == 0, result.stderr
    assert "holds an L1 action head, which is not used" in " ".join(result.stderr.split())
    assert json.loads(result.stdout)["metrics"]["loss"] > 0
    policy, base = load_policy(tmp_path / "out"), load_policy(oracle_folder(OFT), options=_discrete())
    assert policy.config == base.config
    assert (logits(policy) - logits(base)).abs().max() > 0.01
    frozen = policy.model.state_dict()
    changed = {name for name, value in base.model.state_dict().items() if not torch.equal(value, frozen[name])}
    assert len(changed) == 4 * 7


def test_on_quantized_weights_the_adapter_is_saved_and_trained_further(clone, tmp_path):
    result = clone("--lora-rank", 4, "--quantize", "nf4", "--learning-rate", 0.01)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    section = {"path": str(oracle_folder(OFT)), "quantize": "nf4", "adapter": str(tmp_path / "out")}
    policy = load_trained(TrainConfig.model_validate({"policy": section}), for_training=True)
    assert len(lora.trainable_parameters(policy)) == 2 * 4 * 7
    with lora.reference(policy):
        without = logits(policy)
    assert (logits(policy) - without).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--quantize", "nf4"], ExitCode.USAGE, "quantized"),
        (["--head", "oft-l1"], ExitCode.MODEL, "no probability"),
        (["--lora-rank", 4, "--captions", 0.1], ExitCode.USAGE, "captioned"),
        (["--lora-rank", 4, "--gripper", "rlds"], ExitCode.FAILURE, "gripper"),
    ],
)
def test_what_cannot_be_done_is_said_and_writes_nothing(clone, tmp_path, options, code, said):
    result = clone(*(["--captions", 0] if "--captions" not in options else []), *options)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_cloned_into(invoke, tmp_path):
    demos = write(tmp_path / "demos", make_episodes())
    lora.save_adapter(lora.add_lora(load_policy("tiny"), rank=2), tmp_path / "adapter")
    result = invoke("sft", "--policy", "adapter", "--demos", demos)
    assert (result.exit_code, "is an adapter" in result.stderr) == (ExitCode.USAGE, True)


def _discrete():
    from vlacoach.policies import OpenVLAOptions

    return OpenVLAOptions(head="oft-discrete")
