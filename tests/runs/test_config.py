"""The configuration: defaults, strictness, error messages, precedence, YAML round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from vlacoach.errors import ConfigError, ExitCode
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.resolve import Flag, config_hash, config_keys, flatten, nearest_key, resolve_config
from vlacoach.runs.yaml_io import dump_config, read_yaml

REPOSITORY = Path(__file__).parents[2]


def resolve(tmp_path: Path, text: str = "", sets=(), flags=(), environ=None):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return resolve_config(file, sets, flags, environ or {})


def test_shipped_file_is_every_default_with_its_comment():
    file = REPOSITORY / "configs" / "train.yaml"
    assert file.read_text() == dump_config(TrainConfig())
    assert TrainConfig.load(file) == TrainConfig()
    assert all(key.rpartition(".")[2] + ":" in file.read_text() for key in config_keys())


def test_the_file_for_large_policies_loads_and_keeps_what_it_does_not_say():
    config = TrainConfig.load(REPOSITORY / "configs" / "openvla-oft.yaml")
    assert (config.policy.head, config.policy.quantize, config.grpo.temperature) == ("oft-discrete", "nf4", 1.6)
    assert (config.env.tasks, config.env.max_steps) == (None, None)
    assert (config.env.image_size, config.env.cameras) == ("policy", "policy")
    assert config.grpo.clip_high == TrainConfig().grpo.clip_high


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("grpo.micro_batch=0", "grpo.micro_batch = 0 is not valid: Input should be {} 1, or 'auto'."),
        ("env.image_size=3", "env.image_size = 3 is not valid: Input should be {} 16, or 'policy'."),
    ],
)
def test_a_setting_of_several_types_has_one_complaint(assignment, said):
    with pytest.raises(ConfigError) as caught:
        resolve_config(sets=[assignment], environ={})
    assert str(caught.value) == f"--set {assignment}: {said.format('greater than or equal to')}"


def test_an_adapter_to_start_from_leaves_no_reference():
    for section in (
        {"policy": {"adapter": "x", "full": True}},
        {"policy": {"adapter": "x"}, "grpo": {"kl_coefficient": 0.1}},
    ):
        with pytest.raises(ValueError, match=r"policy\.adapter"):
            TrainConfig.model_validate(section)
    assert TrainConfig.model_validate({"policy": {"adapter": "x"}}).policy.adapter == "x"


def test_every_field_explains_itself():
    schema = TrainConfig.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        for name, field in definition["properties"].items():
            if "$ref" not in field:
                assert field.get("description"), name


def test_yaml_round_trip_keeps_awkward_values():
    config = TrainConfig.model_validate(
        {
            "env": {"tasks": [3, 1], "max_steps": 7, "cameras": ["agentview", "robot0_eye_in_hand"]},
            "grpo": {"learning_rate": 1e-5, "target_kl": 3e-7, "minutes": 12, "dual_clip": 3},
            "reward": {"params": {"a": [1, 2], "b": {"c": "on"}}},
        }
    )
    assert TrainConfig.model_validate(yaml.safe_load(dump_config(config))) == config


def test_unknown_key_names_file_key_value_and_nearest_spelling(tmp_path):
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, "grpo:\n  clip_hihg: 0.3\n")
    assert str(tmp_path / "run.yaml") in caught.value.message
    assert "grpo.clip_hihg" in caught.value.message
    assert "0.3" in caught.value.message
    assert caught.value.hint == "Did you mean 'grpo.clip_high'?"
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("grop.updates", "grpo.updates"),
        ("lora_rank", "policy.lora_rank"),
        ("env.learning_rate", "grpo.learning_rate"),
        ("evalution", "evaluation"),
        ("zzzzz", None),
    ],
)
def test_nearest_key(key, expected):
    assert nearest_key(key) == expected


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("grpo: {updates: many}", "grpo.updates", "'many'"),
        ("grpo: {updates: 0}", "grpo.updates", "0"),
        ("grpo: {learning_rate: .nan}", "grpo.learning_rate", "nan"),
        ("env: {tasks: 3-1}", "env.tasks", "'3-1'"),
        ("env: {tasks: []}", "env.tasks", "[]"),
        ("reward: {pooling: max}", "reward.pooling", "'max'"),
        ("name: a/b", "name", "'a/b'"),
        ("seed: -1", "seed", "-1"),
    ],
)
def test_bad_value_names_key_and_value(tmp_path, text, key, value):
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, text)
    assert f"{key} = {value}" in caught.value.message
    assert "run.yaml" in caught.value.message


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, "grpo: {updates: x, epoch: 2}\nseeed: 1\n")
    for part in ("grpo.updates", "grpo.epoch", "seeed"):
        assert part in caught.value.message


def test_training_must_not_see_an_evaluation_state(tmp_path):
    with pytest.raises(ConfigError, match=r"share the initial states \[30\]"):
        resolve(tmp_path, 'env: {states: "0-30"}')


def test_filter_bounds_are_ordered(tmp_path):
    with pytest.raises(ConfigError, match="filter_low"):
        resolve(tmp_path, "grpo: {filter_low: 0.95}")


@pytest.mark.parametrize(
    ("text", "part"),
    [("grpo: [", "line 1"), ("seed: 1\nseed: 2\n", "'seed' is given twice"), ("- 1\n", "top level"),
     ("grpo: 5\n", "grpo = 5"), ("x: !!python/object/apply:os.getcwd []", "not valid YAML"),
     ("seed: 2026-99-99\n", "not valid YAML")],
)  # fmt: skip
def test_files_that_are_no_configuration(tmp_path, text, part):
    with pytest.raises(ConfigError, match=r"run\.yaml") as caught:
        resolve(tmp_path, text)
    assert part in caught.value.message


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_config(tmp_path / "none.yaml", environ={})
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "run.yaml")


def test_precedence_flag_environment_set_file_default(tmp_path):
    text = "grpo: {updates: 1, prompts: 1, epochs: 5, minibatches: 6}\n"
    sets = ["grpo.updates=2", "grpo.prompts=2", "grpo.epochs=7"]
    environ = {
        "VLACOACH_GRPO__UPDATES": "3",
        "VLACOACH_GRPO__PROMPTS": "3",
        "VLACOACH_RUNS_DIR": "/x",
        "HOME": "/",
    }
    resolved = resolve(
        tmp_path, text, sets, [Flag("--updates", "grpo.updates", 4), Flag("--seed", "seed", None)], environ
    )
    grpo = resolved.config.grpo
    assert (grpo.updates, grpo.prompts, grpo.epochs, grpo.minibatches, grpo.group_size) == (4, 3, 7, 6, 8)
    assert resolved.origins["grpo.updates"] == "--updates"
    assert resolved.origins["grpo.prompts"] == "environment VLACOACH_GRPO__PROMPTS"
    assert resolved.origins["grpo.epochs"] == "--set grpo.epochs=7"
    assert resolved.origins["grpo.minibatches"] == str(tmp_path / "run.yaml")
    assert resolved.origins["grpo.group_size"] == resolved.origins["seed"] == "default"
    assert set(resolved.origins) == set(config_keys()) == set(flatten(resolved.config))


def test_a_default_set_by_hand_has_its_origin(tmp_path):
    assert resolve(tmp_path, "seed: 0\n").origins["seed"].endswith("run.yaml")


def test_origin_of_a_bad_value_is_the_layer_it_came_from(tmp_path):
    with pytest.raises(ConfigError, match=r"environment VLACOACH_GRPO__UPDATES: grpo\.updates = 'x'"):
        resolve(tmp_path, "grpo: {updates: 4}", environ={"VLACOACH_GRPO__UPDATES": "x"})
    with pytest.raises(ConfigError, match="environment VLACOACH_GRPO__UPDTES: unknown key"):
        resolve(tmp_path, environ={"VLACOACH_GRPO__UPDTES": "3"})


def test_set_reads_yaml_values_and_index_text(tmp_path):
    config = resolve(
        tmp_path,
        sets=["env.tasks=1,4,8", "grpo.learning_rate=1e-5", "grpo.dual_clip=null", "policy.full=true",
              "reward.params.width=3", "evaluation.states=30-33,49"],
    ).config  # fmt: skip
    assert config.env.tasks == (1, 4, 8)
    assert config.grpo.learning_rate == 1e-5
    assert config.grpo.dual_clip is None
    assert config.policy.full is True
    assert config.reward.params == {"width": 3}
    assert config.evaluation.states == (30, 31, 32, 33, 49)


@pytest.mark.parametrize("assignment", ["grpo.updates", "=3", "seed.deep=3"])
def test_malformed_set(tmp_path, assignment):
    with pytest.raises(ConfigError):
        resolve(tmp_path, "seed: 1", sets=[assignment])


def test_commented_out_section_is_the_default(tmp_path):
    assert resolve(tmp_path, "grpo:\nenv:\n  # tasks: [1]\n").config == TrainConfig()


def test_configuration_is_frozen():
    with pytest.raises(ValidationError):
        TrainConfig().seed = 3


def test_hash_follows_content_not_name_or_spelling(tmp_path):
    base = TrainConfig()
    assert config_hash(base) == config_hash(resolve(tmp_path, "name: other\ngrpo: {clip_low: 2.0e-1}").config)
    assert config_hash(base) != config_hash(resolve(tmp_path, "seed: 1").config)
