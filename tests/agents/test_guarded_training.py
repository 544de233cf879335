"""Training that must not go on ends with status 6, keeps what it worked on, and can be resumed once it is mended."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import Watcher, adapter, lines, resume, run, settings
from toy_envs import ToyEnvs, toy_config, toy_policy
from typer.testing import CliRunner

from vlacoach.agents import training
from vlacoach.agents.grpo import GRPOAgent
from vlacoach.cli.main import app
from vlacoach.errors import DivergedError, ExitCode, NonFiniteError, RatioError
from vlacoach.policies import VLAPolicy
from vlacoach.policies.lora import trainable_parameters
from vlacoach.rewards import ReferenceBank, Trajectory, registry
from vlacoach.rewards.scorers import SuccessScorer
from vlacoach.runs.evidence import list_evidence, read_evidence
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.yaml_io import write_config

FAULTY_UPDATE = 3


class Faulty(SuccessScorer):
    """Scores by outcome, and once, when the rewards of an update are asked for, breaks something."""

    name = "faulty"

    def __init__(self, policy: VLAPolicy, damage: Callable[..., np.ndarray | None]) -> None:
        super().__init__()
        self._policy = policy
        self._damage = damage
        self._updates = 0

    def rewards(self, trajectories: Sequence[Trajectory], bank: ReferenceBank | None = None) -> np.ndarray:
        reward = super().rewards(trajectories, bank)
        self._updates += 1
        if self._updates == FAULTY_UPDATE:
            changed = self._damage(self._policy, trajectories, reward)
            return reward if changed is None else changed
        return reward


def a_weight(policy: VLAPolicy, trajectories: Sequence[Trajectory], reward: np.ndarray) -> None:
    with torch.no_grad():
        list(trainable_parameters(policy).values())[1][0, 0] = torch.nan


def a_gradient(policy: VLAPolicy, trajectories: Sequence[Trajectory], reward: np.ndarray) -> None:
    list(trainable_parameters(policy).values())[2].register_hook(lambda grad: torch.full_like(grad, torch.inf))


def a_reward(policy: VLAPolicy, trajectories: Sequence[Trajectory], reward: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(reward)) == 5, np.nan, reward)


def an_embedding(policy: VLAPolicy, trajectories: Sequence[Trajectory], reward: np.ndarray) -> None:
    broken = SuccessScorer()
    broken.embed = lambda trajectory: np.full(3, np.nan if trajectory.slot == 7 else 1.0, np.float32)
    broken.embed_all(trajectories)


def recorded_log_probs(policy: VLAPolicy, trajectories: Sequence[Trajectory], reward: np.ndarray) -> None:
    for trajectory in trajectories:
        trajectory.log_prob.sub_(0.5)


def one_recorded_log_prob(policy: VLAPolicy, trajectories: Sequence[Trajectory], reward: np.ndarray) -> None:
    for trajectory in trajectories:
        trajectory.log_prob[0, 0] = -torch.inf


def the_vision_tower(policy: VLAPolicy, trajectories: Sequence[Trajectory], reward: np.ndarray) -> None:
    with torch.no_grad():
        next(policy.model.vision_tower.parameters())[0] = torch.inf


FAULTS = [
    (a_weight, "nonfinite", "update", "The loss is not finite"),
    (a_gradient, "nonfinite", "update", "The gradient's norm is not finite"),
    (a_reward, "nonfinite", "reward", "The reward is not finite: 1 of 24"),
    (an_embedding, "nonfinite", "reward", "slot 7"),
    (recorded_log_probs, "ratio", "update", "differ from the recorded ones by 0.5"),
    (one_recorded_log_prob, "nonfinite", "update", "The logarithm of the probability ratio is not finite"),
    (the_vision_tower, "nonfinite", "rollout", "A vision feature of the rollout is not finite"),
]


@pytest.fixture(autouse=True)
def worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "make_envs", lambda config, policy: ToyEnvs(config.env.num_envs))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_policy().save(tmp_path_factory.mktemp("policy") / "toy")


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


def break_down(damage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {"faulty": lambda policy=None: Faulty(policy, damage)})


@pytest.mark.parametrize(("damage", "what", "stage", "message"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_fault_ends_the_command_with_status_6_and_leaves_its_evidence(
    damage: Callable[..., Any], what: str, stage: str, message: str, base: Path, invoke, monkeypatch, tmp_path: Path
):
    break_down(damage, monkeypatch)
    config = settings(base, updates=5, reward={"name": "faulty"}, evaluation={"trials": 1, "train_states": False})
    write_config(config, tmp_path / "toy.yaml")
    result = invoke("train", "--config", "toy.yaml")
    assert result.exit_code == ExitCode.DIVERGED == 6
    assert message in result.stderr
    assert "vlacoach runs show" in result.stderr

    folder = RunFolder.open("latest", tmp_path / "runs")
    update = FAULTY_UPDATE + (stage == "rollout")
    # The checkpoint before is whole, and nothing was logged of the update that came to nothing.
    assert int(folder.checkpoints.last().name) == update - 1
    assert max(line["step"] for line in folder.metrics()) == update - 1
    assert folder.info()["status"] == "failed"
    (alert,) = folder.alerts()
    assert (alert["level"], alert["kind"], alert["stage"], alert["update"]) == ("error", what, stage, update)
    assert message in alert["message"]
    assert alert["evidence"] == f"evidence/{update:06d}_{what}"
    assert f"vlacoach runs show {folder.path.name} --evidence" in alert["advice"]

    shown = json.loads(invoke("runs", "show", "--json").stdout)
    assert [one["message"] for one in shown["alerts"]] == [alert["message"]]
    assert shown["evidence"] == [f"{update:06d}_{what}"]
    assert f"{what}" in invoke("runs", "show").stdout
    (evidence,) = json.loads(invoke("runs", "show", "--evidence", "--json").stdout)["evidence"]
    assert evidence["message"] == alert["message"]
    assert (evidence["update"], evidence["stage"], evidence["micro_batch"]) == (update, stage, 64)
    assert len(evidence["episodes"]) == (0 if stage == "rollout" else 24)
    assert {file.name for file in Path(evidence["path"]).iterdir()} == {"state.json", "state.safetensors"}
    text = " ".join(invoke("runs", "show", "--evidence").stdout.split())
    assert all(word in text for word in (message.split(":")[0], "Weights that look worst", "micro batch", "advice"))
    assert ("Episodes that look worst" in text) is (stage != "rollout")


def evidence_of(
    damage: Callable[..., Any], base: Path, root: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor], RunFolder]:
    break_down(damage, monkeypatch)
    with pytest.raises(DivergedError):
        run(root, settings(base, updates=4, reward={"name": "faulty"}, **sections))
    folder = RunFolder.open("latest", root)
    facts = read_evidence(list_evidence(folder.path)[-1])
    return facts, load_file(facts["tensor_file"]), folder


def test_the_batch_is_kept_as_it_was(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    facts, tensors, folder = evidence_of(recorded_log_probs, base, tmp_path, monkeypatch)
    batch = {name.removeprefix("batch/"): value for name, value in tensors.items() if name.startswith("batch/")}
    assert batch["slot"].tolist() == list(range(24))
    assert batch["tokens"].shape == batch["mask"].shape == batch["old_log_prob"].shape == batch["new_log_prob"].shape
    assert torch.equal(batch["mask"].sum(-1), 7 * batch["length"])
    # What was computed is off the recorded by what was taken from that, wherever an action was executed.
    computed = ~batch["new_log_prob"].isnan()
    inside = computed & batch["mask"]
    assert inside.any()
    change = (batch["new_log_prob"] - batch["old_log_prob"])[inside]
    assert torch.allclose(change, torch.tensor(0.5), atol=1e-3)
    for row, episode in enumerate(facts["episodes"]):
        assert episode["slot"] == row
        assert episode["in_step"] == bool(computed[row].any())
        assert episode["reward"] == float(episode["success"]) == batch["reward"][row]
        assert episode["advantage"] == pytest.approx(float(batch["advantage"][row]))
        if episode["in_step"]:
            assert episode["log_prob_change"] == pytest.approx(0.5, abs=1e-3)
    # A group that says nothing does not enter the step.
    assert 0 < sum(episode["in_step"] for episode in facts["episodes"]) < 24
    # The weights are those of the checkpoint before, for no step was taken.
    stored = load_file(folder.checkpoints.last() / "adapter" / "adapter_model.safetensors")
    kept = {name: value for name, value in tensors.items() if name.startswith("weight/")}
    assert len(kept) == len(stored) == len(facts["parameters"])
    assert sorted(float(value.norm()) for value in kept.values()) == sorted(float(v.norm()) for v in stored.values())
    assert facts["optimizer_steps"] == 2
    assert facts["tensors"]["batch/tokens"] == list(batch["tokens"].shape)


def test_a_gradient_is_kept_as_it_was_before_it_was_clipped(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    facts, tensors, _ = evidence_of(a_gradient, base, tmp_path, monkeypatch)
    broken = [one for one in facts["parameters"] if one["nonfinite_gradient_elements"]]
    assert len(broken) == 1
    assert broken[0]["gradient_norm"] is None
    assert broken[0]["nonfinite"] == ["gradient_norm"]
    name = broken[0]["name"]
    assert tensors[f"gradient/{name}"].isinf().all()
    others = [value for key, value in tensors.items() if key.startswith("gradient/") and key != f"gradient/{name}"]
    assert all(value.isfinite().all() for value in others)
    assert any(value.any() for value in others)


def test_all_weights_are_only_summed_up(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    facts, tensors, _ = evidence_of(recorded_log_probs, base, tmp_path, monkeypatch, policy={"full": True})
    assert all(name.startswith("batch/") for name in tensors)
    assert all(one["norm"] >= 0 and one["nonfinite_elements"] == 0 for one in facts["parameters"])


def test_a_run_that_was_stopped_by_a_guard_goes_on_once_it_is_mended(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = settings(base, updates=4, reward={"name": "faulty"})
    break_down(lambda policy, trajectories, reward: None, monkeypatch)
    whole = run(tmp_path / "whole", config)
    break_down(a_weight, monkeypatch)
    with pytest.raises(NonFiniteError):
        run(tmp_path / "parts", config)
    result = resume(tmp_path / "parts", config)
    assert lines(result.run) == lines(whole.run)
    assert adapter(result) == adapter(whole)
    assert len(list_evidence(result.run)) == 1


def test_an_evaluation_that_finds_something_broken_keeps_evidence_too(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def act(stages: list[str]) -> None:
        if stages[-1].startswith("evaluation") and stages.count("rollout") == 1:
            (agent,) = agents
            a_weight(agent.policy, (), np.zeros(0))

    agents: list[GRPOAgent] = []
    create = GRPOAgent.__init__

    def remember(self: GRPOAgent, *args: Any, **kwargs: Any) -> None:
        create(self, *args, **kwargs)
        agents.append(self)

    monkeypatch.setattr(GRPOAgent, "__init__", remember)
    with pytest.raises(NonFiniteError):
        run(tmp_path, settings(base, updates=1), Watcher(act))
    (evidence,) = list_evidence(RunFolder.open("latest", tmp_path).path)
    assert read_evidence(evidence)["stage"] == "evaluation"


def test_the_same_place_twice_is_kept_twice(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, _, folder = evidence_of(recorded_log_probs, base, tmp_path, monkeypatch)
    break_down(recorded_log_probs, monkeypatch)
    monkeypatch.setattr("test_guarded_training.FAULTY_UPDATE", 1)
    with pytest.raises(RatioError):
        resume(tmp_path, settings(base, updates=4, reward={"name": "faulty"}))
    assert [path.name for path in list_evidence(folder.path)] == ["000003_ratio", "000003_ratio_2"]


def test_evidence_that_cannot_be_kept_does_not_hide_what_happened(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def block(policy: VLAPolicy, trajectories: Sequence[Trajectory], reward: np.ndarray) -> np.ndarray:
        (RunFolder.open("latest", tmp_path).path / "evidence").write_text("in the way")
        return a_reward(policy, trajectories, reward)

    break_down(block, monkeypatch)
    watcher = Watcher()
    with pytest.raises(NonFiniteError, match="reward is not finite"):
        run(tmp_path, settings(base, updates=4, reward={"name": "faulty"}), watcher)
    assert any("evidence could not be kept" in text for text in watcher.messages)
    (alert,) = RunFolder.open("latest", tmp_path).alerts()
    assert alert["evidence"] is None


def test_a_run_without_evidence_says_so(invoke):
    RunFolder.create("runs", "sound", toy_config()).close()
    result = invoke("runs", "show", "--evidence")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no evidence" in result.stderr
    assert json.loads(invoke("runs", "show", "--evidence", "--json").stdout)["evidence"] == []


@pytest.mark.parametrize("content", ["{", "[]", '{"episodes": 3, "parameters": []}', '{"episodes": [1]}'])
def test_damaged_evidence_is_an_error_that_names_the_file(content: str, invoke):
    with RunFolder.create("runs", "damaged", toy_config()) as folder:
        place = folder.path / "evidence" / "000001_ratio"
        place.mkdir(parents=True)
        (place / "state.json").write_text(content)
    result = invoke("runs", "show", "--evidence")
    assert result.exit_code == ExitCode.RUN
    assert "state.json" in result.stderr


def test_collapses_are_told_once_by_a_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def collapse(policy: VLAPolicy, trajectories: Sequence[Trajectory], reward: np.ndarray) -> None:
        # Sharper by a factor of a thousand: next to nothing is left to chance.
        head = policy.model.language_model.get_output_embeddings().weight
        with torch.no_grad():
            head.mul_(1000.0)
        for trajectory in trajectories:
            features = trajectory.patch_features()
            logits = policy.logits(features, [trajectory.instruction] * len(features), trajectory.proprio)
            chosen = logits.float().log_softmax(-1).gather(-1, trajectory.tokens[..., None].to(logits.device))
            trajectory.log_prob.copy_(chosen.squeeze(-1).detach())

    break_down(collapse, monkeypatch)
    watcher = Watcher()
    config = settings(base, updates=7, reward={"name": "faulty"}, guards={"window": 1, "success": None})
    result = run(tmp_path, config, watcher)
    (alert,) = RunFolder(result.run).alerts()
    assert (alert["kind"], alert["level"]) == ("entropy", "warning")
    assert sum("Entropy has collapsed" in text for text in watcher.messages) == 1
