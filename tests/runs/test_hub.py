"""A run's adapter as a repository of the Hub: its card, pushing it, and what keeps it from being pushed."""

from __future__ import annotations

import json
import re

import huggingface_hub
import pytest
from hub_server import local_hub
from huggingface_hub import ModelCard

from vlacoach.errors import CheckpointError, ConfigError, RunError
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.hub import push_folder, require_login, write_hub_folder
from vlacoach.runs.results import EvaluationResult, TaskResult, TrainResult, compare, write_results

RUNS = {"env": {"suite": "libero_goal", "tasks": [1, 4], "states": "0-9"}, "policy": {"path": "org/base"}}


def evaluation(*successes):
    tasks = tuple(
        TaskResult(task, f"do {task}", (30, 31, 32, 33), tuple(i < count for i in range(4)), (50,) * 4)
        for task, count in zip((1, 4), successes, strict=True)
    )
    return EvaluationResult("libero_goal", "held-out", "x", 1.0, (0,), tasks, 1.0, None, {"env.max_steps": 120})


def make_run(root, policy=None, results=True):
    config = TrainConfig.model_validate({**RUNS, "policy": {**RUNS["policy"], **(policy or {})}})

    def fill(folder):
        (folder / "adapter").mkdir()
        stored = {"base_model_name_or_path": config.policy.path, "r": 16, "revision": None}
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(stored))
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / "adapter" / "README.md").write_text("an old card")

    with RunFolder.create(root, "one", config) as folder:
        folder.checkpoints.save(5, fill, score=0.9)
        folder.checkpoints.save(10, fill, score=0.1)
        if results:
            comparisons = {"held-out": compare(evaluation(1, 1), evaluation(2, 4))}
            result = TrainResult(folder.path, 10, 60.0, comparisons, {})
            write_results(result, folder.path / "results.json")
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs")


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


def test_the_card_has_the_hubs_metadata_with_the_measured_success(run, tmp_path):
    last = run.checkpoints.named("last")
    target = write_hub_folder(run, last, tmp_path / "out", "me/bowls", datasets=["org/data"])
    data = ModelCard.load(target / "README.md").data
    assert (data.library_name, data.base_model, data.pipeline_tag) == ("peft", "org/base", "robotics")
    assert (data.model_name, data.datasets) == ("bowls", ["org/data"])
    assert {"robotics", "vla", "libero", "lora", "grpo", "vlacoach"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_type) == (
        "libero_goal",
        "held-out",
        "success_rate",
    )
    assert result.metric_value == 0.75
    # Wilson's interval of 6 in 8, from its formula.
    center, half, spread = (6 + 1.96**2 / 2), 1.96 * (6 * 2 / 8 + 1.96**2 / 4) ** 0.5, 8 + 1.96**2
    low, high = (center - half) / spread, (center + half) / spread
    assert (result.metric_args["low"], result.metric_args["high"]) == pytest.approx((low, high), abs=1e-3)
    assert result.metric_args["episodes"] == 8


def test_the_card_says_how_it_was_measured_and_how_to_load_it(run, tmp_path):
    target = write_hub_folder(run, run.checkpoints.named("last"), tmp_path / "out", "me/bowls")
    text = (target / "README.md").read_text()
    assert "| held-out | 25.0 (7.1 to 59.1), n = 8 | 75.0 (40.9 to 92.9), n = 8 | +50.0 (" in text
    assert "| 4: do 4 | held-out | 1/4 | 4/4 |" in text
    assert "at most 120 control steps, temperature 1, seed 0, initial states held-out: 30-33" in text
    assert 'policy = vlacoach.load_policy("me/bowls")' in text
    assert "vlacoach eval --policy me/bowls --suite libero_goal" in text
    assert "trained for 10 updates of GRPO" in text
    assert re.search(r"^  group_size: 8$", text, re.MULTILINE)
    assert json.loads((target / "vlacoach.json").read_text())["head"] == "auto"
    assert (target / "adapter_model.safetensors").read_bytes() == b"weights"


def test_a_checkpoint_that_was_not_measured_claims_nothing(run, tmp_path):
    target = write_hub_folder(run, run.checkpoints.named("best"), tmp_path / "out", "me/bowls")
    card = ModelCard.load(target / "README.md")
    assert card.data.eval_results is None
    assert "was not measured" in card.text
    assert "trained for 5 updates" in card.text
    bare = make_run(tmp_path / "bare", results=False)
    target = write_hub_folder(bare, bare.checkpoints.named("last"), tmp_path / "new", "me/bowls")
    assert "was not measured" in (target / "README.md").read_text()


def test_a_base_that_is_a_folder_of_this_machine_must_be_named_and_is_not_told(tmp_path):
    home = tmp_path / "home" / "policies" / "cloned"
    run = make_run(tmp_path / "runs", {"path": str(home), "adapter": str(home / "sft")})
    last = run.checkpoints.named("last")
    with pytest.raises(ConfigError, match="folder of this machine") as caught:
        write_hub_folder(run, last, tmp_path / "out", "me/bowls")
    assert "--base USER/BASE" in caught.value.hint
    assert not (tmp_path / "out").exists()
    target = write_hub_folder(run, last, tmp_path / "out", "me/bowls", base="me/cloned")
    for file in target.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert json.loads((target / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/cloned"
    assert ModelCard.load(target / "README.md").data.base_model == "me/cloned"


def test_a_built_in_base_is_no_model_of_the_hub(tmp_path):
    run = make_run(tmp_path / "runs", {"path": "tiny"})
    target = write_hub_folder(run, run.checkpoints.named("last"), tmp_path / "out", "me/bowls")
    assert ModelCard.load(target / "README.md").data.base_model is None
    assert "A LoRA adapter for `tiny`" in (target / "README.md").read_text()


def test_where_all_weights_were_trained_the_policy_is_the_model(run, tmp_path):
    last = run.checkpoints.named("last")
    (last / "adapter").rename(last / "policy")
    (last / "policy" / "adapter_config.json").rename(last / "policy" / "config.json")
    target = write_hub_folder(run, last, tmp_path / "out", "me/bowls")
    card = ModelCard.load(target / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("vlacoach", "org/base")
    assert "lora" not in card.data.tags
    assert "vlacoach train --policy me/bowls" in card.text
    assert not (target / "vlacoach.json").exists()


@pytest.mark.parametrize("name", ["bowls", "me/", "me/bo wls", "a/b/c", "me/b--c", "", f"me/{'x' * 95}"])
def test_names_that_are_none_of_the_hubs_are_refused(run, tmp_path, name):
    with pytest.raises(ConfigError, match="no name on the Hugging Face Hub"):
        write_hub_folder(run, run.checkpoints.named("last"), tmp_path / "out", name)


def test_a_checkpoint_without_weights_and_a_damaged_adapter_are_errors(run, tmp_path):
    last = run.checkpoints.named("last")
    (last / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json of the checkpoint is not JSON"):
        write_hub_folder(run, last, tmp_path / "out", "me/bowls")
    (last / "adapter").rename(last / "other")
    with pytest.raises(CheckpointError, match="no adapter and no policy"):
        write_hub_folder(run, last, tmp_path / "out", "me/bowls")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_the_hub_gets_the_folder_in_one_commit(run, tmp_path, token, monkeypatch):
    target = write_hub_folder(run, run.checkpoints.named("last"), tmp_path / "out", "me/bowls")
    with local_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        assert push_folder(target, "me/bowls", private=True) == f"{hub.address}/me/bowls"
        (made,) = hub.created
        assert (made["organization"], made["name"]) == ("me", "bowls")
        # The client's versions say it in two ways.
        assert made.get("visibility", made.get("private")) in ("private", True)
        assert hub.files == {file.name: file.read_bytes() for file in target.iterdir()}
        assert "Bearer hf_secret" in hub.tokens
        hub.refuse = True
        with pytest.raises(RunError, match=r"refuses to take me/bowls.*(403|rights)") as caught:
            push_folder(target, "me/bowls")
    assert "hf auth" in caught.value.hint
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="could not be pushed") as caught:
        push_folder(target, "me/bowls")
    assert "hf upload me/bowls FOLDER" in caught.value.hint


def test_without_a_token_the_error_says_how_to_log_in(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="Nobody is logged in") as caught:
        require_login()
    assert "hf auth login" in caught.value.hint
