"""A checkpoint of OpenVLA's form is trained on the real simulator, in 4 bits, on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from openvla_folders import OFT, PLAIN, oracle_folder
from peft import PeftModel
from typer.testing import CliRunner

from vlacoach.agents.evaluation import load_trained
from vlacoach.agents.measuring import Measurement, measure
from vlacoach.agents.training import train
from vlacoach.cli.main import app
from vlacoach.errors import CheckpointError, ExitCode
from vlacoach.policies import OpenVLAOptions, load_policy
from vlacoach.rewards import registry
from vlacoach.rewards.scorers import Scorer
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.reporting import NullReporter
from vlacoach.runs.results import EvaluationResult

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.sim


class HandScorer(Scorer):
    """How far to the left the hand came: a random policy never succeeds, and an update needs differences."""

    name = "hand"

    def embed(self, trajectory):
        return trajectory.proprio.numpy().mean(axis=0)

    def rewards(self, trajectories, bank=None):
        return np.array([float(one.proprio[-1, 1]) for one in trajectories])


@pytest.fixture(scope="module", autouse=True)
def _hand_scorer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._registered, "hand", lambda policy=None: HandScorer())
        yield


def config_of(name: str, **grpo: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "env": {"suite": "libero_goal", "tasks": [1], "max_steps": 16, "num_envs": 2, "workers": 1},
            "policy": {
                "path": str(oracle_folder(name)),
                "quantize": "nf4",
                "unnorm_key": None if name == OFT else "fake_dataset",
                "gradient_checkpointing": True,
            },
            "reward": {"name": "hand"},
            "grpo": {
                "updates": 2,
                "prompts": 1,
                "group_size": 2,
                "keep_graded": True,
                "minibatches": 1,
                "micro_batch": 2,
                "warmup_updates": 0,
                **grpo,
            },
            "evaluation": {"trials": 1, "train_states": False},
            "checkpoint": {"every": 1},
        }
    )


class Listener(NullReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def run(tmp_path_factory, _hand_scorer):
    """Two updates, and a third after a stop."""
    config, listener = config_of(OFT), Listener()
    folder = RunFolder.create(tmp_path_factory.mktemp("runs"), "nf4", config)
    with folder, folder.running():
        train(config, folder, listener)
    longer = config_of(OFT, updates=3)
    resumed = RunFolder.resume(str(folder.path), folder.path.parent)
    with resumed, resumed.running():
        train(longer, resumed, listener, resume=True)
    return folder.path, listener.messages


def test_two_updates_and_a_third_after_a_stop(run):
    path, messages = run
    metrics = [line for line in RunFolder.open(str(path), path.parent).metrics() if "train/gradient_norm" in line]
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        assert line["train/gradient_norm"] > 0
        assert line["train/ratio_first"] == pytest.approx(1, abs=1e-3)
        assert line["train/loss"] == line["train/loss"]  # Not NaN.
    assert any("L1 action head, which is not used" in text for text in messages)


def test_peft_loads_the_adapter_that_was_trained(run):
    path, _ = run
    adapter = path / "checkpoints" / "000003" / "adapter"
    assert {"adapter_config.json", "adapter_model.safetensors", "dataset_statistics.json", "README.md"} <= {
        file.name for file in adapter.iterdir()
    }
    config = config_of(OFT)
    trained = load_trained(config, adapter.parent)
    options = OpenVLAOptions(head="oft-discrete")
    fresh = load_policy(oracle_folder(OFT), precision="bf16", quantize="nf4", options=options)
    features = fresh.encode(np.full((1, 256, 256, 3), 90, dtype=np.uint8))
    before = fresh.logits(features, ["turn on the stove"], None)
    PeftModel.from_pretrained(fresh.model, adapter)
    found = fresh.logits(features, ["turn on the stove"], None)
    assert torch.equal(found, trained.logits(features, ["turn on the stove"], None))
    assert not torch.equal(found, before)


def test_openvla_itself_is_trained_token_by_token(tmp_path: Path):
    config = config_of(PLAIN, updates=1)
    config = config.model_copy(update={"env": config.env.model_copy(update={"max_steps": 3})})
    folder = RunFolder.create(tmp_path, "plain", config)
    with folder, folder.running():
        train(config, folder, Listener())
    (line,) = [line for line in folder.metrics() if "train/gradient_norm" in line]
    assert line["train/ratio_first"] == pytest.approx(1, abs=1e-2)
    assert line["train/gradient_norm"] > 0


def measured(config: TrainConfig, folder: Path) -> tuple[EvaluationResult, list[str]]:
    listener = Listener()
    result, _ = measure(Measurement(config, (30,), "held-out", (0,)), folder, reporter=listener)
    return result, [said for said in listener.messages if not said.startswith("Evaluation folder")]


def test_the_l1_head_is_evaluated_with_both_cameras_and_proprioception(tmp_path: Path):
    config = config_of(OFT)
    result, messages = measured(config, tmp_path)
    assert (result.episodes, messages) == (1, [])
    policy = load_trained(config)
    assert (policy.config.head, policy.cameras) == ("oft-l1", ("agentview", "robot0_eye_in_hand"))
    assert policy.config.proprio_dim == 8
    with pytest.raises(CheckpointError, match="no probability"):
        policy.require_tokens()


def test_an_evaluation_of_tokens_says_that_the_l1_head_is_left_aside(tmp_path: Path):
    config = config_of(OFT)
    policy = config.policy.model_copy(update={"head": "oft-discrete"})
    _, (said,) = measured(config.model_copy(update={"policy": policy}), tmp_path)
    assert "L1 action head, which is not used" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "FOLDER", "--head", "oft-l1"], "no probability"),
        (["--policy", "FOLDER", "--unnorm-key", "bridge"], "no data set 'bridge': libero_10_no_noops"),
        (["--policy", "nobody/no-such-model"], "nobody/no-such-model"),
        (["--policy", "EMPTY"], "config.json"),
    ],
)
def test_a_policy_that_cannot_be_trained_leaves_nothing_behind(tmp_path, monkeypatch, options, said):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    places = {"FOLDER": str(oracle_folder(OFT)), "EMPTY": str(tmp_path / "empty")}
    arguments = [places.get(one, one) for one in options]
    result = CliRunner().invoke(app, ["train", *arguments, "--runs-dir", str(tmp_path / "runs")])
    assert result.exit_code == ExitCode.MODEL == 4
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "runs").exists()
