"""Evaluations of perturbed episodes: all axes at once, or one after the other beside plain episodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measured import Stop, timeless
from toy_envs import TOY_SUITE, ToyEnvs, toy_config, toy_policy
from typer.testing import CliRunner

from vlacoach.agents import episode_videos
from vlacoach.agents.episode_videos import VideoChoice, frames_of
from vlacoach.agents.measuring import Measurement, measure, measure_axes
from vlacoach.cli.main import app
from vlacoach.envs.perturbations import AXES, PerturbedEpisode, parse_perturbations
from vlacoach.envs.rephrasing import rephrase
from vlacoach.errors import ConfigError
from vlacoach.policies import VLAPolicy
from vlacoach.runs.robustness import AxisTable


def untimed(table: AxisTable) -> AxisTable:
    axes = tuple(replace(axis, result=timeless(axis.result)) for axis in table.axes)
    return AxisTable(timeless(table.plain), axes)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def test_the_policy_reads_the_rephrased_instruction_of_each_seed(
    sound_worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: set[str] = set()
    act = VLAPolicy.act

    def listening(self, features, instructions, *others):
        read.update(instructions)
        return act(self, features, instructions, *others)

    monkeypatch.setattr(VLAPolicy, "act", listening)
    chosen = parse_perturbations("language:5")
    result, folder = measure(replace(wanted, perturbations=chosen), tmp_path)
    said = {(one["seed"], one["task"], one["init_state"]): one["instruction"] for one in lines(folder)}
    assert len(said) == 2 * 5
    for (seed, task, state), instruction in said.items():
        own = TOY_SUITE.tasks[task].instruction
        assert instruction == rephrase(own, PerturbedEpisode(chosen, seed, task, state)) != own
    assert read == set(said.values())
    assert len(read) > 2
    assert result.perturbations == ("language:5",)
    assert result.tasks[0].name == TOY_SUITE.tasks[0].instruction


def test_plain_episodes_and_each_axis_are_the_evaluations_they_would_be_alone(
    sound_worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path
):
    chosen = parse_perturbations("camera:2,light:4,language:5")
    table, folder = measure_axes(replace(wanted, perturbations=chosen), tmp_path)
    assert len(sound_worlds) == 1
    plain, _ = measure(wanted, tmp_path)
    assert timeless(table.plain) == timeless(plain)
    for axis, one in zip(table.axes, chosen, strict=True):
        alone, _ = measure(replace(wanted, perturbations=(one,)), tmp_path)
        assert (axis.axis, axis.severity) == (one.axis, one.severity)
        assert timeless(axis.result) == timeless(alone)
    camera, light, language = table.changes()
    # In toy worlds the light changes nothing, the camera inverts pictures, and language changes what is read.
    assert (light.overall.gained, light.overall.lost, light.overall.p_value) == (0, 0, 1.0)
    assert camera.overall.gained + camera.overall.lost > 0
    assert language.overall.gained + language.overall.lost > 0
    assert json.loads((folder / "results.json").read_text()) == table.to_json()
    assert [one["perturbation"] for one in lines(folder)] == [
        name for name in ("", "camera:2", "light:4", "language:5") for _ in range(24)
    ]


@pytest.mark.parametrize("stops", [(5,), (30,), (24, 24), (7, 50, 60)])
def test_an_interrupted_table_goes_on_to_the_same_result(
    stops: tuple[int, ...], sound_worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path
):
    wanted = replace(wanted, perturbations=parse_perturbations("camera:1,language:1"))
    whole, _ = measure_axes(wanted, tmp_path, tmp_path / "whole")
    for after in stops:
        with pytest.raises(KeyboardInterrupt):
            measure_axes(wanted, tmp_path, tmp_path / "parts", Stop(after))
    played = len(lines(tmp_path / "parts"))
    assert 0 < played < 72
    table, folder = measure_axes(wanted, tmp_path, tmp_path / "parts")
    assert untimed(table) == untimed(whole)
    assert len(lines(folder)) == 72
    assert 72 - played <= sound_worlds[-1].resets < sound_worlds[0].resets


def test_a_folder_of_another_perturbation_is_refused(sound_worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path):
    out = tmp_path / "out"
    chosen = replace(wanted, perturbations=parse_perturbations("light:2,camera:1"))
    first, _ = measure(chosen, tmp_path, out)
    assert timeless(measure(replace(chosen, perturbations=chosen.perturbations[::-1]), tmp_path, out)[0]) == timeless(
        first
    )
    assert sound_worlds[-1].resets == 0
    harder = replace(wanted, perturbations=parse_perturbations("light:3,camera:1"))
    with pytest.raises(ConfigError, match=r"env\.perturbations was \['camera:1', 'light:2'\], is "):
        measure(harder, tmp_path, out)
    with pytest.raises(ConfigError, match="by_axis was False, is True"):
        measure_axes(chosen, tmp_path, out)
    measure_axes(chosen, tmp_path, out, fresh=True)
    assert {one["perturbation"] for one in lines(out)} == {"", "camera:1", "light:2"}


def test_each_axis_has_videos_of_its_own(sound_worlds: list[ToyEnvs], wanted: Measurement, tmp_path: Path):
    chosen = replace(wanted, perturbations=parse_perturbations("camera:2"), seeds=(3,))
    _, folder = measure_axes(chosen, tmp_path, video=VideoChoice.ALL)
    videos = folder / "videos"
    assert sorted(path.name for path in videos.iterdir()) == ["camera-2", "plain"]
    for name in ("camera-2", "plain"):
        assert len(list((videos / name).iterdir())) == 12 + 1


def test_the_command_shows_the_table_of_the_axes_of_two_policies(
    sound_worlds: list[ToyEnvs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    one, other = toy_policy().save(tmp_path / "one"), toy_policy(seed=4).save(tmp_path / "other")
    command = ["eval", "--suite", "libero_goal", "--tasks", "0,1", "--policy", str(one), "--trials", "3"]
    command += ["--seeds", "0,1", "--protocol", "rlinf", "--split", "held-out", "--perturb", "all:4"]
    alone = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert alone.exit_code == 0, alone.output
    rows = [line.split()[:3] for line in alone.stdout.splitlines() if line.startswith("│")]
    assert [row[1] for row in rows] == ["plain", *AXES]
    command += ["--compare", str(other), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert "96 episodes of it are there already" in done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert list(document["changes"]) == ["plain", *[f"{axis}:4" for axis in AXES]]
    for side, folder in (("after", "out"), ("before", "out/compared")):
        assert document[side] == json.loads((tmp_path / folder / "results.json").read_text())
        assert document[side]["plain"]["settings"]["env.perturbations"] == []
        for axis in document[side]["axes"]:
            assert axis["severity"] == 4
            assert axis["result"]["settings"]["env.perturbations"] == [f"{axis['axis']}:4"]
            assert axis["result"]["tasks"][0]["states"] == [30, 31, 32] * 2
            assert axis["result"]["protocol"] == "rlinf but for evaluation.trials, seed, states"
    shown = CliRunner().invoke(app, command)
    text = " ".join(shown.stdout.split())
    assert f"before: {other}; after: {one}" in text
    assert "p McNemar's exact, over states" in text
    assert all(f"{axis}:4" in shown.stdout for axis in AXES)
    refused = CliRunner().invoke(app, [*command, "--perturb", "all:5"])
    assert refused.exit_code == 2
    assert "env.perturbations was" in refused.stderr


def test_the_command_perturbs_along_several_axes_at_once(sound_worlds: list[ToyEnvs], tmp_path: Path):
    one = toy_policy().save(tmp_path / "one")
    command = ["eval", "--suite", "libero_goal", "--tasks", "1", "--policy", str(one), "--trials", "2"]
    command += ["--perturb", "language:3, camera:2", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["settings"]["env.perturbations"] == ["camera:2", "language:3"]
    assert [one["perturbation"] for one in lines(tmp_path / "out")] == ["camera:2,language:3"] * 2
    assert "camera:2, language:3" in " ".join(CliRunner().invoke(app, command).stdout.split())


@pytest.mark.sim
@pytest.mark.slow
def test_libero_is_perturbed_along_one_axis_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(episode_videos, "find_spec", lambda name: None)  # Without compression, so that equal is equal.
    base = toy_policy().save(tmp_path / "base")
    env = {"suite": "libero_goal", "tasks": [8], "num_envs": 2, "workers": 1, "max_steps": 8, "settle_steps": 1}
    config = toy_config(policy={"path": str(base)}, env=env, evaluation={"trials": 2, "temperature": 1.0})
    chosen = parse_perturbations("camera:5,language:5")
    wanted = Measurement(config, (30, 31), "held-out", (3,), perturbations=chosen)
    _, folder = measure_axes(wanted, tmp_path, video=VideoChoice.ALL)
    firsts = {}
    for name in ("plain", "camera-5", "language-5"):
        file = next((folder / "videos" / name).glob("*_state31_*"))
        firsts[name] = next(frames_of(file)).astype(float)
    assert np.array_equal(firsts["language-5"], firsts["plain"])
    assert np.abs(firsts["camera-5"] - firsts["plain"]).mean() > 1
    own = "put the bowl on the plate"
    said = {(one["perturbation"], one["init_state"]): one["instruction"] for one in lines(folder)}
    assert said["", 31] == said["camera:5", 31] == own
    assert said["language:5", 31] == rephrase(own, PerturbedEpisode(chosen, 3, 8, 31)) != own
