"""A run from beginning to end, and every way in which it can be stopped, on the toy world."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from toy_envs import ToyEnvs, toy_config, toy_policy

from vlacoach.agents import training
from vlacoach.agents.training import build_scorer, train
from vlacoach.errors import CheckpointError, ConfigError, RunError
from vlacoach.rewards import registry
from vlacoach.rewards.scorers import Scorer
from vlacoach.rewards.siglip import SiglipScorer
from vlacoach.rewards.siglip_t import SiglipTScorer
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.reporting import NullReporter
from vlacoach.runs.results import TrainResult, read_comparisons
from vlacoach.runs.splits import read_splits


class Watcher(NullReporter):
    """Remembers stages and messages, and may act at the beginning of a stage."""

    def __init__(self, act: Callable[[list[str]], None] | None = None) -> None:
        self.stages: list[str] = []
        self.messages: list[str] = []
        self._act = act

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append(name)
        if self._act is not None:
            self._act(self.stages)

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)

    def update(self, metrics: Mapping[str, float], done: int | None = None, total: int | None = None) -> None:
        assert metrics["rollout/success"] <= 1


class Lost(Exception):
    """Stands for a machine that goes down."""


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ToyEnvs]]:
    """The toy world takes the simulator's place; none may be left open."""
    made: list[ToyEnvs] = []

    def make(config: TrainConfig, policy: object) -> ToyEnvs:
        made.append(ToyEnvs(config.env.num_envs))
        return made[-1]

    monkeypatch.setattr(training, "make_envs", make)
    yield made
    assert made
    assert all(envs.closed for envs in made)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_policy().save(tmp_path_factory.mktemp("policy") / "toy")


def settings(base: Path, updates: int = 4, **sections: Any) -> TrainConfig:
    policy = {"path": str(base), **sections.pop("policy", {})}
    grpo = {"updates": updates, **sections.pop("grpo", {})}
    return toy_config(policy=policy, grpo=grpo, checkpoint={"every": 1, **sections.pop("checkpoint", {})}, **sections)


def run(root: Path, config: TrainConfig, reporter: NullReporter | None = None) -> TrainResult:
    with RunFolder.create(root, config.name, config) as folder, folder.running():
        return train(config, folder, reporter or Watcher())


def resume(root: Path, config: TrainConfig, reporter: NullReporter | None = None) -> TrainResult:
    with RunFolder.resume("latest", root) as folder, folder.running():
        return train(config, folder, reporter or Watcher(), resume=True)


def lines(path: Path, *, timeless: bool = True) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock; lines that held nothing else are left out."""
    kept = []
    for line in RunFolder(path).metrics():
        numbers = {key: value for key, value in line.items() if not (timeless and key.startswith("time"))}
        if numbers.keys() - {"step"}:
            kept.append(numbers)
    return kept


def adapter(result: TrainResult) -> dict[str, Any]:
    files = sorted(result.artifacts["adapter"].glob("*.safetensors"))
    return {key: value.tolist() for file in files for key, value in load_file(file).items()}


def episodes(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key != "time"} for one in RunFolder(path).episodes()]


def assert_same_run(one: TrainResult, other: TrainResult) -> None:
    assert lines(one.run) == lines(other.run)
    assert episodes(one.run) == episodes(other.run)
    assert adapter(one) == adapter(other)
    assert one.updates == other.updates
    for split, comparison in one.comparisons.items():
        assert comparison.overall == other.comparisons[split].overall


def at_update(number: int, stage: str, do: Callable[[], None]) -> Callable[[list[str]], None]:
    """Act at the beginning of a stage of an update."""

    def act(stages: list[str]) -> None:
        if stages[-1] == stage and stages.count("rollout") == number:
            do()

    return act


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def lose() -> None:
    raise Lost


def test_a_run_leaves_everything(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    config = settings(base, reward={"name": "siglip-t"}, evaluation={"every": 2})
    watcher = Watcher()
    result = run(tmp_path, config, watcher)
    assert result.updates == 4
    assert set(result.comparisons) == {"held-out", "train"}
    assert result.artifacts.keys() == {"adapter", "plot", "video"}
    assert all(path.exists() and path.is_relative_to(result.run) for path in result.artifacts.values())
    assert result.artifacts["plot"].read_bytes().startswith(b"\x89PNG")
    assert result.artifacts["video"].stat().st_size > 500
    names = {file.stem for file in (result.run / "videos").iterdir() if file.is_file()}
    tasks = ("push_the_plate", "turn_on_the_stove")
    assert names == {"before_after", *(f"{when}_{task}" for when in ("before", "after") for task in tasks)}
    folder = RunFolder(result.run)
    assert folder.info()["status"] == "finished"
    stored = json.loads((result.run / "results.json").read_text())
    assert stored == json.loads(json.dumps(result.to_json()))
    assert read_comparisons(result.run / "results.json").keys() == result.comparisons.keys()
    steps = [line["step"] for line in lines(result.run) if "eval/success" in line]
    assert steps == [0, 2, 4]
    assert [line["step"] for line in lines(result.run) if "eval_train/success" in line] == [0, 4]
    assert [line["step"] for line in lines(result.run) if "rollout/success" in line] == [1, 2, 3, 4]
    elapsed = [line["time/elapsed"] for line in lines(result.run, timeless=False) if "time/elapsed" in line]
    assert elapsed == sorted(elapsed)
    assert len(elapsed) == 4
    checkpoint = folder.checkpoints.last()
    written = {"adapter", "scorer", "training_state", "config.yaml", "manifest.json"}
    assert {path.name for path in checkpoint.iterdir()} == written
    assert watcher.stages.count("rollout") == 4


def test_training_never_sees_an_evaluation_state(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    started: list[tuple[str, int]] = []
    watcher = Watcher()

    class Recorded(ToyEnvs):
        def begin_reset(self, options: dict[str, Any] | None = None) -> Any:
            assert options is not None
            started.extend((watcher.stages[-1], int(state)) for state in options["init_state"][options["reset_mask"]])
            return super().begin_reset(options)

    config = settings(base, updates=8, env={"states": "0-2,20-22"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_envs", lambda config, policy: worlds.append(Recorded(4)) or worlds[-1])
        result = run(tmp_path, config, watcher)
    by_stage = {stage: {state for one, state in started if one == stage} for stage in {one for one, _ in started}}
    assert by_stage["rollout"] == set(config.env.states)
    assert by_stage["evaluation (held-out states)"] == {30, 31, 32}
    assert by_stage["evaluation (train states)"] <= set(config.env.states)
    assert by_stage["rollout"].isdisjoint(config.evaluation.states)
    assert {line["init_state"] for line in episodes(result.run)} == set(config.env.states)
    assert {state for task in result.comparisons["held-out"].after.tasks for state in task.states} == {30, 31, 32}


def test_before_and_after_are_paired_and_before_is_the_untrained_policy(
    worlds: list[ToyEnvs], base: Path, tmp_path: Path
):
    result = run(tmp_path / "a", settings(base, updates=1, grpo={"learning_rate": 1e-12}))
    for comparison in result.comparisons.values():
        assert comparison.before.success.tolist() == comparison.after.success.tolist()
        assert comparison.overall.difference == 0
    trained = run(tmp_path / "b", settings(base, updates=3, grpo={"epochs": 4}))
    for split, comparison in trained.comparisons.items():
        assert comparison.before.success.tolist() == result.comparisons[split].before.success.tolist()
    assert any(one.before.success.tolist() != one.after.success.tolist() for one in trained.comparisons.values())


@pytest.mark.parametrize("reward", ["success", "siglip-t"])
@pytest.mark.parametrize("full", [False, True])
def test_two_runs_of_a_configuration_are_equal(
    full: bool, reward: str, worlds: list[ToyEnvs], base: Path, tmp_path: Path
):
    config = settings(base, updates=2, policy={"full": full}, reward={"name": reward})
    assert_same_run(run(tmp_path / "a", config), run(tmp_path / "b", config))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        "signal",
        "loss in the update",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("loss in the rollout", "loss in the last evaluation")),
    ],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    how: str, full: bool, worlds: list[ToyEnvs], base: Path, tmp_path: Path
):
    config = settings(base, policy={"full": full}, reward={"name": "siglip-t"}, evaluation={"every": 2})
    whole = run(tmp_path / "whole", config)
    act, error = {
        "signal": (at_update(3, "rollout", interrupt), KeyboardInterrupt),
        "loss in the rollout": (at_update(3, "rollout", lose), Lost),
        "loss in the update": (at_update(3, "update", lose), Lost),
        "loss in the last evaluation": (at_update(4, "evaluation (train states)", lose), Lost),
    }[how]
    with pytest.raises(error):
        run(tmp_path / "parts", config, Watcher(act))
    stopped = RunFolder.open("latest", tmp_path / "parts")
    done = {"signal": 3, "loss in the last evaluation": 4}.get(how, 2)
    assert int(stopped.checkpoints.last().name) == done
    assert stopped.info()["status"] == ("interrupted" if how == "signal" else "failed")
    assert_same_run(whole, resume(tmp_path / "parts", config))


def test_a_signal_before_the_first_update_keeps_the_baseline(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    def act(stages: list[str]) -> None:
        if len(stages) == 1:
            interrupt()

    config = settings(base, updates=2)
    watcher = Watcher(act)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config, watcher)
    assert "rollout" not in watcher.stages
    again = Watcher()
    result = resume(tmp_path / "parts", config, again)
    assert again.stages[0] == "rollout"
    assert_same_run(run(tmp_path / "whole", config), result)


def test_a_resumed_run_keeps_to_the_states_it_began_with(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    config = settings(base, updates=2)
    result = run(tmp_path, config)
    manifest = read_splits(RunFolder(result.run))
    assert manifest.states("train") == {0: tuple(range(15)), 1: tuple(range(15))}
    assert manifest.states("held-out") == {0: tuple(range(30, 35)), 1: tuple(range(30, 35))}
    # Somebody has edited config.yaml meanwhile: what was trained on would be called held out.
    with pytest.raises(ConfigError, match="other tasks or initial states"):
        resume(tmp_path, settings(base, 3, env={"states": "5-14"}, evaluation={"states": "0-4"}))
    (result.run / "splits.json").unlink()
    with pytest.raises(RunError, match="is gone"):
        resume(tmp_path, config)


def test_a_configuration_that_went_around_its_checks_still_trains_on_no_evaluation_state(
    worlds: list[ToyEnvs], base: Path, tmp_path: Path
):
    config = settings(base)
    overlapping = config.model_copy(update={"env": config.env.model_copy(update={"states": tuple(range(32))})})
    with pytest.raises(ConfigError, match=r"would be trained on the initial states 30,31 of its evaluation"):
        run(tmp_path, overlapping)


def test_a_loss_in_the_baseline_starts_it_again(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    def act(stages: list[str]) -> None:
        if stages[-1] == "evaluation (train states)":
            raise Lost

    config = settings(base, updates=2)
    with pytest.raises(Lost):
        run(tmp_path / "parts", config, Watcher(act))
    assert_same_run(run(tmp_path / "whole", config), resume(tmp_path / "parts", config))


def test_a_signal_in_the_last_evaluation_does_not_count_it_twice(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    config = settings(base, updates=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config, Watcher(at_update(2, "evaluation (held-out states)", interrupt)))
    result = resume(tmp_path / "parts", config)
    assert_same_run(run(tmp_path / "whole", config), result)


def test_between_checkpoints_a_signal_saves_and_a_loss_goes_back(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    config = settings(base, updates=5).model_copy(update={"checkpoint": toy_config().checkpoint})
    whole = run(tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "signal", config, Watcher(at_update(3, "update", interrupt)))
    assert int(RunFolder.open("latest", tmp_path / "signal").checkpoints.last().name) == 3
    assert_same_run(whole, resume(tmp_path / "signal", config))
    with pytest.raises(Lost):
        run(tmp_path / "loss", config, Watcher(at_update(4, "update", lose)))
    assert int(RunFolder.open("latest", tmp_path / "loss").checkpoints.last().name) == 0
    assert_same_run(whole, resume(tmp_path / "loss", config))


def test_best_is_judged_by_the_updates_since_the_checkpoint_before(
    worlds: list[ToyEnvs], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    success, written = {1: 0.9, 2: 0.5, 3: 0.1, 4: 0.8}, RunFolder.metrics

    def metrics(folder: RunFolder) -> list[dict[str, Any]]:
        lines = written(folder)
        return [line | ({"rollout/success": success[line["step"]]} if "train/loss" in line else {}) for line in lines]

    monkeypatch.setattr(RunFolder, "metrics", metrics)
    config = settings(base, checkpoint={"every": 2}, evaluation={"trials": 1, "train_states": False})
    result = run(tmp_path, config)
    assert int(RunFolder.open(result.run, tmp_path).checkpoints.best().name) == 2


def test_a_finished_run_can_be_given_more_updates(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    run(tmp_path / "parts", settings(base, updates=2))
    result = resume(tmp_path / "parts", settings(base, updates=4))
    whole = run(tmp_path / "whole", settings(base, updates=4))
    assert adapter(result) == adapter(whole)
    assert [line for line in lines(result.run) if "rollout/success" in line] == [
        line for line in lines(whole.run) if "rollout/success" in line
    ]
    assert result.comparisons["held-out"].overall == whole.comparisons["held-out"].overall


def test_a_damaged_checkpoint_is_passed_over_with_a_word(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    config = settings(base)
    with pytest.raises(Lost):
        run(tmp_path / "parts", config, Watcher(at_update(4, "update", lose)))
    last = RunFolder.open("latest", tmp_path / "parts").checkpoints.last()
    file = last / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    watcher = Watcher()
    result = resume(tmp_path / "parts", config, watcher)
    assert any("damaged checkpoint" in text and "00003" in text for text in watcher.messages)
    assert_same_run(run(tmp_path / "whole", config), result)


def test_an_edited_configuration_is_refused_with_the_keys_that_differ(
    worlds: list[ToyEnvs], base: Path, tmp_path: Path
):
    config = settings(base, updates=1)
    result = run(tmp_path, config)
    stored = RunFolder(result.run).checkpoints.last() / "config.yaml"
    assert TrainConfig.load(stored) == config
    edited = settings(base, updates=2, grpo={"clip_high": 0.5}, policy={"lora_rank": 8}, checkpoint={"every": 2})
    with pytest.raises(ConfigError) as caught:
        resume(tmp_path, edited)
    assert "was written with another configuration" in caught.value.message
    assert "policy.lora_rank from 4 to 8, grpo.clip_high from 0.28 to 0.5" in caught.value.message
    assert "checkpoint.every" not in caught.value.message
    assert str(stored) in caught.value.hint


def test_a_damaged_checkpoint_is_out_of_the_way_of_those_that_come(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    config = settings(base)
    with pytest.raises(Lost):
        run(tmp_path, config, Watcher(at_update(4, "update", lose)))
    folder = RunFolder.open("latest", tmp_path)
    (folder.checkpoints.last() / "manifest.json").write_text("{")
    every = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": 100})})
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path, every, Watcher(at_update(1, "rollout", interrupt)))
    assert [path.name for path in folder.checkpoints.entries()][-2:] == ["000002", "000003"]
    assert (folder.checkpoints.folder / "000003.damaged").is_dir()
    (alert,) = folder.alerts()
    assert "000003/manifest.json is missing or corrupt" in alert["message"]
    assert "Going on from" in alert["advice"]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    config = settings(base, updates=1)
    RunFolder.create(tmp_path / "parts", config.name, config).close()
    assert_same_run(run(tmp_path / "whole", config), resume(tmp_path / "parts", config))


def test_lines_of_any_kind_in_the_folder_do_not_keep_a_run_from_going_on(
    worlds: list[ToyEnvs], base: Path, tmp_path: Path
):
    config = settings(base, updates=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config, Watcher(at_update(1, "rollout", interrupt)))
    folder = RunFolder.open("latest", tmp_path / "parts")
    odd = [None, True, "x", [], {}, 1e300, -(2**70)]
    for file in ("metrics.jsonl", "episodes.jsonl", "events.jsonl", "alerts.jsonl"):
        with (folder.path / file).open("a") as stream:
            for value in odd:
                stream.write(json.dumps({"step": value, "time": value, "time/elapsed": value, "x": value}) + "\n")
                stream.write(json.dumps({"step": 1, "rollout/success": value, "event": value}) + "\n")
                stream.write(json.dumps(value) + "\n")
            stream.write('{"step": 1, "half')
    for file in ("heartbeat", "control.json", "log.txt", "results.json"):
        (folder.path / file).write_bytes(b"\xff[")
    assert resume(tmp_path / "parts", config).updates == 2


def test_a_damaged_baseline_is_refused_with_its_name(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    result = run(tmp_path, settings(base, updates=1))
    for text in ("", "[]", "{", '{"held-out": 3}', '{"held-out": {}}'):
        (result.run / "baseline.json").write_text(text)
        with pytest.raises(RunError, match=r"baseline\.json cannot be read"):
            resume(tmp_path, settings(base, updates=2))


def test_no_number_depends_on_the_global_random_states(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    """Which is why checkpoints hold none: every generator is made from the run's seed and what it is for."""
    config = settings(base, updates=2, reward={"name": "siglip-t", "reference": "bank"})
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        results.append(run(tmp_path / str(seed), config))
    assert_same_run(*results)


def test_without_a_checkpoint_or_a_baseline_there_is_nothing_to_resume(
    worlds: list[ToyEnvs], base: Path, tmp_path: Path
):
    config = settings(base, updates=1)
    result = run(tmp_path, config)
    (result.run / "baseline.json").unlink()
    with pytest.raises(ConfigError, match=r"baseline\.json is missing"):
        resume(tmp_path, settings(base, updates=2))
    for checkpoint in RunFolder(result.run).checkpoints.entries():
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        resume(tmp_path, config)


def test_a_time_budget_ends_the_run_with_what_it_has(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    result = run(tmp_path, settings(base, updates=1000, grpo={"minutes": 1e-6}))
    assert result.updates == 0
    assert all(comparison.overall.difference == 0 for comparison in result.comparisons.values())


def test_the_policy_that_was_measured_last_is_the_one_that_is_saved(
    worlds: list[ToyEnvs], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Time runs out in the evaluation between updates 3 and 4, neither of which has a checkpoint by number.
    config = settings(base, updates=100, evaluation={"every": 3}, grpo={"minutes": 50})
    config = config.model_copy(update={"checkpoint": toy_config().checkpoint})
    clock = time.perf_counter
    late = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])

    def act(stages: list[str]) -> None:
        if stages.count("rollout") == 3 and stages[-1].startswith("evaluation"):
            late[0] = 1e6

    result = run(tmp_path, config, Watcher(act))
    assert result.updates == 3
    assert int(RunFolder(result.run).checkpoints.last().name) == 3


def test_a_wrong_task_is_refused_and_closes_the_worlds(worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="no task 2"):
        run(tmp_path, settings(base, env={"tasks": [0, 2]}))


def test_the_reward_section_builds_the_scorer():
    policy = toy_policy()
    plain = build_scorer(toy_config(reward={"name": "siglip", "pooling": "last-k", "last_k": 3}).reward, policy)
    assert isinstance(plain, SiglipScorer)
    assert (plain.pooling, plain.pooling_k) == ("last-k", 3)
    reward = {"name": "siglip-t", "pooling": "segments", "segments": 2, "fusion": "add", "params": {"steps": 7}}
    temporal = build_scorer(toy_config(reward=reward).reward, policy)
    assert isinstance(temporal, SiglipTScorer)
    assert (temporal.pooling, temporal.pooling_k, temporal.fusion.fusion, temporal.steps) == ("segments", 2, "add", 7)
    assert temporal.feature_dim == policy.feature_dim
    ablation = build_scorer(toy_config(reward={"name": "siglip-t", "temporal": False}).reward, policy)
    assert not isinstance(ablation, SiglipTScorer)


@pytest.mark.parametrize("reward", ["siglip-t", "siglip", "v-jepa", "success"])
def test_each_shipped_reward_trains(reward: str, worlds: list[ToyEnvs], base: Path, tmp_path: Path):
    watcher = Watcher()
    evaluation = {"trials": 1, "train_states": False}
    result = run(tmp_path, settings(base, updates=4, reward={"name": reward}, evaluation=evaluation), watcher)
    assert result.updates == 4
    failures = {line["reward"] for line in episodes(result.run) if not line["success"]}
    assert all(0 <= value <= 0.6 for value in failures)
    # Failures are graded by how close they came, unless the outcome is all that counts.
    assert (len(failures) > 5) is (reward != "success")
    said = [text for text in watcher.messages if text.startswith(f"reward {reward}: AUROC")]
    assert len(said) == (reward != "success")


def test_a_reward_that_tells_nothing_is_warned_of(
    worlds: list[ToyEnvs], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Noise(Scorer):
        name = "noise"

        def embed(self, trajectory: Trajectory) -> Any:
            rng = np.random.default_rng((trajectory.slot, trajectory.init_state))
            return rng.standard_normal(8).astype(np.float32)

    monkeypatch.setattr(registry, "_registered", {"noise": lambda policy=None: Noise()})
    watcher = Watcher()
    result = run(tmp_path, settings(base, updates=4, reward={"name": "noise"}), watcher)
    (alert,) = RunFolder(result.run).alerts()
    assert "Reward noise does not tell success from failure" in alert["message"]
    assert "vlacoach reward bench" in alert["advice"]
    assert any("does not tell success from failure" in text for text in watcher.messages)
