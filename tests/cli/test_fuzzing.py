"""Files that somebody has edited, cut off, or written with other tools: they are read, or refused with a message."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vlacoach.agents.episode_files import read_episodes
from vlacoach.cli.main import app
from vlacoach.data.rollouts import RecordedEpisode, write_rollouts
from vlacoach.errors import CheckpointError, ExitCode, VlacoachError
from vlacoach.runs import constants as names
from vlacoach.runs.checkpoints import CheckpointStore, verify_checkpoint
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.control import read_control
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.results import EvaluationResult, TaskResult, TrainResult, compare, write_results
from vlacoach.runs.splits import Splits, read_splits, write_splits
from vlacoach.runs.state import load_tree, save_tree
from vlacoach.runs.yaml_io import dump_config

quick = settings(
    derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
few = settings(quick, max_examples=10)

JUNK = ["null", "-1", "1e999", "NaN", '"x"', "[]", "{}", "[[[1]]]", "true", "\x00", "é", "../..", "9" * 30, "\n", ": "]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def damages(draw: st.DrawFn) -> Any:
    """A function that damages bytes: cut off, flipped, overwritten, emptied, or doubled."""
    kind = draw(st.sampled_from(["cut", "flip", "junk", "empty", "double", "noise"]))
    where, junk, bit = draw(st.floats(0, 1)), draw(st.sampled_from(JUNK)).encode(), draw(st.integers(0, 7))
    noise = draw(st.binary(max_size=40))

    def damage(data: bytes) -> bytes:
        at = int(where * max(0, len(data) - 1))
        if kind == "flip" and data:
            return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        end = data.find(b",", at) if kind == "junk" else at
        found = {"cut": data[:at], "junk": data[:at] + junk + data[max(at, end) :], "noise": noise}
        return {**found, "empty": b"", "double": data + data}.get(kind, data)

    return damage


@quick
@given(damages(), damages())
def test_any_configuration_file_is_read_or_refused(tmp_path: Path, one: Any, two: Any):
    file = tmp_path / "config.yaml"
    file.write_bytes(two(one(dump_config(TrainConfig(), comments=False).encode())))
    error = refused(lambda: TrainConfig.load(file), "config.yaml")
    assert error is None or error.exit_code == ExitCode.USAGE


@quick
@given(st.dictionaries(st.sampled_from(["seed", "env", "grpo", "env.states", "x"]), VALUES, max_size=4))
def test_any_tree_is_a_configuration_or_refused(tmp_path: Path, tree: dict[str, Any]):
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(tree))
    error = refused(lambda: TrainConfig.load(file), "")
    assert error is None or error.exit_code == ExitCode.USAGE


@quick
@given(damages())
def test_any_wishes_are_understood_or_refused(tmp_path: Path, damage: Any):
    (tmp_path / names.CONTROL_FILE).write_bytes(damage(b'{"time": 1.0, "paused": true, "stop": false, "evaluate": 3}'))
    refused(lambda: read_control(tmp_path), "control.json")


def refused(read: Callable[[], object], words: str, kind: type[VlacoachError] = VlacoachError) -> VlacoachError | None:
    """The error of this kind by which something was refused, which says these words; None if it was read."""
    try:
        read()
    except kind as error:
        found = error
    else:
        return None
    assert words in found.message
    return found


def evaluation(success: list[bool]) -> EvaluationResult:
    task = TaskResult(3, "open the drawer", tuple(range(30, 34)), tuple(success), (80,) * 4)
    return EvaluationResult("libero_goal", "held-out", "tiny", 1.0, (0,), (task,), 1.5)


def fill(run: RunFolder) -> None:
    write_splits(run, Splits("libero_goal", {3: (0, 1)}, {3: (30, 31)}))
    for step in range(3):
        run.log_metrics(step, {"rollout/success": 0.5, "train/kl": 0.1, "eval/success": 0.5, "eval/successes": 2})
        run.log_metrics(step, {"eval/episodes": 4, "eval/success/3": 0.5, "time/rollout": 1.0, "time/elapsed": 2.0})
        run.log_episode(step, task=3, init_state=1, group=0, slot=0, success=True, valid=True, length=9, reward=1.0)
        run.log_episode(step, task=3, init_state=1, group=0, slot=1, success=False, valid=True, length=9, reward=0.2)
        run.alert("warning", "entropy", "look")
    run.log("hello")
    run.progress("rollout", 1, 2)
    comparison = compare(evaluation([False] * 4), evaluation([True] * 4))
    write_results(TrainResult(run.path, 2, 60.0, {"held-out": comparison}, {}), run.path / names.RESULTS_FILE)
    run.checkpoints.save(2, lambda folder: save_tree(folder / "training_state", {"update": 2, "x": np.ones(3)}), 0.5)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzzed")
    with RunFolder.create(root, "first", TrainConfig()) as run, run.running():
        fill(run)
    return run.path


FILES = ["config.yaml", "run.json", "metrics.jsonl", "episodes.jsonl", "events.jsonl", "alerts.jsonl", "heartbeat"]
FILES += ["results.json", "splits.json", "log.txt", "system.jsonl"]
COMMANDS = [
    ["runs", "ls"],
    ["runs", "ls", "--json"],
    ["runs", "show", "first"],
    ["runs", "show", "first", "--json"],
    ["runs", "diff", "first", "first", "--json"],
    ["runs", "report", "first"],
    ["runs", "export", "csv", "first", "--out", "OUT", "--force"],
    ["runs", "export", "adapter", "first", "--out", "OUT", "--checkpoint", "best"],
    ["watch", "--once", "first"],
    ["watch", "--once", "--json", "first"],
    ["train", "--resume", "first", "--set", "policy.path=nowhere"],
    ["eval", "--run", "first", "--describe"],
]


def check_commands(root: Path, commands: list[list[str]]) -> None:
    for command in commands:
        arguments = [str(root / "out.csv") if part == "OUT" else part for part in command]
        done = CliRunner().invoke(app, [*arguments, "--runs-dir", str(root)])
        problem = done.exception
        assert problem is None or isinstance(problem, SystemExit), (command, repr(problem))
        assert done.exit_code in {int(code) for code in ExitCode}, (command, done.output)


@pytest.mark.parametrize("command", [one for one in COMMANDS if one[0] != "train" and "adapter" not in one])
def test_commands_read_the_run_folder_while_nobody_has_harmed_it(original: Path, tmp_path: Path, command: list[str]):
    run = copied(original, tmp_path / "runs")
    arguments = [str(tmp_path / "out.csv") if part == "OUT" else part for part in command]
    done = CliRunner().invoke(app, [*arguments, "--runs-dir", str(run.parent)])
    assert done.exit_code == 0, done.output


def copied(original: Path, root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    return Path(shutil.copytree(original, root / original.name, symlinks=True))


@few
@given(st.lists(st.tuples(st.sampled_from(FILES), damages() | st.none()), min_size=1, max_size=3), st.data())
def test_commands_on_any_run_folder_work_or_say_what_is_wrong(
    original: Path, tmp_path: Path, harm: list[tuple[str, Any]], data: st.DataObject
):
    run = copied(original, tmp_path / "runs")
    for name, damage in harm:
        file = run / name
        if damage is None:
            file.unlink(missing_ok=True)
        elif file.exists():
            file.write_bytes(damage(file.read_bytes()))
    check_commands(run.parent, [data.draw(st.sampled_from(COMMANDS)) for _ in range(2)])


KEYS = ["step", "time", "task", "success", "length", "reward", "video", "progress", "rollout/success", "eval/success"]
KEYS += ["eval/successes", "eval/episodes", "eval/success/3", "event", "stage", "status", "message", "slot", "valid"]


@few
@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), min_size=1, max_size=4),
    st.sampled_from([name for name in FILES if name.endswith("jsonl")]),
    st.data(),
)
def test_lines_with_values_of_any_type_are_passed_over(
    original: Path, tmp_path: Path, lines: list[dict[str, Any]], name: str, data: st.DataObject
):
    run = copied(original, tmp_path / "runs")
    with (run / name).open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    check_commands(run.parent, [data.draw(st.sampled_from(COMMANDS)) for _ in range(2)])


@few
@given(
    st.sampled_from(["run.json", "results.json", "splits.json", "heartbeat"]),
    st.lists(st.integers(0, 50), max_size=4),
    VALUES,
    st.data(),
)
def test_documents_with_a_value_of_any_type_are_read_or_refused(
    original: Path, tmp_path: Path, name: str, way: list[int], value: Any, data: st.DataObject
):
    run = copied(original, tmp_path / "runs")
    document = json.loads((run / name).read_text())
    place, key = document, next(iter(document))
    for number in way:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[number % len(keys)]
        if not isinstance(place[key], (dict, list)) or not place[key]:
            break
        place, key = place[key], next(iter(place[key])) if isinstance(place[key], dict) else 0
    place[key] = value
    (run / name).write_text(json.dumps(document))
    check_commands(run.parent, [data.draw(st.sampled_from(COMMANDS)) for _ in range(2)])


def test_any_flipped_bit_of_a_checkpoint_is_found(original: Path, tmp_path: Path):
    store = CheckpointStore(copied(original, tmp_path / "runs") / names.CHECKPOINTS_FOLDER)
    rng = random.Random(0)
    files = [file for file in store.last().rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"manifest.json", "state.json", "state.safetensors"}
    for file in files:
        whole = file.read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            changed = file.name != "manifest.json" or json_or_none(bytes(damaged)) != json_or_none(whole)
            if changed:  # A flip between blank and line end changes nothing.
                with pytest.raises(CheckpointError, match="checkpoints/000002"):
                    store.last()
        file.write_bytes(whole)
        verify_checkpoint(store.last())


def json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


@quick
@given(
    st.dictionaries(st.sampled_from(["step", "score", "files", "x"]), VALUES, max_size=4)
    | st.dictionaries(st.text(max_size=6), VALUES, max_size=3).map(
        lambda files: {"step": 2, "score": 1, "files": files}
    ),
    st.booleans(),
)
def test_any_manifest_is_believed_or_refused(original: Path, tmp_path: Path, manifest: dict[str, Any], sealed: bool):
    store = CheckpointStore(copied(original, tmp_path / "runs") / names.CHECKPOINTS_FOLDER)
    from vlacoach.runs import checkpoints

    if sealed:  # Even one that somebody has given the right checksum.
        manifest = {**manifest, "checksum": checkpoints._checksum(json.loads(json.dumps(manifest)))}
    (store.folder / "000002" / names.MANIFEST_FILE).write_text(json.dumps(manifest))
    for look in (store.last, store.newest_intact, lambda: store.named("best"), lambda: store.named("2")):
        refused(look, "checkpoint", CheckpointError)


@quick
@given(damages(), st.sampled_from(["state.json", "state.safetensors"]))
def test_any_training_state_is_read_or_refused(tmp_path: Path, damage: Any, name: str):
    save_tree(tmp_path, {"update": 2, "x": np.ones(3), "y": [1, (2, None)]})
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    refused(lambda: load_tree(tmp_path), str(tmp_path), CheckpointError)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("episodes") / "rollouts.hdf5"
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    return write_rollouts(file, [RecordedEpisode("libero_goal", 3, 1, "open", "policy", True, 8, frames)])


@quick
@given(damages())
@pytest.mark.parametrize("suffix", ["hdf5", "gif", "mp4"])
def test_any_file_of_episodes_is_read_or_refused(recorded: Path, tmp_path: Path, suffix: str, damage: Any):
    file = tmp_path / f"episodes.{suffix}"
    file.write_bytes(damage(recorded.read_bytes()))
    refused(lambda: read_episodes([str(file)], 3, 8, ("agentview",)), "episodes")


@quick
@given(damages())
def test_any_manifest_of_splits_is_read_or_refused(original: Path, tmp_path: Path, damage: Any):
    run = copied(original, tmp_path / "runs")
    (run / names.SPLITS_FILE).write_bytes(damage((run / names.SPLITS_FILE).read_bytes()))
    refused(lambda: read_splits(RunFolder(run)), "splits.json")
