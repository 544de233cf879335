"""Episodes of a policy as data: the same as those of an evaluation, with every control step."""

from __future__ import annotations

import numpy as np
import pytest
from toy_envs import toy_policy

from vlacoach.agents.episodes import play_episodes
from vlacoach.agents.evaluation import evaluate, make_envs
from vlacoach.agents.prompts import Prompt
from vlacoach.envs.simulator import Simulator, UnstableSimulationError
from vlacoach.errors import SimulatorError
from vlacoach.policies import load_policy
from vlacoach.runs.config import TrainConfig

PLAN = [Prompt(8, 30), Prompt(8, 31)]
ENV = {"suite": "libero_goal", "tasks": [8], "max_steps": 16, "num_envs": 1, "workers": 1}
CONFIG = TrainConfig.model_validate({"env": ENV, "seed": 3})


@pytest.mark.slow
@pytest.mark.sim
def test_episodes_are_those_of_an_evaluation_and_can_be_executed_again():
    policy = load_policy("tiny")
    envs = make_envs(CONFIG, policy)
    seen = {0: [], 1: []}
    try:
        expected = evaluate(
            policy, envs, PLAN, 1.0, CONFIG.seed, on_pictures=lambda slot, picture: seen[slot].append(picture)
        )
    finally:
        envs.close()
    played = list(play_episodes(policy, CONFIG, PLAN))
    for number, (episode, result) in enumerate(zip(played, expected, strict=True)):
        assert (episode.success, episode.length) == (result.success, result.length)
        assert (episode.index, episode.init_state) == (number, PLAN[number].init_state)
        images = episode.images["agentview"]
        assert images.shape == (episode.length, policy.image_size, policy.image_size, 3)
        looks = np.stack(seen[number])[:-1]
        np.testing.assert_array_equal(images[:: policy.chunk_size], looks)
        assert episode.states.shape[0] == episode.proprioception.shape[0] == episode.length
    assert played[0].task == "put_the_bowl_on_the_plate"
    simulator = Simulator("libero_goal")
    simulator.reset(0, 8, 30, CONFIG.env.settle_steps)
    for action, state in zip(played[0].actions, played[0].states, strict=True):
        np.testing.assert_array_equal(simulator.state(0), state)
        simulator.step(0, action)


def test_a_simulation_that_breaks_down_every_time_is_an_error(monkeypatch):
    def unstable(*args):
        raise UnstableSimulationError("It blew up.")

    monkeypatch.setattr(Simulator, "reset", unstable)
    with pytest.raises(SimulatorError, match="task 8, initial state 30, broke down in 3 attempts"):
        next(play_episodes(toy_policy(), CONFIG, PLAN))
