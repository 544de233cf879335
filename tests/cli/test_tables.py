from __future__ import annotations

import io

import pytest
from rich.console import Console

from vlacoach.cli.tables import comparison_table, evaluation_table
from vlacoach.errors import RunError
from vlacoach.runs.results import EvaluationResult, TaskResult, TrainResult, compare, read_comparisons, write_results


def result(*successes, states=tuple(range(30, 40))):
    tasks = tuple(
        TaskResult(task, f"task number {task}", states, (True,) * count + (False,) * (10 - count), (50,) * 10)
        for task, count in enumerate(successes)
    )
    return EvaluationResult("libero_goal", "held-out", "tiny", 0.0, (0,), tasks, 2.0)


def text(table):
    console = Console(file=io.StringIO(), width=120, markup=False)
    console.print(table)
    return console.file.getvalue()


def test_evaluation_table():
    drawn = text(evaluation_table(result(3, 10)))
    assert "greedy" in drawn
    assert "30.0 [11, 60]" in drawn
    assert "100.0 [72, 100]" in drawn
    assert "65.0 [43, 82]" in drawn


def test_comparison_table_has_tasks_overall_change_and_p_value():
    drawn = text(comparison_table(compare(result(2, 4), result(9, 4))))
    for part in ("20.0 [6, 51]", "90.0 [60, 98]", "+70.0", "+0.0", "+35.0", "7 gained, 0 lost", "p = 0.016"):
        assert part in drawn


def test_empty_task_is_a_dash():
    empty = EvaluationResult("s", "all", "tiny", 1.0, (0,), (TaskResult(0, "x", (), (), ()),), 0.0)
    assert " - " in text(evaluation_table(empty))


def test_only_equal_episodes_are_compared():
    with pytest.raises(RunError, match="not of the same"):
        compare(result(3), result(3, states=tuple(range(10))))
    with pytest.raises(RunError, match="not of the same"):
        compare(result(3), result(3, 4))


def test_results_round_trip_on_disk(tmp_path):
    comparison = compare(result(2, 4), result(9, 4))
    write_results(TrainResult(tmp_path, 3, 1.0, {"held-out": comparison}, {}), tmp_path / "results.json")
    assert read_comparisons(tmp_path / "results.json") == {"held-out": comparison}
    assert read_comparisons(tmp_path / "none.json") == {}


def test_episodes_are_sorted_by_task_in_their_order():
    class Episode:
        def __init__(self, task, init_state, success):
            self.task, self.init_state, self.success, self.length = task, init_state, success, 9

    made = EvaluationResult.from_episodes(
        [Episode(1, 5, True), Episode(0, 7, False), Episode(1, 4, False)], {0: "a", 1: "b"},
        suite="s", split="all", policy="p", temperature=1.0, seeds=(0,), seconds=1.0,
    )  # fmt: skip
    assert [(task.name, task.states, task.success) for task in made.tasks] == [
        ("a", (7,), (False,)),
        ("b", (5, 4), (True, False)),
    ]


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="different numbers"):
        TaskResult(0, "x", (1,), (True, False), (3,))
