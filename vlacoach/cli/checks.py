"""What can be refused before anything heavy is loaded or a run folder is made."""

from __future__ import annotations

from vlacoach.errors import UnknownNameError
from vlacoach.runs.config import TrainConfig


def check_names(config: TrainConfig) -> None:
    """Check the names in a configuration that only other rooms know: suite, tasks, scorer.

    Raises:
        UnknownNameError: There is no such suite or scorer.
        ConfigError: The suite has no such task.
    """
    from vlacoach.envs.suites import get_suite
    from vlacoach.rewards.registry import available_scorers

    get_suite(config.env.suite).select(config.env.tasks)
    if config.reward.name not in available_scorers():
        raise UnknownNameError("reward", config.reward.name, available_scorers())
