from __future__ import annotations

from vlacoach.runs.results import EvaluationResult, TaskResult
from vlacoach.runs.statistics import wilson_interval
from vlacoach.runs.task_table import Count, TaskRow, task_rows, window


def episodes(step, task, *successes, valid=True):
    return [{"step": step, "task": task, "success": success, "valid": valid} for success in successes]


def evaluation(*tasks):
    results = tuple(TaskResult(task, name, (30, 31), success, (9, 9)) for task, name, success in tasks)
    return EvaluationResult("libero_goal", "held-out", "tiny", 1.0, (0,), results, 1.0)


def test_first_and_last_updates_and_held_out_states_by_task():
    lines = [*episodes(1, 4, True, False), *episodes(2, 4, True, True), *episodes(3, 4, False), *episodes(3, 1, True)]
    rows = task_rows(lines, evaluation((4, "push", (True, False))), evaluation((4, "push", (True, True))))
    assert rows == [
        TaskRow(1, "", Count(), Count(1, 1), Count(), Count()),
        TaskRow(4, "push", Count(1, 2), Count(0, 1), Count(1, 2), Count(2, 2)),
    ]
    assert rows[1].first.interval == wilson_interval(1, 2)


def test_a_tenth_of_the_updates_counts_as_first_and_as_last():
    lines = [line for step in range(1, 41) for line in episodes(step, 0, step <= 4, step > 36)]
    assert window(lines) == 4
    (row,) = task_rows(lines, None, None)
    assert (row.first, row.last) == (Count(4, 8), Count(4, 8))
    assert task_rows(lines, None, None)[0].first == Count(4, 8)
    assert window(lines[:2]) == 1


def test_invalid_episodes_and_lines_without_a_task_do_not_count():
    lines = [*episodes(1, 0, True), *episodes(1, 0, True, valid=False), {"step": 1}, {"task": 0, "success": True}]
    (row,) = task_rows(lines, None, None)
    assert row.first == Count(1, 1)


def test_before_any_episode_there_are_the_tasks_of_the_evaluation():
    assert task_rows([], evaluation((2, "pull", (False, False))), None) == [
        TaskRow(2, "pull", Count(), Count(), Count(0, 2), Count())
    ]
    assert task_rows([], None, None) == []
