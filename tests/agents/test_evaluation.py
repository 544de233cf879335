"""Measuring success: paired, repeatable, and honest about episodes that broke down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy_envs import TOY_SUITE, ToyEnvs, chunks_of, toy_config, toy_policy

from vlacoach.agents import evaluation
from vlacoach.agents.evaluation import (
    EpisodeResult,
    evaluate,
    evaluate_split,
    evaluation_plan,
    load_trained,
    make_envs,
)
from vlacoach.agents.grpo import GRPOAgent
from vlacoach.agents.prompts import Prompt
from vlacoach.agents.video import VideoRecorder
from vlacoach.errors import CheckpointError, NonFiniteError, SimulatorError
from vlacoach.policies import VLAPolicy, load_policy
from vlacoach.rewards import make_scorer
from vlacoach.runs.config import TrainConfig

PLAN = evaluation_plan([0, 1], [4, 5, 6], 8)


class Watcher:
    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.done = 0
        self.success: list[float] = []

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append((name, total))

    def advance(self, amount: int = 1, **fields: float) -> None:
        self.done += amount
        self.success.append(fields["success"])


def test_a_plan_takes_the_states_in_turn():
    assert evaluation_plan([3, 1], [7, 8], 3) == [
        Prompt(3, 7),
        Prompt(3, 8),
        Prompt(3, 7),
        Prompt(1, 7),
        Prompt(1, 8),
        Prompt(1, 7),
    ]


def test_two_evaluations_of_a_policy_are_equal(policy: VLAPolicy):
    torch.manual_seed(0)
    first = evaluate(policy, ToyEnvs(4), PLAN, temperature=1.0, seed=3)
    torch.manual_seed(1)
    assert evaluate(policy, ToyEnvs(7), PLAN, temperature=1.0, seed=3) == first
    assert evaluate(policy, ToyEnvs(4), PLAN, temperature=1.0, seed=4) != first
    assert {result.success for result in first} == {True, False}


def test_results_come_in_the_order_of_the_plan_with_trials_counted(policy: VLAPolicy):
    results = evaluate(policy, ToyEnvs(5), PLAN, temperature=1.0)
    assert [(result.task, result.init_state) for result in results] == [(one.task, one.init_state) for one in PLAN]
    assert [result.trial for result in results] == [0, 0, 0, 1, 1, 1, 2, 2] * 2
    assert all(result.length <= 8 * chunks_of(result.init_state) for result in results)
    assert all(result.length == 8 * chunks_of(result.init_state) for result in results if not result.success)


def test_trials_of_a_state_differ_when_sampled_and_agree_when_greedy(policy: VLAPolicy):
    plan = [Prompt(1, 5)] * 12
    sampled = {(result.success, result.length) for result in evaluate(policy, ToyEnvs(4), plan, temperature=1.0)}
    assert len(sampled) > 1
    greedy = {(result.success, result.length) for result in evaluate(policy, ToyEnvs(4), plan, temperature=0.0)}
    assert len(greedy) == 1


def test_evaluation_encodes_each_look_once_and_reports_its_progress(policy: VLAPolicy):
    watcher, looks = Watcher(), []
    results = evaluate(policy, ToyEnvs(4), PLAN, 1.0, reporter=watcher, on_look=lambda: looks.append(1))
    assert watcher.done == len(PLAN)
    assert watcher.success[-1] == pytest.approx(sum(result.success for result in results) / len(PLAN))
    assert looks
    assert policy.frames_encoded == sum(-(-result.length // 8) for result in results)


def test_an_episode_that_broke_down_is_played_again(policy: VLAPolicy):
    envs = ToyEnvs(4, broken=(6,), repaired_after=2)
    plan = [Prompt(0, 6), Prompt(0, 4)]  # One chunk, so state 6 breaks down at once.
    results = evaluate(policy, envs, plan, 1.0)
    assert envs.breakdowns[0, 6] == 3
    assert results[0].length > 0
    assert results[1] == evaluate(policy, ToyEnvs(4), plan, 1.0)[1]


def test_an_episode_that_breaks_down_every_time_is_an_error(policy: VLAPolicy):
    envs = ToyEnvs(4, broken=(6,))
    with pytest.raises(SimulatorError, match="task 1, initial state 6, broke down in three attempts"):
        evaluate(policy, envs, [Prompt(0, 4), Prompt(1, 6)], 1.0)
    assert envs.breakdowns[1, 6] == 3


def test_a_policy_that_is_not_finite_is_an_error_and_not_a_failure(policy: VLAPolicy):
    with torch.no_grad():
        policy.model.projector.fc1.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        evaluate(policy, ToyEnvs(4), PLAN)


def test_a_split_follows_the_configuration(policy: VLAPolicy, tmp_path: Path):
    config = toy_config(evaluation={"trials": 4, "temperature": 1.0}, seed=3)
    videos, watcher = VideoRecorder(tmp_path), Watcher()
    result = evaluate_split(policy, ToyEnvs(4), config, [4, 5, 6], "held-out", watcher, videos=videos)
    assert watcher.stages == [("evaluation (held-out states)", 8)]
    assert (result.suite, result.split, result.policy, result.seeds) == ("toy", "held-out", "toy", (3,))
    assert [(task.task, task.name, task.states) for task in result.tasks] == [
        (task.index, task.instruction, (4, 5, 6, 4)) for task in TOY_SUITE.tasks
    ]
    plan = evaluation_plan([0, 1], [4, 5, 6], 4)
    expected: list[EpisodeResult] = evaluate(policy, ToyEnvs(4), plan, 1.0, seed=3)
    assert result.success.tolist() == [one.success for one in expected]
    assert [length for task in result.tasks for length in task.lengths] == [one.length for one in expected]
    for task in TOY_SUITE.tasks:
        first = expected[plan.index(Prompt(task.index, 4))]
        assert len(videos.frames()[task.name]) == -(-first.length // 8) + 1
        assert (tmp_path / f"{task.name}.mp4").is_file() or (tmp_path / f"{task.name}.gif").is_file()


@pytest.mark.parametrize("full", [False, True])
def test_a_checkpoint_acts_like_the_policy_it_was_saved_from(full: bool, tmp_path: Path):
    base = toy_policy().save(tmp_path / "base")
    config = toy_config(policy={"path": str(base), "full": full}, grpo={"epochs": 3})
    agent = GRPOAgent(load_trained(config), ToyEnvs(4), make_scorer("success"), config)
    untrained = evaluate(agent.policy, ToyEnvs(4), PLAN, 1.0)
    agent.learn(2)
    agent.save(tmp_path / "checkpoint")
    trained = evaluate(agent.policy, ToyEnvs(4), PLAN, 1.0)
    assert trained != untrained
    assert evaluate(load_trained(config, tmp_path / "checkpoint"), ToyEnvs(4), PLAN, 1.0) == trained
    assert evaluate(load_trained(config), ToyEnvs(4), PLAN, 1.0) == untrained


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path: Path):
    config = toy_config(policy={"path": str(toy_policy().save(tmp_path / "base"))})
    with pytest.raises(CheckpointError, match="missing"):
        load_trained(config, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("settings", "profile"),
    [({}, "coarse"), ({"render_profile": "policy"}, "coarse"), ({"render_profile": "fast"}, "fast")],
)
def test_pictures_are_rendered_as_the_policy_knows_them(settings, profile, monkeypatch):
    """The built-in policy was cloned on coarse pictures; LIBERO's own would be strange to it."""
    asked: dict[str, object] = {}
    monkeypatch.setattr(evaluation, "LiberoVectorEnv", lambda **options: asked.update(options))
    make_envs(TrainConfig.model_validate({"env": settings}), load_policy("tiny"))
    assert asked["render_profile"] == profile


def test_a_result_names_the_protocol_and_every_value_that_was_used(policy: VLAPolicy):
    config = toy_config(env={"settle_steps": 15}, evaluation={"trials": 1, "temperature": 1.6}, seed=3)
    result = evaluate_split(policy, ToyEnvs(4), config, [4], "protocol", protocol="rlinf")
    written = result.to_json()
    assert written["protocol"] == "rlinf"
    assert written["settings"]["env.settle_steps"] == 15
    assert written["settings"]["evaluation.temperature"] == 1.6
    # What was left open is filled in.
    assert written["settings"]["env.image_size"] == policy.image_size
    assert written["settings"]["env.max_steps"] == 120
    assert written["settings"]["env.cameras"] == ["agentview"]
    assert type(result).from_json(json.loads(json.dumps(written))) == result
