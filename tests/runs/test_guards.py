"""What a run is warned of: the rules on series with known answers, and that each trouble is told once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from vlacoach.runs import constants as names
from vlacoach.runs.config import GuardsConfig, TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.guards import (
    QUIET_LOOKS,
    AlarmBook,
    Finding,
    RunGuards,
    entropy_collapse,
    memory_growth,
    success_fall,
)
from vlacoach.runs.reporting import NullReporter

GIB = 2.0**30


class Listener(NullReporter):
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def message(self, text: str, level: str = "info") -> None:
        self.said.append((level, text))


# Entropy


def test_entropy_has_collapsed_below_its_share_and_not_at_it():
    start = [1.0, 2.0, 3.0]
    assert entropy_collapse([*start, 0.4, 0.4, 0.4], share=0.2, window=3) is None
    found = entropy_collapse([*start, 0.4, 0.4, 0.39], share=0.2, window=3)
    assert found is not None
    assert found.kind == "entropy"
    assert "0.397 nats a token over the last 3 updates, 2 at the start" in found.message
    assert "grpo.temperature" in found.advice


def test_one_low_update_is_no_collapse_and_neither_is_a_short_run():
    assert entropy_collapse([2.0, 2.0, 2.0, 2.0, 0.0], share=0.2, window=2) is None
    assert entropy_collapse([2.0, 2.0, 0.0], share=0.2, window=2) is None
    assert entropy_collapse([2.0, 2.0, 0.0, 0.0], share=0.2, window=2) is not None
    assert entropy_collapse([2.0, 2.0, 0.0, 0.0], share=0.0, window=2) is None


# Success


def test_success_has_fallen_once_the_intervals_lie_apart():
    # Five updates of 16 prompts: 48 of 80 is 0.455 to 0.729 with 99 % confidence, 22 of 80 at most 0.419, 28 0.494.
    start, prompts = [0.6] * 5, [16] * 10
    found = success_fall([*start, *[0.275] * 5], prompts, 0.99, 5)
    assert found is not None
    assert "from 60.0 % (updates 1 to 5) to 27.5 % (the last 5)" in found.message
    assert success_fall([*start, *[0.35] * 5], prompts, 0.99, 5) is None
    assert success_fall([*start, *[0.9] * 5], prompts, 0.99, 5) is None


def test_what_was_learned_and_forgotten_is_a_fall_too():
    learned = [0.45] * 5 + [0.6] * 5 + [0.75] * 5 + [0.6] * 5
    found = success_fall([*learned, *[0.4] * 5], [16] * 25, 0.99, 5)
    assert found is not None
    assert "from 75.0 % (updates 11 to 15) to 40.0 % (the last 5)" in found.message
    assert success_fall([*learned, *[0.6] * 5], [16] * 25, 0.99, 5) is None


def test_a_better_mean_of_fewer_prompts_does_not_hide_the_best_time():
    found = success_fall([1.0, 0.8, 0.4], [2, 100, 100], 0.99, 1)
    assert found is not None
    assert "from 80.0 % (updates 2 to 2)" in found.message


def test_one_noisy_update_is_no_fall():
    assert success_fall([0.6] * 9 + [0.0], [16] * 10, 0.99, 5) is None
    assert success_fall([0.6] * 5 + [0.0] * 4, [16] * 9, 0.99, 5) is None


def test_few_prompts_prove_nothing():
    assert success_fall([0.6] * 5 + [0.2] * 5, [16] * 10, 0.99, 5) is not None
    assert success_fall([0.6] * 5 + [0.2] * 5, [2] * 10, 0.99, 5) is None


def test_an_update_weighs_as_much_as_it_has_prompts():
    found = success_fall([1.0, 0.5, 0.0, 0.0], [90, 10, 50, 50], 0.99, 2)
    assert found is not None
    assert "from 95.0 %" in found.message


def test_chance_alone_is_hardly_ever_called_a_fall():
    rng = np.random.default_rng(0)
    runs = 40
    alarms = 0
    for _ in range(runs):
        rate = (rng.random((100, 16, 8)) < rng.beta(1, 1, (100, 16, 1))).mean((1, 2))  # Siblings resemble each other.
        alarms += any(success_fall(rate[:n], [16] * n, 0.99, 5) is not None for n in range(10, 101, 5))
    assert alarms <= 1


# Memory


def samples(resident, minutes: float = 60.0, every: float = 5.0) -> tuple[list[float], list[float]]:
    seconds = np.arange(0.0, 60 * minutes + every, every)
    return seconds.tolist(), [float(resident(second / 3600)) for second in seconds]


def test_a_leak_is_found_by_its_slope():
    found = memory_growth(*samples(lambda hour: (4 + hour) * GIB), 0.1)
    assert found is not None
    assert "grows by 1.00 GiB an hour, for 1:00:00 now" in found.message
    assert "--resume latest" in found.advice
    assert memory_growth(*samples(lambda hour: (4 + 0.3 * hour) * GIB), 0.1) is None


def test_the_threshold_is_a_share_of_the_memory_an_hour():
    # The first of the twelve bins has its middle at 1/24 of an hour.
    for growth, counts in ((0.42, True), (0.38, False)):
        assert (memory_growth(*samples(lambda hour, g=growth: (4 + g * hour) * GIB), 0.1) is not None) is counts


@pytest.mark.parametrize(
    "resident",
    [
        lambda hour: 4 * GIB,
        lambda hour: (4 + 2 * (hour > 0.5)) * GIB,
        lambda hour: (4 + 2 * math.sin(40 * hour)) * GIB,
        lambda hour: (6 - hour) * GIB,
        lambda hour: (4 + (hour * 10) % 1) * GIB,
    ],
    ids=["flat", "a jump", "a wave", "shrinking", "the rise and fall of updates"],
)
def test_what_does_not_grow_steadily_is_no_leak(resident):
    assert memory_growth(*samples(resident), 0.1) is None


def test_a_leak_shows_through_the_rise_and_fall_of_updates():
    assert memory_growth(*samples(lambda hour: (4 + hour + 0.5 * ((hour * 30) % 1)) * GIB), 0.1) is not None


def test_half_an_hour_is_needed():
    assert memory_growth(*samples(lambda hour: (4 + hour) * GIB, minutes=29), 0.1) is None
    assert memory_growth(*samples(lambda hour: (4 + hour) * GIB, minutes=30), 0.1) is not None
    assert memory_growth([], [], 0.1) is None


# Once, until it is over


def test_a_trouble_is_new_once_and_again_after_it_was_over():
    book, found = AlarmBook(), Finding("entropy", "low", "do something")
    assert book.new(["entropy"], [found]) == [found]
    assert book.new(["entropy"], [found]) == []
    for _ in range(QUIET_LOOKS - 1):
        assert book.new(["entropy"], []) == []
    assert book.new(["entropy"], [found]) == []  # It was not over yet.
    for _ in range(QUIET_LOOKS):
        book.new(["memory"], [])
    assert book.new(["entropy"], [found]) == []  # Nobody looked for it meanwhile.
    for _ in range(QUIET_LOOKS):
        book.new(["entropy"], [])
    assert book.new(["entropy"], [found]) == [found]


@pytest.fixture
def folder(tmp_path: Path):
    with RunFolder.create(tmp_path, "guarded", TrainConfig()) as made:
        yield made


def update(folder: RunFolder, step: int, entropy: float = 2.0, success: float = 0.6) -> None:
    folder.log_metrics(step, {names.TRAIN_ENTROPY: entropy, names.ROLLOUT_SUCCESS: success, names.ROLLOUT_GROUPS: 16.0})
    folder.log_metrics(step, {names.TIME_ELAPSED: 60.0 * step})


def test_alerts_are_written_once_with_advice(folder: RunFolder):
    listener = Listener()
    guards = RunGuards(folder, GuardsConfig(), listener)
    for step in range(1, 21):
        update(folder, step, *((2.0, 0.6) if step <= 5 else (0.01, 0.1)))
        guards.look()
    assert [(alert["kind"], alert["level"]) for alert in folder.alerts()] == [
        ("entropy", "warning"),
        ("success", "warning"),
    ]
    assert all(alert["advice"] for alert in folder.alerts())
    assert [level for level, _ in listener.said] == ["warning", "warning"]


def test_an_update_that_was_not_trained_on_has_no_entropy(folder: RunFolder):
    guards = RunGuards(folder, GuardsConfig(window=1), Listener())
    folder.log_metrics(1, {names.TRAIN_ENTROPY: 2.0})
    folder.log_metrics(2, {names.TRAIN_ENTROPY: float("nan")})
    folder.log_metrics(3, {names.ROLLOUT_SUCCESS: 0.0, names.ROLLOUT_GROUPS: 0.0})
    guards.look()
    assert folder.alerts() == []
    folder.log_metrics(4, {names.TRAIN_ENTROPY: 0.1})
    guards.look()
    assert [alert["kind"] for alert in folder.alerts()] == ["entropy"]


def test_a_resumed_run_does_not_repeat_its_alerts(folder: RunFolder):
    guards = RunGuards(folder, GuardsConfig(), Listener())
    for step in range(1, 13):
        update(folder, step, *((2.0, 0.6) if step <= 5 else (0.01, 0.6)))
        guards.look()
    assert len(folder.alerts()) == 1
    again = RunGuards(folder, GuardsConfig(), Listener())
    again.catch_up()
    for step in range(13, 16):
        update(folder, step, 0.01)
        again.look()
    assert len(folder.alerts()) == 1


def test_thresholds_can_be_switched_off(folder: RunFolder):
    guards = RunGuards(folder, GuardsConfig(entropy=0.0, success=None, memory=None), Listener())
    leak(folder, 0, 2)
    for step in range(1, 21):
        update(folder, step, *((2.0, 0.6) if step <= 5 else (0.0, 0.0)))
        guards.look()
    assert folder.alerts() == []


def leak(folder: RunFolder, first: float, last: float, start: float = 1e9) -> None:
    """A gibibyte an hour, from one hour after the start to another."""
    for second in np.arange(3600 * first, 3600 * last, 30.0):
        resident = (4 + second / 3600) * GIB
        folder.writer(names.SYSTEM_FILE).write({names.TIME: start + second, names.SYSTEM_RSS: resident})


def test_memory_is_judged_from_the_runs_own_samples(folder: RunFolder):
    leak(folder, 0, 2)
    guards = RunGuards(folder, GuardsConfig(), Listener())
    guards.catch_up()  # Those before are of a process that is gone.
    guards.look()
    assert folder.alerts() == []
    leak(folder, 0, 0.6, start=2e9)
    guards.look()
    assert folder.alerts() == []  # Ten minutes to warm up, and half an hour to judge.
    leak(folder, 0.6, 1.5, start=2e9)
    guards.look()
    (alert,) = folder.alerts()
    assert alert["kind"] == "memory"
    assert "GiB an hour" in alert["message"]
    leak(folder, 0, 0.5, start=1.9e9)  # The clock was set back.
    guards.look()
    assert len(folder.alerts()) == 1
