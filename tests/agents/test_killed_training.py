"""``vlacoach train`` is killed at random moments and resumed, and ends with the very numbers of a run that was not.

The command is the real one, in processes of its own that are killed with SIGKILL; the world is the toy one, so that
hundreds of kills cost minutes. ``test_training_cycle`` does the same on real LIBERO.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterable

import pytest
from toy_house import House, assert_nothing_was_lost


def kill_at_changes(house: House, runs: str, changes: Iterable[int]) -> Counter[str]:
    """Kill at each of these changes of the run folder, one after the other, each time going on; in which stage."""
    stages: Counter[str] = Counter()
    for change in changes:
        trainer = house.start(runs, f"kill-at:{change}")
        if trainer.wait() == 0:
            break  # What was left to do had fewer changes.
        assert trainer.status == -signal.SIGKILL, trainer.output
        assert_nothing_was_lost(house, runs)
        stages[(house.stages(runs) or ["start"])[-1]] += 1
    return stages


def kill_in_stage(house: House, runs: str, stage: str, after: float) -> str:
    """Kill some time after a stage has begun, or the next, if that comes first; in which stage it was, "" for none."""
    before = len(house.stages(runs))
    trainer = house.start(runs)
    trainer.until(lambda: stage in house.stages(runs)[before:])
    time.sleep(after)
    trainer.signal(signal.SIGKILL)
    if trainer.wait() == 0:
        return ""  # The stage did not come any more.
    assert trainer.status == -signal.SIGKILL, trainer.output
    assert_nothing_was_lost(house, runs)
    return house.stages(runs)[-1]


def test_kills_between_any_two_changes_of_the_folder_change_no_number(house: House):
    stages = kill_at_changes(house, "changes", [3, 12, 40, 40, 75])
    assert sum(stages.values()) == 5
    assert house.finish("changes") == house.whole


def test_kills_in_each_stage_change_no_number(house: House):
    rng = random.Random(0)
    for stage in ("evaluation", "rollout", "reward", "update", "checkpoint"):
        kill_in_stage(house, "stages", stage, 0.05 * rng.random())
    assert house.finish("stages") == house.whole


@pytest.mark.slow
def test_a_hundred_kills_change_no_number(house: House):
    """Prints in which stages they came, for docs/reliability.md; run it with ``-s``."""
    rng = random.Random(1)
    stages: Counter[str] = Counter()
    for number in range(10):
        runs = f"many_{number}"
        for _ in range(5):
            stages += kill_at_changes(house, runs, [rng.randint(1, 90)])
            stage = rng.choice(["evaluation", "rollout", "reward", "filter", "advantage", "update", "checkpoint"])
            stages[kill_in_stage(house, runs, stage, 0.3 * rng.random() ** 2)] += 1
        assert house.finish(runs) == house.whole
    del stages[""]
    print(f"{sum(stages.values())} kills: {dict(stages)}")
    assert sum(stages.values()) >= 20
