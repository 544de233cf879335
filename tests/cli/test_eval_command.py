"""``vlacoach eval``: what is shown and refused before anything is simulated."""

from __future__ import annotations

import json

import pytest

from vlacoach.cli.eval import (
    ProtocolChoice,
    Split,
    chosen_perturbations,
    chosen_seeds,
    chosen_states,
    followed_as,
    warn_of_training_states,
)
from vlacoach.cli.rival import rival_of
from vlacoach.envs.perturbations import AXES, Perturbation
from vlacoach.errors import CheckpointError, ConfigError, RunError
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.protocols import PROTOCOLS, get_protocol
from vlacoach.runs.reporting import NullReporter
from vlacoach.runs.resolve import Flag, resolve_config
from vlacoach.runs.splits import Splits, write_splits


def test_every_protocol_can_be_chosen():
    assert [choice.value for choice in ProtocolChoice] == list(PROTOCOLS)


def test_describe_shows_how_protocols_differ_and_what_is_not_reproduced(invoke):
    result = invoke("eval", "--protocol", "openvla", "--describe")
    assert result.exit_code == 0
    row = next(line for line in result.stdout.splitlines() if "steps, libero_goal" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")[1:]] == ["300", "300", "300", "320", "512"]
    assert "bold: differs from openvla" in result.stdout
    assert "env.seed(0)" in result.stdout
    assert "T = 1.6" in result.stdout


def test_describe_as_json_is_one_document(invoke):
    document = json.loads(invoke("eval", "--protocol", "lerobot", "--describe", "--json").stdout)
    assert document["protocol"] == "lerobot"
    assert document["differs"]["trials a task"] == dict.fromkeys(("openvla", "openvla-oft", "rlinf", "simplevla"), "50")
    assert document["protocols"]["lerobot"]["initial states"] == "0-9"
    assert document["protocols"]["rlinf"]["not_reproduced"]
    assert set(json.loads(invoke("eval", "--describe", "--json").stdout)) == {"protocols"}


def test_a_protocol_brings_its_states_unless_a_split_is_named():
    config, protocol = TrainConfig(), get_protocol("lerobot")
    for split, states, name in [(None, range(10), "protocol"), (Split.HELD_OUT, range(30, 50), "held-out")]:
        assert chosen_states(config, split, protocol) == (dict.fromkeys(config.env.tasks, tuple(states)), name)


def test_a_protocol_that_was_changed_is_not_called_by_its_name_alone():
    protocol = get_protocol("rlinf")
    preset = [Flag("--protocol rlinf", key, value) for key, value in protocol.settings("libero_goal").items()]
    whole = resolve_config(environ={}, preset=preset)
    assert followed_as(protocol, whole, {1: protocol.states}, (0,)) == "rlinf"
    other = resolve_config(sets=["env.settle_steps=10", "evaluation.trials=50"], environ={}, preset=preset)
    assert followed_as(protocol, other, {1: protocol.states}, (0,)) == "rlinf but for env.settle_steps"
    assert followed_as(protocol, whole, {1: (30, 31)}, (0, 1)) == "rlinf but for seed, states"


def test_the_states_of_a_run_are_those_of_its_manifest():
    config = TrainConfig.model_validate({"env": {"suite": "libero_goal", "tasks": [1, 2]}})
    manifest = Splits("libero_goal", {1: (7, 8)}, {1: (9,)})
    untrained = tuple(range(30, 50))
    assert chosen_states(config, None, trained_with=manifest)[0] == {1: (9,), 2: untrained}
    assert chosen_states(config, Split.ALL, trained_with=manifest)[0][1] == (7, 8, 9)
    other = Splits("libero_object", {1: (7, 8)}, {1: (9,)})
    assert chosen_states(config, None, trained_with=other)[0] == {1: untrained, 2: untrained}


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "runs", "first", TrainConfig()) as folder:
        folder.checkpoints.save(3, lambda path: (path / "x").write_text("data"), score=0.1)
        write_splits(folder, Splits.of_config(TrainConfig(), [1, 4, 6, 8]))
    return folder


def test_a_run_whose_manifest_was_changed_is_not_evaluated(invoke, run):
    file = run.path / "splits.json"
    file.write_text(file.read_text().replace("29", "28", 1))
    result = invoke("eval", "--run", "latest")
    assert result.exit_code == 5
    assert "was changed after the run began" in result.stderr
    assert result.stdout == ""


def test_the_states_of_a_run_cannot_be_set(invoke, run):
    result = invoke("eval", "--run", "latest", "--set", "evaluation.states=0-9", "--set", "env.states=10-20")
    assert result.exit_code == 2
    assert "env.states of a run cannot be changed" in result.stderr


def test_an_unknown_protocol_exits_2(invoke):
    result = invoke("eval", "--protocol", "openvlaa")
    assert result.exit_code == 2
    assert "simplevla" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cammera:3", ["Unknown perturbation axis 'cammera'", "'camera'", "layout, light, noise, robot"]),
        ("camera:0", ["The severity of camera is 0", "Severities are 1 to 5"]),
        ("all:6", ["The severity of all is 6", "Severities are 1 to 5"]),
        ("camera", ["The severity of camera is missing", "as in camera:3"]),
        ("camera:3,light:2,camera:1", ["axis camera is given twice"]),
        ("all,light:2", ["axis light is given twice"]),
        ("", ["Unknown perturbation axis ''", "all, background, camera"]),
        ("camera:3,", ["Unknown perturbation axis ''"]),
    ],
)
def test_what_cannot_be_perturbed_exits_2_and_names_what_can(invoke, text, said):
    result = invoke("eval", "--perturb", text)
    assert result.exit_code == 2
    assert all(part in result.stderr for part in said)
    assert result.stdout == ""


def test_all_is_one_axis_after_the_other_and_a_list_all_at_once():
    assert chosen_perturbations(None) == ((), False)
    for text, severity in (("all", 3), ("all:5", 5)):
        chosen, by_axis = chosen_perturbations(text)
        assert [(one.axis, one.severity) for one in chosen] == [(axis, severity) for axis in AXES]
        assert by_axis
    assert chosen_perturbations("camera:3,light:2") == ((Perturbation("camera", 3), Perturbation("light", 2)), False)


def test_seeds_are_those_given_or_the_one_of_the_configuration():
    config = TrainConfig(seed=9)
    assert chosen_seeds(None, None, config) == (9,)
    assert chosen_seeds("0-2,5", None, config) == (0, 1, 2, 5)
    with pytest.raises(ConfigError, match="contradict"):
        chosen_seeds("0,1", 3, config)


def test_what_to_compare_with_is_a_policy_a_folder_or_a_run(run, tmp_path):
    config = TrainConfig.model_validate({"policy": {"path": "somewhere", "lora_rank": 3, "adapter": "there"}})
    (tmp_path / "cloned").mkdir()
    for reference in ("tiny", str(tmp_path / "cloned"), "openvla/openvla-7b"):
        found = rival_of(reference, run.path.parent, config)
        assert (found.config.policy.path, found.config.policy.adapter, found.splits) == (reference, None, None)
        assert found.config.env == config.env
    for reference in ("latest", "first", str(run.path)):
        found = rival_of(reference, run.path.parent, config)
        assert (found.config.policy.path, found.label) == ("tiny", run.path.name)
        assert found.checkpoint.resolve() == (run.path / "checkpoints" / "000003").resolve()
        assert found.splits.suite == "libero_goal"
    with pytest.raises(RunError, match="No run 'nope'"):
        rival_of("nope", run.path.parent, config)


def test_a_run_to_compare_with_may_name_its_checkpoint(run, tmp_path):
    run.checkpoints.save(7, lambda path: (path / "x").write_text("later"), score=0.0)
    config, root = TrainConfig(), run.path.parent
    expected = {"first@3": "000003", "latest@best": "000003", "first@last": "000007", f"{run.path}@000003": "000003"}
    for reference, step in expected.items():
        found = rival_of(reference, root, config)
        checkpoint = reference.partition("@")[2]
        assert found.checkpoint.resolve() == (run.path / "checkpoints" / step).resolve()
        assert found.label == run.path.name + ("" if checkpoint == "last" else f"@{checkpoint}")
    with pytest.raises(CheckpointError, match="There is no checkpoint '5'"):
        rival_of("first@5", root, config)
    with pytest.raises(RunError, match="No run 'nope'"):
        rival_of("nope@3", root, config)
    (tmp_path / "cloned@2").mkdir()
    assert rival_of(str(tmp_path / "cloned@2"), root, config).config.policy.path == str(tmp_path / "cloned@2")


def test_states_that_a_run_was_trained_on_are_warned_of():
    said = []

    class Reporter(NullReporter):
        def message(self, text, level="info"):
            said.append((level, text))

    manifest = Splits("libero_goal", {1: (7, 8)}, {1: (9,)})
    warn_of_training_states(Reporter(), [None, manifest], TrainConfig(), {1: (9,)})
    assert said == []
    warn_of_training_states(Reporter(), [None, manifest], TrainConfig(), {1: (8, 9, 10)})
    assert said == [("warning", "A run was trained on 1 of the 3 initial states it is measured on")]
