"""The lab through the command line, on real LIBERO with the built-in policy."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vlacoach.agents.video import write_video
from vlacoach.cli.main import app
from vlacoach.data.rollouts import read_rollouts, write_rollouts
from vlacoach.errors import ExitCode


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["-q", "reward", *map(str, arguments)])


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Rollouts of one task, and what the lab said of them."""
    folder = tmp_path_factory.mktemp("lab")
    file = folder / "rollouts.hdf5"
    result = call(
        *("bench", "--tasks", "8", "--episodes", "24", "--save", file, "--plot", folder / "curves.png"),
        *("--scorer", "siglip", "--scorer", "siglip-t", "--scorer", "siglip-t:untrained=true,fusion=add"),
        *("--scorer", "pixels", "--resamples", "100", "--json"),
    )
    assert result.exit_code == 0, result.output
    return file, json.loads(result.stdout)


@pytest.mark.sim
def test_bench_makes_rollouts_of_every_kind_and_measures_each_scorer(collected):
    file, found = collected
    episodes = read_rollouts(file)
    outcomes = Counter((one.source, one.success) for one in episodes)
    assert {one.source for one in episodes} == {"policy", "expert", "noisy-expert", "near-miss", "gross-failure"}
    assert outcomes["expert", False] == 0
    assert outcomes["gross-failure", True] <= 1
    assert {one.init_state % 2 for one in episodes} == {0, 1}
    for one in episodes:
        # One picture before each chunk of 8 actions, and one at the end.
        assert len(one.frames) == -(-one.length // 8) + 1
    assert found["episodes"] == len(episodes) == 24
    by_name = {scorer["name"]: scorer for scorer in found["scorers"]}
    assert list(by_name) == ["siglip", "siglip-t", "siglip-t:untrained=true,fusion=add", "pixels"]
    for scorer in by_name.values():
        for figure in ("spearman", "auroc", "held_auroc", "near_miss_auroc"):
            assert scorer[figure]["low"] <= scorer[figure]["value"] <= scorer[figure]["high"]
    assert by_name["siglip"]["order_sensitivity"] == 0 < by_name["siglip-t"]["order_sensitivity"]
    assert by_name["siglip"]["parameters"] == 0 < by_name["siglip-t"]["parameters"]
    assert by_name["siglip-t"]["fit"]["loss_after"] < by_name["siglip-t"]["fit"]["loss_before"]
    assert by_name["siglip-t:untrained=true,fusion=add"]["fit"] == {}
    with Image.open(file.parent / "curves.png") as picture:
        assert picture.size[0] > 600


@pytest.mark.sim
def test_bench_on_a_file_says_the_same_again_and_prints_tables(collected):
    file, found = collected
    arguments = ("bench", "--rollouts", file, "--scorer", "siglip", "--scorer", "siglip-t", "--resamples", "100")
    again = json.loads(call(*arguments, "--json").stdout)
    for key in ("auroc", "held_auroc", "near_miss_auroc", "spearman", "mmd"):
        assert again["scorers"][1][key] == pytest.approx(found["scorers"][1][key])
    tables = call(*arguments).stdout
    for heading in ("Progress within successes", "AUROC", "Order and cost", "near-miss"):
        assert heading in tables


@pytest.mark.sim
def test_score_says_how_close_an_episode_came_whatever_it_was_kept_as(collected, tmp_path):
    file, _ = collected
    episodes = read_rollouts(file)
    near = next(i for i, one in enumerate(episodes) if one.source == "near-miss" and not one.success)
    won = next(i for i, one in enumerate(episodes) if one.source == "expert")
    video = write_video(tmp_path / "won", [frame[:, ::-1] for frame in episodes[won].frames])
    names = [f"{file}:{near}", f"{file}:{won}", str(video)]
    found = json.loads(
        call("score", *names, "--references", file, "--scorer", "siglip", "--task", "8", "--json").stdout
    )
    assert [one["episode"] for one in found] == names
    for one in found:
        assert one["task"] == 8
        assert 0 <= one["closer_than"] <= 1
        assert 0 <= one["reward"] <= 0.6
    success, shown = found[1], found[2]
    # It is not compared with itself, so it may well be as far from the others as some failure.
    assert success["closer_than"] > 0.2
    # A video loses a little of the colors, not who it is.
    assert shown["distance"] == pytest.approx(success["distance"], rel=0.5)
    table = call("score", names[0], "--references", file, "--scorer", "siglip-t")
    assert table.exit_code == 0
    assert "Closeness" in table.stdout


@pytest.mark.sim
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{file}:999",), "no rollout '999'"),
        (("{folder}/missing.gif", "--task", "8"), "no video"),
        (("{folder}/notes.txt",), "is no episode"),
        (("{folder}/broken.gif",), "does not say which task"),
        (("{folder}/broken.gif", "--task", "8"), "cannot be read"),
        (("{folder}/missing.hdf5:demo_0", "--task", "8"), "no demonstration file"),
        (("{file}:0", "--scorer", "siglipt"), "Did you mean 'siglip-t'"),
        (("{file}:0", "--scorer", "siglip-t:fusoin=add"), "Did you mean 'fusion'"),
        (("{file}:0", "--scorer", "siglip-t:fusion"), "has no value"),
    ],
)
def test_score_names_what_is_wrong(collected, tmp_path, arguments, message):
    file, _ = collected
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    given = [argument.format(file=file, folder=tmp_path) for argument in arguments]
    result = call("score", *given, "--references", file)
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())


@pytest.mark.sim
@pytest.mark.slow
def test_bench_takes_what_a_run_has_trained(tmp_path):
    arguments = ("--reward", "success", "--tasks", "8", "--updates", "1", "--runs-dir", str(tmp_path), "--json")
    sizes = ("grpo.prompts=1", "grpo.group_size=2", "evaluation.trials=1", "evaluation.train_states=false")
    sets = [part for size in (*sizes, "env.max_steps=24") for part in ("--set", size)]
    trained = CliRunner().invoke(app, ["-q", "train", *arguments, *sets])
    assert trained.exit_code == 0, trained.output
    kept = tmp_path / "rollouts.hdf5"
    bench = ("bench", "--rollouts", "latest", "--runs-dir", tmp_path, "--episodes", "24", "--save", kept)
    result = call(*bench, "--scorer", "pixels", "--resamples", "100", "--json")
    # No expert succeeds in 24 steps; the rollouts are the run's own, and what is missing is said.
    assert result.exit_code == ExitCode.FAILURE
    assert "No task has two successes" in result.stderr
    episodes = read_rollouts(kept)
    assert {one.task for one in episodes} == {8}
    assert {one.length for one in episodes} == {24}


@pytest.mark.sim
def test_an_episode_is_not_compared_with_itself(collected, tmp_path):
    file, _ = collected
    episodes = read_rollouts(file)
    chosen = next(one for one in episodes if one.source == "expert")
    without = write_rollouts(tmp_path / "without.hdf5", [one for one in episodes if one is not chosen])
    alone = write_rollouts(tmp_path / "alone.hdf5", [chosen])
    said = [
        json.loads(call("score", alone, "--references", references, "--scorer", "siglip", "--json").stdout)
        for references in (file, without)
    ]
    assert said[0] == said[1]


@pytest.mark.sim
def test_episodes_of_another_suite_are_refused(collected, tmp_path):
    file, _ = collected
    other = write_rollouts(tmp_path / "other.hdf5", [replace(read_rollouts(file)[0], suite="libero_spatial")])
    result = call("score", other, "--references", file, "--scorer", "siglip")
    assert result.exit_code == ExitCode.USAGE
    assert "several suites" in result.stderr


@pytest.mark.sim
def test_references_without_a_success_of_the_task_are_refused(collected, tmp_path):
    file, _ = collected
    failures = write_rollouts(tmp_path / "failures.hdf5", [one for one in read_rollouts(file) if not one.success])
    result = call("score", f"{file}:0", "--references", failures, "--scorer", "siglip")
    assert result.exit_code == ExitCode.FAILURE
    assert "0 successes" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scorer", "siglipt"), "Did you mean 'siglip-t'"),
        (("--scorer", "siglip-t:objective=triplets"), "Did you mean 'triplet'"),
        (("--scorer", "siglip:untrained=true"), "cannot be left untrained"),
        (("--scorer", "siglip:grid=3"), "64 patches cannot be averaged in 3 x 3 cells"),
        (("--scorer", "siglip:grid=[1"), "is no YAML"),
        (("--scorer", "siglip:grid=abc"), "has a value that does not fit"),
        (("--scorer", "success"), "embeds nothing"),
        (("--rollouts", "nowhere.hdf5"), "no rollouts file nowhere.hdf5"),
        (("--rollouts", "nowhere"), "nowhere"),
        (("--rollouts", "a.hdf5", "--save", "b.hdf5"), "Give one of them"),
        (("--suite", "libero_gaol"), "Did you mean 'libero_goal'"),
        (("--tasks", "11"), "no task 11"),
        (("--suite", "libero_10", "--tasks", "0"), "scripted experts"),
        (("--policy", "tinny"), "tinny"),
    ],
)
def test_bench_refuses_before_it_spends_minutes(arguments, message):
    result = call("bench", *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())
