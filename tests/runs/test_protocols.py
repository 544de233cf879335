"""Protocols: the published values, and what they set in a configuration."""

from __future__ import annotations

import pytest

from vlacoach.errors import ConfigError, UnknownNameError
from vlacoach.runs.protocols import PROTOCOLS, differences, get_protocol
from vlacoach.runs.resolve import Flag, config_keys, resolve_config


@pytest.mark.parametrize(
    ("name", "limits", "settle", "trials", "temperature"),
    [
        ("openvla", [220, 280, 300, 520, 400], 10, 50, 0.0),
        ("openvla-oft", [220, 280, 300, 520, 400], 10, 50, 0.0),
        ("lerobot", [280, 280, 300, 520, 400], 10, 10, None),
        ("rlinf", [240, 280, 320, 520, 512], 15, 50, 1.6),
        ("simplevla", [512, 512, 512, 512, 512], 10, 50, 0.0),
    ],
)
def test_protocols_have_the_published_values(name, limits, settle, trials, temperature):
    protocol = get_protocol(name)
    assert list(protocol.max_steps) == ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]
    assert list(protocol.max_steps.values()) == limits
    assert (protocol.settle_steps, protocol.trials, protocol.temperature) == (settle, trials, temperature)
    assert len(protocol.states) == trials


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_protocol_says_what_is_not_reproduced_and_sets_known_keys_only(protocol):
    assert protocol.not_reproduced
    assert set(protocol.settings("libero_10")) <= set(config_keys())


def test_a_variant_of_a_suite_has_the_limit_of_the_suite():
    assert get_protocol("rlinf").step_limit("libero_goal_swap") == 320
    with pytest.raises(ConfigError, match="no step limit for robocasa"):
        get_protocol("rlinf").step_limit("robocasa")


def test_unknown_protocols_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'openvla-oft'"):
        get_protocol("openvla-of")


def test_differences_name_only_what_differs():
    found = differences("openvla")
    assert found["steps, libero_goal"] == {"rlinf": "320", "simplevla": "512"}
    assert found["settle steps"] == {"rlinf": "15"}
    assert "steps, libero_object" in found
    assert "openvla-oft" not in found["steps, libero_object"]


def test_a_preset_wins_over_the_file_and_yields_to_what_is_set_one_by_one(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("env: {suite: libero_goal, max_steps: 100, settle_steps: 1}\nevaluation: {trials: 2}\n")
    preset = [
        Flag("--protocol rlinf", key, value) for key, value in get_protocol("rlinf").settings("libero_goal").items()
    ]
    resolved = resolve_config(
        file, ["env.settle_steps=3"], [Flag("--trials", "evaluation.trials", 7)], {}, preset=preset
    )
    config = resolved.config
    assert (config.env.max_steps, config.env.settle_steps, config.evaluation.trials) == (320, 3, 7)
    assert (config.env.exact, config.env.render_profile, config.env.image_size) == (True, "reference", 256)
    assert config.evaluation.temperature == 1.6
    assert resolved.origins["env.max_steps"] == "--protocol rlinf"
    assert resolved.origins["evaluation.trials"] == "--trials"
