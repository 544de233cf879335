from __future__ import annotations

import json

import yaml

from vlacoach.runs.config import TrainConfig
from vlacoach.runs.resolve import config_keys


def test_show_names_value_and_origin(invoke, tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("grpo: {updates: 7}\n")
    monkeypatch.setenv("VLACOACH_GRPO__EPOCHS", "3")
    args = ["config", "show", "--config", "a.yaml", "--set", "grpo.prompts=9"]
    settings = json.loads(invoke(*args, "--json").stdout)["settings"]
    assert settings["grpo.updates"] == {"value": 7, "origin": "a.yaml"}
    assert settings["grpo.prompts"] == {"value": 9, "origin": "--set grpo.prompts=9"}
    assert settings["grpo.epochs"] == {"value": 3, "origin": "environment VLACOACH_GRPO__EPOCHS"}
    assert settings["seed"]["origin"] == "default"
    assert list(settings) == list(config_keys())
    table = invoke(*args).stdout
    assert "a.yaml" in table
    assert "30-49" in table


def test_unknown_key_exits_2_with_nearest_spelling(invoke, tmp_path):
    (tmp_path / "a.yaml").write_text("grpo: {clip_hihg: 0.3}\n")
    for args in (["show", "--config", "a.yaml"], ["validate", "a.yaml"]):
        result = invoke("config", *args)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "a.yaml: unknown key 'grpo.clip_hihg' (value 0.3)" in result.stderr
        assert "Did you mean 'grpo.clip_high'?" in result.stderr


def test_validate_also_checks_suite_tasks_and_reward(invoke, tmp_path):
    (tmp_path / "a.yaml").write_text("env: {suite: libero_gaol}\n")
    (tmp_path / "b.yaml").write_text("env: {tasks: [3, 10]}\n")
    (tmp_path / "c.yaml").write_text("reward: {name: siglip-q}\n")
    for file, expected in (("a", "'libero_goal'"), ("b", "no task 10"), ("c", "'siglip-t'")):
        result = invoke("config", "validate", f"{file}.yaml")
        assert result.exit_code == 2
        assert expected in result.stderr


def test_init_prints_a_valid_file_that_validate_accepts(invoke, tmp_path):
    text = invoke("config", "init").stdout
    assert TrainConfig.model_validate(yaml.safe_load(text)) == TrainConfig()
    (tmp_path / "a.yaml").write_text(text)
    result = invoke("config", "validate", "a.yaml")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "a.yaml: valid" in result.stderr


def test_schema_is_json_with_descriptions(invoke):
    schema = json.loads(invoke("config", "schema").stdout)
    assert schema["additionalProperties"] is False
    assert "Seed" in schema["properties"]["seed"]["description"]
