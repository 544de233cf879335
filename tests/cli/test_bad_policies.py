"""``vlacoach train`` and ``eval`` with policies that cannot be used: one clear error, and nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from openvla_folders import OFT, PLAIN, copied, edited_json, edited_weights, oracle_folder, sharded

from vlacoach.policies import load_policy, lora

KEY = ("--unnorm-key", "fake_dataset")
Damage = Callable[[Path], None]


def truncate(folder: Path) -> None:
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(os.path.getsize(folder / "model.safetensors") // 2)


def lose_a_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


DAMAGED: dict[str, tuple[Damage, str]] = {
    "no configuration": (without("config.json"), "config.json cannot be read"),
    "a configuration of text": (lambda folder: (folder / "config.json").write_text("hello"), "is not JSON"),
    "another language model": (
        lambda folder: edited_json(folder / "config.json", text_config={"model_type": "phi", "vocab_size": 32064}),
        "'phi' is not supported",
    ),
    "no tokenizer": (without("tokenizer.json"), "tokenizer.json is missing"),
    "no preprocessor": (without("preprocessor_config.json"), "preprocessor_config.json cannot be read"),
    "a tensor missing": (
        lambda folder: edited_weights(folder, vision_backbone__featurizer__blocks__1__ls1__scale_factor=None),
        "blocks.1.ls1.scale_factor is missing",
    ),
    "a tensor too many": (
        lambda folder: edited_weights(folder, language_model__lm_head__bias=torch.zeros(4)),
        "lm_head.bias belongs to no part",
    ),
    "another shape": (
        lambda folder: edited_weights(folder, projector__fc1__bias=torch.zeros(5)),
        "has shape (5,), expected (288,)",
    ),
    "a file cut short": (truncate, "is corrupt or cut short"),
    "a shard missing": (lose_a_shard, "lacks 1 of 3 weight files"),
}


def refused(invoke, tmp_path: Path, command: str, *args: object, code: int = 4) -> str:
    """What is said on standard error, after it was seen that nothing else has happened."""
    result = invoke(command, "--policy", *args, "--suite", "libero_goal", "--tasks", "1")
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    runs = tmp_path / "runs"
    assert not runs.exists() or list(runs.iterdir()) == []
    return result.stderr


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_folder_is_refused(invoke, tmp_path, command: str, name: str):
    damage, said = DAMAGED[name]
    folder = copied(PLAIN, tmp_path / "folder")
    damage(folder)
    message, hint = refused(invoke, tmp_path, command, folder, *KEY).split(":", 1)[1].strip().splitlines()
    assert said in message
    assert str(folder) in message
    assert hint


@pytest.mark.parametrize("command", ["train", "eval"])
def test_statistics_that_are_not_there_are_listed_with_those_that_are(invoke, tmp_path, command: str):
    text = refused(invoke, tmp_path, command, oracle_folder(PLAIN), "--unnorm-key", "libero_goal")
    assert "no data set 'libero_goal': fake_dataset, fake_dataset_nomask" in text


def test_a_head_that_draws_no_tokens_is_not_trained(invoke, tmp_path):
    text = refused(invoke, tmp_path, "train", oracle_folder(OFT), "--head", "oft-l1")
    assert "--head oft-discrete" in text


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_hub_id_without_a_network_says_so(invoke, tmp_path, monkeypatch, command: str):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "cannot be reached" in refused(invoke, tmp_path, command, "openvla/openvla-7b")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_quantization_without_its_package_says_what_to_install(invoke, tmp_path, monkeypatch, command: str):
    monkeypatch.setattr("vlacoach.policies.quantization.find_spec", lambda name: None)
    text = refused(invoke, tmp_path, command, oracle_folder(PLAIN), *KEY, "--quantize", "nf4")
    assert "pip install 'vlacoach[quantize]'" in text


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_name_or_a_device_that_is_not_there_is_a_matter_of_usage(invoke, tmp_path, monkeypatch, command: str):
    assert "Did you mean 'tiny'?" in refused(invoke, tmp_path, command, "tinny", code=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = refused(invoke, tmp_path, command, "tiny", "--set", "policy.device=cuda:1", code=2)
    assert "policy.device is 'cuda:1', and torch finds 0 CUDA devices" in text


def test_what_is_noticed_after_the_run_folder_was_made_removes_it(invoke, tmp_path):
    adapter = lora.save_adapter(lora.add_lora(load_policy("tiny"), rank=2), tmp_path / "adapter")
    other = (oracle_folder(OFT), "--head", "oft-discrete", "--set", f"policy.adapter={adapter}")
    text = refused(invoke, tmp_path, "train", *other)
    assert "other action statistics" in text
    assert "Nothing had begun, so the run folder is removed" in text
    assert "foo" in refused(invoke, tmp_path, "train", "tiny", "--set", "reward.params={foo: 1}", code=2)
