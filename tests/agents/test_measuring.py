"""An evaluation in a folder: interrupted anywhere, it ends with the result it would have had."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import STATES, Stop, episodes, timeless
from toy_envs import TOY_SUITE, ToyEnvs, toy_policy
from typer.testing import CliRunner

from vlacoach.agents import episode_videos
from vlacoach.agents.episode_videos import VideoChoice
from vlacoach.agents.measuring import Measurement, measure
from vlacoach.cli.main import app
from vlacoach.envs.perturbations import parse_perturbations
from vlacoach.errors import ConfigError, RunError
from vlacoach.runs.results import EvaluationResult, compare
from vlacoach.runs.videos import FRAMES_PER_SECOND, read_frames


@pytest.mark.parametrize("stops", [(1,), (5,), (11, 14), (2, 3, 20), (24,)])
def test_an_interrupted_evaluation_goes_on_to_the_same_result(
    stops: tuple[int, ...], worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path
):
    whole, _ = measure(wanted, tmp_path, tmp_path / "whole")
    before = worlds[-1].resets
    for after in stops:
        with pytest.raises(KeyboardInterrupt):
            measure(wanted, tmp_path, tmp_path / "parts", Stop(after))
    played = len(episodes(tmp_path / "parts"))
    assert 0 < played <= max(stops)
    result, folder = measure(wanted, tmp_path, tmp_path / "parts")
    assert timeless(result) == timeless(whole)
    assert episodes(folder) == episodes(tmp_path / "whole")
    assert worlds[-1].resets < before
    assert all(envs.closed for envs in worlds)
    written = EvaluationResult.from_json(json.loads((folder / "results.json").read_text()))
    assert timeless(written) == timeless(whole)
    assert {flag for task in whole.tasks for flag in task.success} == {True, False}


def test_every_seed_plays_the_whole_plan_and_is_the_evaluation_of_that_seed(
    worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path
):
    both, _ = measure(wanted, tmp_path)
    first, _ = measure(replace(wanted, seeds=(3,)), tmp_path)
    second, _ = measure(replace(wanted, seeds=(5,)), tmp_path)
    assert both.seeds == (3, 5)
    for pooled, one, other in zip(both.tasks, first.tasks, second.tasks, strict=True):
        assert pooled.states == one.states + other.states
        assert pooled.success == one.success + other.success
    assert first.success.tolist() != second.success.tolist()
    assert both.repeated
    assert both.to_json()["summary"]["clusters"] == 5


def test_a_measured_evaluation_is_shown_again_and_measured_anew_with_fresh(
    worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path
):
    first, folder = measure(wanted, tmp_path)
    assert folder.parent == tmp_path
    reporter = Stop(1000)
    again, same = measure(wanted, tmp_path, reporter=reporter)
    assert (timeless(again), same) == (timeless(first), folder)
    assert worlds[-1].resets == 0
    assert any("24 episodes of it are there already" in said for said in reporter.messages)
    measure(wanted, tmp_path, fresh=True)
    assert worlds[-1].resets > 0
    assert len(episodes(folder)) == 24


def changed(name: str) -> Callable[[Measurement], Measurement]:
    def settle(one: Measurement) -> Measurement:
        env = one.config.env.model_copy(update={"settle_steps": 3})
        return replace(one, config=one.config.model_copy(update={"env": env}))

    changes: dict[str, Callable[[Measurement], Measurement]] = {
        "seeds": lambda one: replace(one, seeds=(3,)),
        "states": lambda one: replace(one, states={**STATES, 1: (30, 32)}),
        "env.settle_steps": settle,
        "protocol": lambda one: replace(one, protocol="rlinf"),
        "env.perturbations": lambda one: replace(one, perturbations=parse_perturbations("camera:3")),
    }
    return changes[name]


@pytest.mark.parametrize("name", ["seeds", "states", "env.settle_steps", "protocol", "env.perturbations"])
def test_a_changed_setting_is_refused_with_the_reason(
    name: str, worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path
):
    measure(wanted, tmp_path, tmp_path / "out")
    kept = episodes(tmp_path / "out")
    other = changed(name)(wanted)
    with pytest.raises(ConfigError, match=rf"other settings: {name} was .*, is "):
        measure(other, tmp_path, tmp_path / "out")
    assert episodes(tmp_path / "out") == kept
    measure(other, tmp_path, tmp_path / "out", fresh=True)


def test_a_policy_that_was_written_again_is_another(worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path):
    measure(wanted, tmp_path, tmp_path / "out")
    (tmp_path / "base" / "new").write_text("")
    with pytest.raises(ConfigError, match=r"policy\.weights was"):
        measure(wanted, tmp_path, tmp_path / "out")


def test_worlds_and_workers_may_change(worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path):
    first, _ = measure(wanted, tmp_path, tmp_path / "out")
    env = wanted.config.env.model_copy(update={"num_envs": 9, "workers": 1})
    again, _ = measure(
        replace(wanted, config=wanted.config.model_copy(update={"env": env})), tmp_path, tmp_path / "out"
    )
    assert timeless(again) == timeless(first)


def test_a_folder_of_other_things_is_left_alone(worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path):
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_text("cat")
    with pytest.raises(ConfigError, match="holds other things than an evaluation"):
        measure(wanted, tmp_path, other, fresh=True)
    assert [file.name for file in other.iterdir()] == ["cat.png"]


def test_lines_of_another_plan_are_an_error(worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path):
    _, folder = measure(wanted, tmp_path)
    file = folder / "episodes.jsonl"
    file.write_text(file.read_text().replace('"init_state":31', '"init_state":41'))
    with pytest.raises(RunError, match=r"initial state 41 as episode .* should be task 1, initial state 31"):
        measure(wanted, tmp_path)


def test_two_policies_on_the_same_episodes_are_paired(worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path):
    other = toy_policy(seed=4).save(tmp_path / "other")
    policy = wanted.config.policy.model_copy(update={"path": str(other)})
    rival = replace(wanted, config=wanted.config.model_copy(update={"policy": policy}), label="rival")
    before, after = measure(rival, tmp_path)[0], measure(wanted, tmp_path)[0]
    found = compare(before, after)
    assert found.overall.pairs == 24
    assert found.overall.difference == pytest.approx((after.successes - before.successes) / 24)
    assert found.clustered.clusters == 5
    assert found.clustered.interval.low <= found.overall.difference <= found.clustered.interval.high
    assert before.policy == "rival"


@pytest.mark.parametrize("ending", ["mp4", "gif"])
@pytest.mark.parametrize("keep", [VideoChoice.ALL, VideoChoice.FAILURES])
def test_videos_of_all_or_failed_episodes_and_a_grid(
    keep: VideoChoice,
    ending: str,
    worlds: list[ToyEnvs],
    wanted: Measurement,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if ending == "gif":
        monkeypatch.setattr(episode_videos, "find_spec", lambda name: None)
    else:
        pytest.importorskip("av")
    result, folder = measure(replace(wanted, seeds=(3,)), tmp_path, video=keep)
    files = {file.stem: file for file in (folder / "videos").iterdir()}
    assert {file.suffix for file in files.values()} == {f".{ending}"}
    expected = {"grid"}
    for task in result.tasks:
        for trial, (state, success) in enumerate(zip(task.states, task.success, strict=True)):
            number = task.task * 6 + trial
            name = f"{task.task:02d}_{TOY_SUITE.tasks[task.task].name}_state{state:02d}_seed3_{number:04d}"
            if keep is VideoChoice.ALL or not success:
                expected.add(f"{name}_{'success' if success else 'failure'}")
    assert set(files) == expected
    failed = next(file for stem, file in files.items() if "state06" in stem and "failure" in stem)
    frames = read_frames(failed.parent, failed.name)
    # One chunk: the picture before it, the one after it, and a second of standing still; a GIF joins equal ones.
    assert len(frames) == 2 + FRAMES_PER_SECOND if ending == "mp4" else len(frames) >= 2
    grid = read_frames(folder / "videos", files["grid"].name)
    assert grid[0].shape == (32, 64, 3)
    assert len({frame.tobytes() for frame in grid}) > 1


def test_an_interrupted_episode_leaves_no_half_video(worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        measure(wanted, tmp_path, tmp_path / "out", Stop(3), VideoChoice.ALL)
    assert not [file for file in (tmp_path / "out" / "videos").iterdir() if file.name.startswith(".")]
    measure(wanted, tmp_path, tmp_path / "out", video=VideoChoice.ALL)
    assert len(list((tmp_path / "out" / "videos").iterdir())) == 24 + 1


def test_the_command_compares_on_the_same_episodes_and_goes_on_where_it_stopped(
    worlds: list[ToyEnvs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "400")
    one, other = toy_policy().save(tmp_path / "one"), toy_policy(seed=4).save(tmp_path / "other")
    command = ["eval", "--suite", "libero_goal", "--tasks", "0,1", "--policy", str(one), "--compare", str(other)]
    command += ["--trials", "3", "--seeds", "0,1", "--out", str(tmp_path / "out"), "--protocol", "rlinf"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert document["before"]["seeds"] == document["after"]["seeds"] == [0, 1]
    assert document["difference"]["pairs"] == 12
    assert document["clustered"]["clusters"] == 6
    for side, folder in (("after", "out"), ("before", "out/compared")):
        assert document[side]["protocol"] == "rlinf but for evaluation.trials, seed"
        assert document[side]["settings"]["env.settle_steps"] == 15
        assert document[side]["tasks"][0]["states"] == [0, 1, 2] * 2
        stored = json.loads((tmp_path / folder / "results.json").read_text())
        assert stored == document[side]
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "12 episodes of it are there already" in again.stderr
    assert f"before: {other}; after: {one}" in " ".join(again.stdout.split())
    assert "bootstrap over 6 initial states" in again.stdout
    refused = CliRunner().invoke(app, [*command, "--temperature", "1.0"])
    assert refused.exit_code == 2
    assert "evaluation.temperature was 1.6, is 1.0" in refused.stderr
    assert CliRunner().invoke(app, [*command, "--temperature", "1.0", "--fresh"]).exit_code == 0


def test_without_videos_there_is_no_folder_for_them(worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path):
    _, folder = measure(wanted, tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == [
        "episodes.jsonl",
        "evaluation.json",
        "lock",
        "results.json",
    ]


def test_a_grid_holds_shorter_videos_at_their_end_and_scales_large_ones(tmp_path: Path):
    def video(level: int, count: int) -> Any:
        return iter([np.full((512, 512, 3), level + i, dtype=np.uint8) for i in range(count)])

    frames = list(episode_videos._tiled([video(10, 2), video(50, 4), video(90, 1)]))
    assert len(frames) == 4
    assert frames[0].shape == (512, 512, 3)
    assert [int(frame[0, 0, 0]) for frame in frames] == [10, 11, 11, 11]
    assert [int(frame[0, 300, 0]) for frame in frames] == [50, 51, 52, 53]
    assert frames[-1][300, 0].max() == 90
    assert frames[-1][300, 300].max() == 0
