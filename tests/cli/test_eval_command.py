"""``vlacoach eval``: what is shown and refused before anything is simulated."""

from __future__ import annotations

import json

from vlacoach.cli.eval import ProtocolChoice, Split, chosen_states
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.protocols import PROTOCOLS, get_protocol


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
    assert chosen_states(config, None, protocol) == (tuple(range(10)), "protocol")
    assert chosen_states(config, Split.HELD_OUT, protocol) == (tuple(range(30, 50)), "held-out")
    assert chosen_states(config, None, None) == (tuple(range(30, 50)), "held-out")


def test_an_unknown_protocol_exits_2(invoke):
    result = invoke("eval", "--protocol", "openvlaa")
    assert result.exit_code == 2
    assert "simplevla" in result.stderr
