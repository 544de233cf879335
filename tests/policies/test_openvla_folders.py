"""What is read from a published folder, what is refused, and with which words."""

from __future__ import annotations

import json
import os

import pytest
import torch
from openvla_folders import OFT, PLAIN, copied, edited_json, edited_weights, load, oracle_folder, sharded

from vlacoach.errors import CheckpointError, ConfigError, ExitCode, UnknownNameError
from vlacoach.policies import OpenVLAOptions, load_policy, lora, source
from vlacoach.policies.folders import read_json
from vlacoach.policies.openvla import choose_head

DISCRETE = OpenVLAOptions(head="oft-discrete")


def refusal(folder, match, **kwargs) -> CheckpointError:
    kwargs.setdefault("unnorm_key", "fake_dataset")
    with pytest.raises(CheckpointError, match=match) as caught:
        load_policy(folder, **kwargs)
    assert caught.value.exit_code == ExitCode.MODEL == 4
    assert caught.value.hint
    return caught.value


# What the files leave open


def test_the_head_is_chosen_by_what_lies_in_the_folder(tmp_path):
    assert load(PLAIN, unnorm_key="fake_dataset").config.head == "openvla"
    assert load(OFT).config.head == "oft-l1"
    folder = copied(OFT, tmp_path / "some-oft-model")
    next(folder.glob("action_head--*")).unlink()
    assert choose_head(folder, "a name", "auto") == "oft-discrete"
    next(folder.glob("proprio_projector--*")).unlink()
    assert choose_head(folder, "a name", "auto") == "oft-discrete"
    assert choose_head(folder.rename(tmp_path / "some-model"), "a name", "auto") == "openvla"
    assert choose_head(tmp_path / "some-model", "org/openvla-7b-OFT-finetuned", "auto") == "oft-discrete"


def test_discrete_tokens_are_read_from_one_image_unless_told_otherwise():
    config = load(OFT, options=DISCRETE).config
    assert (config.num_images, config.proprio_dim, config.chunk_size) == (1, None, 8)
    assert (config.attention, config.prompt_end_id, config.first_action_id) == ("bidirectional", 29871, 31744)
    config = load(OFT, options=OpenVLAOptions("oft-discrete", num_images=2, proprio=True, center_crop=False)).config
    assert (config.num_images, config.proprio_dim, config.center_crop) == (2, 8, False)


def test_openvla_decodes_one_action_and_looks_back_only():
    policy = load(PLAIN, unnorm_key="fake_dataset")
    assert (policy.config.attention, policy.chunk_size, policy.config.num_choices) == ("causal", 1, 32064)
    assert (policy.image_size, policy.cameras) == (256, ("agentview",))
    assert (policy.feature_dim, policy.siglip_dim, policy.num_patches) == (72, 40, 256)


def test_stored_normalization_wins_over_the_processors_own():
    config = load(PLAIN, unnorm_key="fake_dataset").config
    assert config.dino.image_mean == (0.484375, 0.455078125, 0.40625)
    assert config.image_std == (0.5, 0.5, 0.5)


def test_the_language_models_unstored_numbers_are_those_of_transformers(tmp_path):
    config = load(PLAIN, unnorm_key="fake_dataset").config.language
    assert (config.rms_norm_eps, config.rope_theta, config.max_positions) == (1e-6, 10000.0, 2048)


def test_the_first_openvla_has_a_prompt_of_its_own(tmp_path):
    folder = copied(PLAIN, tmp_path / "openvla-v01-7b")
    policy = load_policy(folder, unnorm_key="fake_dataset")
    assert policy.config.prompt.endswith("USER: What action should the robot take to {instruction}? ASSISTANT:")


def test_statistics_in_a_file_of_their_own_replace_the_configurations(tmp_path):
    policy = load(OFT, options=DISCRETE)
    assert policy.statistics.name == "libero_10_no_noops"
    assert load(OFT, options=DISCRETE, unnorm_key="libero_10").statistics.name == "libero_10_no_noops"
    folder = copied(OFT, tmp_path / "oft")
    (folder / "dataset_statistics.json").unlink()
    assert load_policy(folder, options=DISCRETE, unnorm_key="fake_dataset").statistics.name == "fake_dataset"


def test_a_mask_that_is_not_stored_is_true_throughout():
    assert load(PLAIN, unnorm_key="fake_dataset_nomask").statistics.action_mask.all()
    assert not load(PLAIN, unnorm_key="fake_dataset").statistics.action_mask[-1]


def test_a_policy_that_was_loaded_can_be_saved_and_loaded_as_ours(tmp_path):
    policy = load(OFT, options=DISCRETE)
    again = load_policy(policy.save(tmp_path / "ours"))
    assert again.config == policy.config
    assert again.tokenize(["open the drawer"])[0].tolist() == policy.tokenize(["open the drawer"])[0].tolist()
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    with pytest.raises(ConfigError, match="says itself"):
        load_policy(tmp_path / "ours", options=OpenVLAOptions(head="oft-l1"))


def test_the_configuration_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(source, "read_json", lambda path: read.append(path) or read_json(path))
    policy = load(PLAIN, unnorm_key="fake_dataset")
    assert read == [oracle_folder(PLAIN) / "config.json"]
    found = source.find_source(oracle_folder(PLAIN))
    assert (found.is_openvla, found.revision, found.config()) == (True, None, policy.config)


def test_nothing_asks_to_run_code(monkeypatch):
    """The published folders name code to be run; reading them must not end in a question."""

    def ask(*args):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", ask)
    assert "auto_map" in json.loads((oracle_folder(PLAIN) / "config.json").read_text())
    load(PLAIN, unnorm_key="fake_dataset")


# What is refused


def test_a_folder_without_its_files_is_refused(tmp_path):
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"):
        folder = copied(PLAIN, tmp_path / name)
        (folder / name).unlink()
        refusal(folder, name.replace(".", r"\."))


def test_weights_must_be_those_of_the_configuration(tmp_path):
    folder = copied(PLAIN, tmp_path / "missing")
    edited_weights(folder, vision_backbone__featurizer__blocks__1__ls1__scale_factor=None)
    refusal(folder, r"featurizer\.blocks\.1\.ls1\.scale_factor is missing")
    folder = copied(PLAIN, tmp_path / "surplus")
    edited_weights(folder, language_model__lm_head__bias=torch.zeros(4))
    refusal(folder, r"lm_head\.bias belongs to no part")
    folder = copied(PLAIN, tmp_path / "shape")
    edited_weights(folder, projector__fc1__bias=torch.zeros(5))
    refusal(folder, r"projector\.fc1\.bias has shape \(5,\), expected \(288,\)")
    folder = copied(PLAIN, tmp_path / "unused")
    edited_weights(folder, vision_backbone__fused_featurizer__attn_pool__latent=None)
    refusal(folder, r"attn_pool\.latent is missing")


def test_a_file_that_was_cut_short_is_refused(tmp_path):
    folder = copied(PLAIN, tmp_path / "short")
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(os.path.getsize(folder / "model.safetensors") // 2)
    refusal(folder, "corrupt or cut short")
    (folder / "model.safetensors").write_bytes(b"")
    refusal(folder, "corrupt or cut short")


def test_shards_must_be_complete(tmp_path):
    folder = copied(PLAIN, tmp_path / "shards")
    sharded(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refusal(folder, "lacks 1 of 3 weight files: model-00002-of-00003.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    refusal(folder, "is not an index")


def test_an_unknown_data_set_lists_those_that_exist():
    refusal(
        oracle_folder(PLAIN), "no data set 'libero_goal': fake_dataset, fake_dataset_nomask", unnorm_key="libero_goal"
    )
    error = refusal(oracle_folder(PLAIN), "several data sets: fake_dataset, fake_dataset_nomask", unnorm_key=None)
    assert "--unnorm-key" in error.hint


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"timm_model_ids": ["vit_a", "vit_b"]}, "vision towers .* are not supported"),
        ({"timm_override_act_layers": ["quick_gelu", None]}, "timm_override_act_layers"),
        ({"text_config": {"model_type": "phi", "vocab_size": 32064}}, "phi"),
        ({"text_config": None}, "text_config"),
        ({"image_resize_strategy": "stretch"}, "resize_strategy"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, match):
    folder = copied(PLAIN, tmp_path / "other")
    edited_json(folder / "config.json", **changes)
    refusal(folder, match)


def test_a_config_that_is_no_json_is_refused(tmp_path):
    folder = copied(PLAIN, tmp_path / "text")
    (folder / "config.json").write_text("hello")
    refusal(folder, "config.json")


def test_the_parts_of_the_l1_policy_must_be_there_once(tmp_path):
    refusal(oracle_folder(PLAIN), "0 files action_head", options=OpenVLAOptions(head="oft-l1"))
    folder = copied(OFT, tmp_path / "two")
    head = next(folder.glob("action_head--*"))
    (folder / "action_head--2000_checkpoint.pt").write_bytes(head.read_bytes())
    refusal(folder, "holds 2 files action_head", unnorm_key=None)
    (folder / "action_head--2000_checkpoint.pt").unlink()
    head.write_bytes(head.read_bytes()[:1000])
    refusal(folder, "corrupt or no state dict", unnorm_key=None)
    torch.save({"module.model.fc1.bias": torch.zeros(32)}, head)
    refusal(folder, "is missing", unnorm_key=None)


def test_the_l1_head_draws_no_tokens_to_train():
    policy = load(OFT)
    with pytest.raises(CheckpointError, match="no probability") as caught:
        policy.logits(torch.zeros(1, 512, 72), ["turn on the stove"], torch.zeros(1, 8))
    assert "--head oft-discrete" in caught.value.hint
    assert caught.value.exit_code == ExitCode.MODEL


def test_a_head_that_does_not_exist_is_refused():
    refusal(oracle_folder(PLAIN), "no head 'diffusion'", options=OpenVLAOptions(head="diffusion"))


def test_a_hub_id_without_a_network_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    error = refusal("openvla/openvla-7b", "cannot be reached")
    assert "folder" in error.hint
    with pytest.raises(UnknownNameError):
        load_policy("tinny")


def test_a_cached_repository_is_used_with_its_commit(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--openvla-small"
    copied(PLAIN, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    policy = load_policy("someone/openvla-small", unnorm_key="fake_dataset")
    assert (policy.name, policy.revision) == ("someone/openvla-small", commit)


@pytest.mark.parametrize(
    "name",
    [
        "/data/software/openvla-7b",
        "microsoft/openvla-7b",
        "/mnt/loft/openvla-7b",
        "/home/u/openvla-oft-work/openvla-7b",
    ],
)
def test_letters_of_other_words_choose_no_head(tmp_path, name):
    assert choose_head(tmp_path, name, "auto") == "openvla"
    assert choose_head(tmp_path, f"{name.rpartition('/')[0]}/Openvla-oft-SFT-libero10", "auto") == "oft-discrete"


def test_what_a_policy_says_of_itself_may_be_said_again(tmp_path):
    load(OFT, options=DISCRETE).save(tmp_path / "ours")
    same = OpenVLAOptions("oft-discrete", num_images=1, proprio=False)
    assert load_policy(tmp_path / "ours", options=same).config.head == "oft-discrete"
    for other in (OpenVLAOptions("openvla"), OpenVLAOptions(num_images=2), OpenVLAOptions(center_crop=False)):
        with pytest.raises(ConfigError, match="says itself"):
            load_policy(tmp_path / "ours", options=other)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"text_config": [1]}, "config.json"),
        ({"n_action_bins": 128}, "n_action_bins is 128"),
        (
            {"text_config": {"model_type": "llama", "vocab_size": 32064, "hidden_size": 32, "num_attention_heads": 3}},
            "built",
        ),
    ],
)
def test_sizes_that_make_no_model_are_refused(tmp_path, changes, match):
    folder = copied(PLAIN, tmp_path / "odd")
    edited_json(folder / "config.json", **changes)
    refusal(folder, match)


@pytest.mark.parametrize(
    ("action", "match"),
    [({"mask": [True] * 6}, "the mask has 6 entries"), ({"q01": [float("nan")] * 7}, "not finite")],
)
def test_statistics_that_would_break_an_action_are_refused(tmp_path, action, match):
    folder = copied(PLAIN, tmp_path / "odd")
    data = json.loads((folder / "dataset_statistics.json").read_text())
    data["fake_dataset"]["action"] |= action
    (folder / "dataset_statistics.json").write_text(json.dumps(data))
    refusal(folder, match)


def test_openvla_reads_no_proprioception():
    refusal(
        oracle_folder(OFT), "reads no proprioception", options=OpenVLAOptions("openvla", proprio=True), unnorm_key=None
    )


def test_a_connection_that_breaks_is_an_error_of_ours(monkeypatch):
    import huggingface_hub

    def broken(*args, **kwargs):
        raise RuntimeError("peer closed connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    refusal("someone/model", "peer closed connection")


def test_an_adapter_fits_the_statistics_it_was_trained_with(tmp_path):
    policy = lora.add_lora(load(PLAIN, unnorm_key="fake_dataset"), rank=2)
    folder = lora.save_adapter(policy, tmp_path / "adapter")
    lora.load_adapter(load(PLAIN, unnorm_key="fake_dataset"), folder)
    with pytest.raises(CheckpointError, match="other action statistics"):
        lora.load_adapter(load(PLAIN, unnorm_key="fake_dataset_nomask"), folder)
    edited_json(folder / "adapter_config.json", target_modules="nothing")
    with pytest.raises(CheckpointError, match="does not fit"):
        lora.load_adapter(load(PLAIN, unnorm_key="fake_dataset"), folder)


def test_a_run_writes_down_which_policy_it_means(tmp_path, monkeypatch):
    from vlacoach.agents.evaluation import load_trained, pinned
    from vlacoach.runs.config import TrainConfig

    monkeypatch.chdir(oracle_folder(OFT).parent)
    config = pinned(TrainConfig.model_validate({"policy": {"path": OFT}}))
    assert config.policy.path == str(oracle_folder(OFT))
    assert (config.policy.head, config.policy.quantize) == ("oft-discrete", "none")
    assert (config.policy.num_images, config.policy.unnorm_key) == (1, "libero_10_no_noops")
    monkeypatch.chdir(tmp_path)
    assert load_trained(config).config.head == "oft-discrete"
    assert config.grpo.micro_batch == 64  # On a CPU; TrainConfig() says "auto".
    assert pinned(TrainConfig()) == TrainConfig.model_validate({"grpo": {"micro_batch": 64}})
    assert pinned(TrainConfig.model_validate({"grpo": {"micro_batch": 3}})).grpo.micro_batch == 3
    for section, error in (
        ({"adapter": str(tmp_path)}, CheckpointError),
        ({"full": True, "quantize": "nf4"}, ConfigError),
        ({"num_images": 3}, ConfigError),
    ):
        with pytest.raises(error):
            pinned(TrainConfig.model_validate({"policy": {"path": str(oracle_folder(OFT)), **section}}))
