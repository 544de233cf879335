"""Which task and initial state comes next."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlacoach.agents.evaluation import evaluation_plan
from vlacoach.agents.prompts import Prompt, PromptSampler
from vlacoach.errors import ConfigError


@settings(max_examples=30, deadline=None)
@given(tasks=st.integers(1, 6), states=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_every_prompt_is_dealt_once_before_any_is_dealt_twice(tasks: int, states: int, seed: int):
    every = {Prompt(task, state) for task in range(tasks) for state in range(10, 10 + states)}
    sampler = PromptSampler(range(tasks), range(10, 10 + states), seed)
    for epoch in range(3):
        dealt = sampler.draw(epoch * len(every), len(every))
        assert len(dealt) == len(every)
        assert set(dealt) == every


def test_the_nth_prompt_does_not_depend_on_what_was_drawn_before():
    together = PromptSampler([2, 5, 7], range(4), seed=1).draw(0, 30)
    sampler = PromptSampler([2, 5, 7], range(4), seed=1)
    apart = [sampler.draw(number, 1)[0] for number in reversed(range(30))][::-1]
    assert together == apart


def test_the_order_comes_from_the_seed_and_changes_from_round_to_round():
    orders = [tuple(PromptSampler(range(5), range(5), seed).draw(0, 25)) for seed in range(5)]
    assert len(set(orders)) == 5
    sampler = PromptSampler(range(5), range(5), seed=0)
    rounds = [tuple(prompt.task for prompt in sampler.draw(5 * turn, 5)) for turn in range(5)]
    assert len(set(rounds)) > 1
    assert sampler.draw(0, 25) != sampler.draw(25, 25)


@pytest.mark.parametrize("count", [7, 10, 16, 20])
def test_tasks_take_turns(count: int):
    sampler = PromptSampler(range(10), range(30), seed=3)
    for turn in range(20):
        assert sorted(prompt.task for prompt in sampler.draw(10 * turn, 10)) == list(range(10))
    for update in range(20):
        dealt = Counter(prompt.task for prompt in sampler.draw(update * count, count))
        often = [dealt[task] for task in range(10)]
        # A batch may begin and end in the middle of a round.
        assert max(often) - min(often) <= 2


@pytest.mark.parametrize(("tasks", "states"), [([], [1]), ([1], [])])
def test_nothing_to_train_on_is_an_error(tasks: list[int], states: list[int]):
    with pytest.raises(ConfigError, match="no task or no initial state"):
        PromptSampler(tasks, states, seed=0)


@pytest.mark.parametrize("state", [-2, 50, 999])
def test_states_that_do_not_exist_are_refused_before_anything_is_played(state: int):
    with pytest.raises(ConfigError, match=f"no initial state {state}"):
        PromptSampler([1], [0, state], seed=0)
    with pytest.raises(ConfigError, match=f"no initial state {state}"):
        evaluation_plan([1], [0, state], trials=2)


def test_fresh_states_are_dealt_like_others():
    dealt = PromptSampler([0, 1], range(1000, 1003), seed=3).draw(0, 6)
    assert {(prompt.task, prompt.init_state) for prompt in dealt} == set(product((0, 1), (1000, 1001, 1002)))


def test_states_that_are_held_out_are_never_dealt_however_often_they_are_dealt_anew():
    sampler = PromptSampler([0, 1], range(7), seed=3, held_out=range(7, 12))
    dealt = {prompt.init_state for prompt in sampler.draw(0, 2 * 7 * 20)}
    assert dealt == set(range(7))
    with pytest.raises(ConfigError, match="initial states 5,6 of its evaluation"):
        PromptSampler([0, 1], range(7), seed=3, held_out=(5, 6, 9))
