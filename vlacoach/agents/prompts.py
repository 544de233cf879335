"""Which task and initial state is rolled out next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vlacoach.agents.seeding import Stream, numpy_generator
from vlacoach.envs.suites import check_init_state
from vlacoach.errors import ConfigError
from vlacoach.runs.indices import format_indices


@dataclass(frozen=True)
class Prompt:
    """What a group of episodes has in common.

    Attributes:
        task: Index of the task in the suite.
        init_state: Index of the initial state: 0 to 49 for official ones, 1000 and up for fresh ones.
    """

    task: int
    init_state: int

    def __post_init__(self) -> None:
        check_init_state(self.init_state)


class PromptSampler:
    """Deals (task, initial state) pairs without repetition until all were dealt, and then anew.

    Tasks take turns, in an order drawn anew each round, so every update has each task as often as the others to
    within two (one, where it begins with a round); each task goes through its states in an order of its own. The n-th
    prompt is a function of the seed and n alone: nothing needs saving to resume.

    Args:
        tasks: Indices of the tasks.
        states: Indices of the initial states.
        seed: Seed of the order.
        held_out: Initial states that are measured on, and so must not be dealt.

    Raises:
        ConfigError: There is nothing to deal, or a state does not exist or is held out.
    """

    def __init__(self, tasks: Sequence[int], states: Sequence[int], seed: int, held_out: Collection[int] = ()) -> None:
        if not tasks or not states:
            raise ConfigError("There is no task or no initial state to train on.", "Give at least one of each.")
        for state in states:
            check_init_state(state)
        if shared := set(states) & set(held_out):
            raise ConfigError(
                f"Training would use the initial states {format_indices(shared)} of its evaluation.",
                "Change env.states or evaluation.states.",
            )
        self.tasks = tuple(tasks)
        self.states = tuple(states)
        self._seed = seed

    def draw(self, start: int, count: int) -> list[Prompt]:
        """Prompts number ``start`` to ``start + count - 1``."""
        return [self._prompt(number) for number in range(start, start + count)]

    def _prompt(self, number: int) -> Prompt:
        turn, place = divmod(number, len(self.tasks))
        order = numpy_generator(self._seed, Stream.PROMPTS, 0, turn).permutation(len(self.tasks))
        which = int(order[place])
        epoch, position = divmod(turn, len(self.states))
        states = numpy_generator(self._seed, Stream.PROMPTS, 1, which, epoch).permutation(len(self.states))
        return Prompt(self.tasks[which], self.states[int(states[position])])
