"""Every pane at every size, beside what was seen and found good; and what must be on them in words."""

from __future__ import annotations

import re

import pytest
from fake_runs import make_run

from vlacoach.cli.dashboard.keys import PANE_NAMES

SIZES = ((80, 24), (120, 40), (60, 15))
PANES = [name for name, _ in PANE_NAMES]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("pane", PANES)
def test_panes_look_as_they_did(drive, golden, pane, size):
    text = drive(str(PANES.index(pane) + 1), size=size)
    golden(f"{pane}_{size[0]}x{size[1]}", text)


def test_the_overview_answers_the_three_questions(drive):
    text = drive()
    assert "finished" in text
    assert "update 12/40" in text
    assert re.search(r"rollouts .* 75\.0 \[\d+, \d+\] +52\.1", text)
    assert re.search(r"held-out .* 75\.0 \[53, 89\] +40\.0 \[22, 61\]", text)
    assert "1 of 2 kept, 0 all failed, 1 all succeeded" in text
    assert "KL 0.002  entropy 0.28  clipped 0.01  ratio 1" in text


def test_ascii_has_no_other_characters(drive):
    for number in range(1, 10):
        text = drive(str(number), size=(120, 40), ascii=True)
        # The scroll bars and the cursor of tables are Textual's own.
        found = set(re.sub(r"[\x00-\x7f]", "", text))
        assert found <= set("▁▂▃▄▅▆▇▊▋▌▍▎▏▔"), f"pane {number}: {found}"


def test_tasks_are_shown_worst_first_with_their_instruction(drive):
    text = drive("3", size=(120, 40))
    worst, best = text.index("put the bowl on the stove"), text.index("put the bowl on the plate")
    assert worst < best
    assert "25.0 [17, 35]" in text


def test_a_run_without_updates_says_so_on_every_pane(drive, tmp_path):
    run = make_run(tmp_path, updates=0, status="running")
    for number, words in ((1, "update 0/40"), (2, "success"), (3, "No update"), (4, "No episodes"), (6, "No episodes")):
        assert words in drive(str(number), run=run)


def test_the_robot_pane_says_why_there_is_no_picture(drive, tmp_path):
    assert "not at work" in drive("5")
    assert "--readonly" in drive("5", run=make_run(tmp_path, status="running"), readonly=True)


def test_the_log_follows_levels_and_filters(drive):
    assert "the disk is full" in drive("7")
    text = drive("7", "l")
    assert "update 1 done" not in text
    assert "the reward is blind" in text
    text = drive("7", "l", "l")
    assert "the reward is blind" not in text
    assert "the disk is full" in text
    text = drive("7", "slash", *"blind", "enter")
    assert "1 of 3 lines" in text


def test_the_configuration_has_origins_and_a_filter(drive):
    text = drive("8", "slash", *"updates", "enter")
    assert re.search(r"grpo\.updates +40 +--updates", text)
    assert "env.suite" not in text


def test_the_reward_pane_shows_scores_and_the_scorers_own_check(drive):
    text = drive("6")
    assert "AUROC of success against failure 0.91" in text
    assert re.search(r"success 80 .*failure 70", text)


def test_the_system_pane_names_machine_and_versions(drive):
    text = drive("9", size=(120, 40))
    assert "somewhere" in text
    assert re.search(r"torch +2", text)
    assert "memory (GiB)" in text
