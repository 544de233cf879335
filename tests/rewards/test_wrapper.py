"""The wrapper on worlds whose rewards can be worked out by hand, and once on the simulator."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from trajectories import make_trajectory

from vlacoach.errors import ConfigError, NonFiniteError, VlacoachError
from vlacoach.rewards import ReferenceBank, SelfReferentialReward, make_scorer, self_referential_reward

NEAREST, HALFWAY, FARTHEST = 0.6 / (1 + math.exp(-5)), 0.3, 0.6 / (1 + math.exp(5))
GOAL, START, LIMIT, BREAKDOWN = 20, 10, 3, 99
MODES = list(AutoresetMode)


def encode(images: np.ndarray) -> torch.Tensor:
    """One patch of one feature: the brightness of the picture, which is where the world stands."""
    assert images.dtype == np.uint8
    return torch.from_numpy(images[:, :1, 0, :1].astype(np.float32))


class LineEnvs(gymnasium.vector.VectorEnv):
    """Worlds that stand somewhere on a line, 10 at first; actions move them, and 20 is the goal.

    An episode is cut off after three steps. The action 99 breaks a world down.

    Args:
        tasks: One a world.
        mode: How worlds reset.
    """

    def __init__(self, tasks: list[int], mode: AutoresetMode = AutoresetMode.DISABLED) -> None:
        self.num_envs = len(tasks)
        self.mode = mode
        self.metadata = {"autoreset_mode": mode}
        picture = gymnasium.spaces.Box(0, 255, (2, 2, 3), np.uint8)
        space = gymnasium.spaces.Dict({"image": picture, "task": gymnasium.spaces.Discrete(10)})
        self.single_observation_space = space
        self.single_action_space = gymnasium.spaces.Box(-100, 100, (), np.int64)
        self.observation_space = batch_space(space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.tasks = np.array(tasks)
        self.place = np.full(self.num_envs, START)
        self.age = np.zeros(self.num_envs, dtype=np.int64)
        self.done = np.ones(self.num_envs, dtype=np.bool_)
        self.broken_at_reset: list[int] = []

    def _restart(self, mask: np.ndarray) -> None:
        self.place[mask], self.age[mask], self.done[mask] = START, 0, False

    def _see(self) -> dict[str, Any]:
        picture = np.broadcast_to(self.place[:, None, None, None], (self.num_envs, 2, 2, 3)).astype(np.uint8)
        return {"image": picture, "task": self.tasks.copy()}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        mask = (options or {}).pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_))
        self._restart(mask)
        info: dict[str, Any] = {"init_state": np.arange(self.num_envs)}
        if self.broken_at_reset:
            info["invalid"] = np.isin(np.arange(self.num_envs), self.broken_at_reset)
            self.done |= info["invalid"]
        return self._see(), info

    def step(self, actions: Any) -> Any:
        active = ~self.done
        if self.mode is AutoresetMode.NEXT_STEP:
            self._restart(self.done.copy())
        actions = np.asarray(actions)
        invalid = active & (actions == BREAKDOWN)
        self.place = self.place + np.where(active & ~invalid, actions, 0)
        self.age += active
        success = active & ~invalid & (self.place == GOAL)
        truncated = active & ~success & (invalid | (self.age == LIMIT))
        ended = success | truncated
        self.done |= ended
        info: dict[str, Any] = {"init_state": np.arange(self.num_envs), "executed": active.astype(np.int64)}
        if invalid.any():
            info["invalid"] = invalid
        observation = self._see()
        if self.mode is AutoresetMode.SAME_STEP and ended.any():
            final = np.full(self.num_envs, None, dtype=object)
            for world in np.flatnonzero(ended):
                final[world] = {key: value[world] for key, value in observation.items()}
            info |= {"final_obs": final, "_final_obs": ended}
            self._restart(ended)
            observation = self._see()
        return observation, success.astype(np.float64), success, truncated, info


def standing_at(place: float, task: int = 0):
    """A success that ended somewhere."""
    return make_trajectory(torch.tensor([[1.0], [place]]), True, task=task)


def place_scorer(**rule: Any):
    """Embeds an episode as the place where it ended."""
    return make_scorer("siglip", pooling="last-k", pooling_k=1, rule=rule)


def wrap(envs: LineEnvs, references: list[tuple[float, int]] = (), **options: Any) -> SelfReferentialReward:
    scorer = options.pop("scorer", None) or place_scorer()
    bank = ReferenceBank()
    bank.add(scorer, [standing_at(*reference) for reference in references])
    return SelfReferentialReward(envs, scorer, bank, encode=encode, **options)


def play(envs: SelfReferentialReward, plans: list[list[list[int]]]) -> list[list[list[float]]]:
    """Play episodes in each world, and give the rewards of their steps.

    Args:
        envs: With any autoreset mode.
        plans: Of each world, the actions of its episodes.
    """
    mode = envs.metadata["autoreset_mode"]
    envs.reset()
    rewards: list[list[list[float]]] = [[[]] for _ in plans]
    number = np.zeros(len(plans), dtype=np.int64)
    resting = np.zeros(len(plans), dtype=np.bool_)
    while any(n < len(plan) for n, plan in zip(number, plans, strict=True)):
        actions = np.zeros(len(plans), dtype=np.int64)
        for world, plan in enumerate(plans):
            if not resting[world] and number[world] < len(plan):
                actions[world] = plan[number[world]][len(rewards[world][number[world]])]
        _, reward, terminated, truncated, _ = envs.step(actions)
        for world, plan in enumerate(plans):
            if resting[world] or number[world] >= len(plan):
                assert reward[world] == 0.0 or number[world] >= len(plan)
                continue
            rewards[world][-1].append(float(reward[world]))
            if terminated[world] or truncated[world]:
                number[world] += 1
                rewards[world] += [[]] if number[world] < len(plan) else []
        ended = terminated | truncated
        resting = ended & (mode is AutoresetMode.NEXT_STEP)
        if mode is AutoresetMode.DISABLED and ended.any():
            envs.reset(options={"reset_mask": ended})
    return rewards


# ---------------------------------------------------------------- reward at the end


@pytest.mark.parametrize("mode", MODES)
def test_the_graded_reward_comes_with_the_last_step_in_closed_form(mode: AutoresetMode):
    # From the reference at 20, the failures end 7, 3, 11 and 5 away; each is compared with those before it.
    envs = wrap(LineEnvs([0], mode), [(20, 0)])
    plans = [[[1, 1, 1], [5, 1, 1], [-1, 0, 0], [5, 5], [1, 1, 3]]]
    between = 0.6 / (1 + math.exp(-10 * (0.5 - 2 / 8)))
    expected = [[0, 0, HALFWAY], [0, 0, NEAREST], [0, 0, FARTHEST], [0, 1], [0, 0, between]]
    for found, wanted in zip(play(envs, plans)[0], expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("references", "distances"),
    [
        # Too far apart for a cluster: their mean, 30, is the reference.
        ([20.0, 40.0], [17.0, 11.0, 0.0]),
        # Two clusters, at 20.25 and 39.75, and the nearer one counts.
        ([20.0, 20.5, 39.5, 40.0], [7.25, 1.25, 9.75]),
    ],
)
def test_references_at_several_places_count_as_the_rule_has_it(references: list[float], distances: list[float]):
    envs = wrap(LineEnvs([0] * 3), [(place, 0) for place in references])
    rewards = [one[0][-1] for one in play(envs, [[[1, 1, 1]], [[3, 3, 3]], [[21, -1, 0]]])]
    z = (np.array(distances) - min(distances)) / (max(distances) - min(distances))
    np.testing.assert_allclose(rewards, 0.6 / (1 + np.exp(-10 * (0.5 - z))), atol=1e-6)


def test_only_the_latest_failures_of_the_task_are_compared_with():
    envs = wrap(LineEnvs([0]), [(20, 0)], window=2)
    plans = [[[-9, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 0]]]
    rewards = [one[-1] for one in play(envs, plans)[0]]
    # The first, 19 away, is forgotten by the time of the last, which is then the farthest.
    assert rewards == pytest.approx([HALFWAY, NEAREST, NEAREST, FARTHEST])


def test_failures_that_end_together_are_compared_with_each_other():
    envs = wrap(LineEnvs([0, 0, 0, 1]), [(20, 0), (15, 1)])
    rewards = [one[0][-1] for one in play(envs, [[[1, 1, 1]], [[0, 0, 0]], [[2, 2, 2]], [[0, 0, 0]]])]
    between = 0.6 / (1 + math.exp(-10 * (0.5 - 3 / 6)))
    assert rewards == pytest.approx([between, FARTHEST, NEAREST, HALFWAY])


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_graded_until_a_success_of_the_task_is_known(mode: AutoresetMode):
    envs = wrap(LineEnvs([0, 1], mode))
    # World 0 succeeds in its second episode, world 1 never; a success elsewhere teaches nothing about task 1.
    plans = [[[1, 1, 1], [0, 5, 5], [2, 2, 2]], [[1, 1, 1], [0, 0, 0], [2, 2, 2]]]
    first, second = ([one[-1] for one in world] for world in play(envs, plans))
    assert first == pytest.approx([0.0, 1.0, NEAREST])
    assert second == [0.0, 0.0, 0.0]
    assert envs.bank.tasks == [0]


def test_a_success_is_a_reference_to_a_failure_of_the_same_step():
    envs = wrap(LineEnvs([0, 0]))
    rewards = play(envs, [[[2, 2, 2]], [[2, 2, 6]]])
    assert [one[0][-1] for one in rewards] == pytest.approx([HALFWAY, 1.0])


def test_without_learning_the_bank_stays_as_it_is():
    envs = wrap(LineEnvs([0]), [(12, 0)], learn=False)
    rewards = play(envs, [[[10], [5, 0, 0], [2, 0, 0]]])
    assert len(envs.bank) == 1
    assert [one[-1] for one in rewards[0]] == pytest.approx([1.0, HALFWAY, NEAREST])


def test_the_constants_are_those_of_the_scorer():
    scorer = place_scorer(success_reward=2.0, ceiling=0.1)
    envs = wrap(LineEnvs([0]), [(20, 0)], scorer=scorer)
    assert [one[-1] for one in play(envs, [[[10], [1, 1, 1]]])[0]] == pytest.approx([2.0, 0.05])


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_broken_episodes_earn_nothing_and_teach_nothing(mode: AutoresetMode, dense: bool):
    envs = wrap(LineEnvs([0], mode), [(20, 0)], dense=dense)
    rewards = play(envs, [[[0, BREAKDOWN], [BREAKDOWN], [1, 1, 1]]])[0]
    assert rewards[:2] == [[0.0, 0.0], [0.0]]
    assert sum(rewards[2]) == pytest.approx(0.5 - 7 / 17 if dense else HALFWAY)
    assert len(envs.bank) == 1


def test_a_world_that_breaks_at_its_reset_is_left_alone():
    inner = LineEnvs([0, 0])
    envs = wrap(inner, [(20, 0)], dense=True)
    envs.reset()
    envs.step(np.ones(2))
    inner.broken_at_reset = [1]
    *_, info = envs.reset()
    assert info["_closeness"].tolist() == [True, False]
    *_, info = envs.step(np.ones(2))
    assert info["_closeness"].tolist() == [True, False]
    inner.broken_at_reset = []
    *_, info = envs.reset(options={"reset_mask": np.array([False, True])})
    assert info["closeness"] == pytest.approx([closeness(11), closeness(10)])


def test_a_reset_forgets_the_episode_it_cuts_short():
    envs = wrap(LineEnvs([0, 0]), [(20, 0)])
    envs.reset()
    envs.step(np.array([7, 1]))
    envs.reset(options={"reset_mask": np.array([True, False])})
    for _ in range(2):
        _, reward, _, truncated, _ = envs.step(np.array([1, 1]))
    assert truncated.tolist() == [False, True]
    assert reward == pytest.approx([0.0, HALFWAY])
    reward = envs.step(np.array([1, 1]))[1]
    assert reward == pytest.approx([HALFWAY, 0.0])  # Both came to 13, and tied failures are halfway.


def test_the_plain_outcome_asks_for_no_pictures():
    envs = SelfReferentialReward(LineEnvs([0]), make_scorer("success"))
    assert [one[-1] for one in play(envs, [[[1, 1, 1], [10], [2, 2, 2]]])[0]] == [0.0, 1.0, 0.0]
    assert len(envs.bank) == 0


def test_frames_are_kept_for_a_scorer_that_looks_for_itself():
    scorer = make_scorer("pixels")
    bank = ReferenceBank()
    win = make_trajectory(torch.ones(1, 1), True)
    win.frames = torch.full((2, 2, 2, 3), 20, dtype=torch.uint8)
    bank.add(scorer, [win])
    envs = SelfReferentialReward(LineEnvs([0, 0]), scorer, bank)
    rewards = play(envs, [[[1, 1, 1]], [[2, 2, 2]]])
    assert [one[0][-1] for one in rewards] == pytest.approx([FARTHEST, NEAREST])


# ---------------------------------------------------------------- reward at every step


def closeness(place: float, reference: float = 20.0) -> float:
    """Potential of an episode that began at 10."""
    distance, first = abs(place - reference), abs(START - reference)
    return -distance / (distance + first)


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("mode", MODES)
def test_each_step_is_paid_by_the_change_in_closeness(mode: AutoresetMode, discount: float):
    # Successes used to end at 22, so that one which ends at 20 has 0 for its potential by definition alone.
    envs = wrap(LineEnvs([0, 1], mode), [(22, 0), (40, 1)], dense=True, discount=discount)
    plans = [[[3, -2, 4], [8, 2]], [[1, 1, 1], [5, 0, 0]]]
    rewards = play(envs, plans)
    for world, reference in enumerate([22.0, 40.0]):
        for found, plan in zip(rewards[world], plans[world], strict=True):
            places = [START, *np.cumsum(plan) + START]
            phi = [closeness(place, reference) for place in places]
            won = places[-1] == GOAL
            phi[-1] = 0.0 if won else phi[-1]
            steps = [discount * after - before for before, after in pairwise(phi)]
            steps[-1] += won
            np.testing.assert_allclose(found, steps, atol=1e-6)
            # The sum telescopes: what an episode earns depends on where it began and ended alone.
            total = sum(discount**t * reward for t, reward in enumerate(found))
            end = discount ** len(found) * phi[-1] - phi[0] + (discount ** (len(found) - 1) if won else 0.0)
            assert total == pytest.approx(end, abs=1e-6)


def test_a_detour_earns_what_the_straight_way_does():
    plans = [[[2, 2, 2]], [[-5, 30, -19]], [[6, 0, 0]], [[0, 0, 0]]]
    sums = [sum(world[0]) for world in play(wrap(LineEnvs([0] * 4), [(20, 0)], dense=True), plans)]
    assert sums == pytest.approx([0.5 - 4 / 14] * 3 + [0.0], abs=1e-6)


def test_closeness_is_reported_from_minus_one_half_on():
    envs = wrap(LineEnvs([0, 1]), [(20, 0)], dense=True)
    _, info = envs.reset()
    # Nobody knows how to do task 1.
    assert info["closeness"] == pytest.approx([-0.5, 0.0])
    for action, place in [([5, 5], 15), ([-5, 0], 10)]:
        _, reward, *_, info = envs.step(np.array(action))
        assert info["closeness"] == pytest.approx([closeness(place), 0.0], abs=1e-6)
        assert info["_closeness"].all()
        assert reward[1] == 0.0
    *_, truncated, info = envs.step(np.array([1, 1]))
    assert truncated.all()
    assert info["closeness"][0] == pytest.approx(closeness(11), abs=1e-6)
    assert not envs.step(np.array([1, 1]))[-1]["_closeness"].any()


def test_references_stay_what_they_were_at_the_start_of_an_episode():
    envs = wrap(LineEnvs([0, 0]), [(12, 0)], dense=True)
    envs.reset()
    envs.step(np.array([10, 0]))  # World 0 succeeds at 20 and moves the reference for those that start from now on.
    assert len(envs.bank) == 2
    envs.reset(options={"reset_mask": np.array([True, False])})
    reward = envs.step(np.array([1, 1]))[1]
    assert reward == pytest.approx([closeness(11, 16.0) + 0.5, closeness(11, 12.0) + 0.5], abs=1e-6)


def test_a_start_at_the_reference_has_no_closeness_to_gain():
    envs = wrap(LineEnvs([0]), [(10, 0)], dense=True)
    rewards = play(envs, [[[0, 1, -1]]])
    assert rewards[0][0] == pytest.approx([0.0, -1.0, 1.0])


def test_success_alone_is_paid_where_the_outcome_is_the_reward():
    envs = SelfReferentialReward(LineEnvs([0]), make_scorer("success"), dense=True)
    assert play(envs, [[[1, 1, 1], [1, 9]]])[0] == [[0.0, 0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("dense", [False, True])
def test_a_trained_scorer_embeds_the_episode_as_an_agent_would(dense: bool):
    def walk(*places: float, success: bool = False):
        looks = torch.tensor(places)[:, None]
        return make_trajectory(looks[:-1], success, terminal=looks[-1])

    win = walk(10, 13, 17, 20, success=True)
    scorer = make_scorer("siglip-t", feature_dim=1, steps=5)
    scorer.fit([win, walk(10, 11, 9), walk(11, 14, 16, 20, success=True)])
    bank = ReferenceBank()
    bank.add(scorer, [win])
    envs = SelfReferentialReward(LineEnvs([0, 0, 0]), scorer, bank, encode=encode, dense=dense)
    rewards = [sum(world[0]) for world in play(envs, [[[1, 1, 1]], [[3, 3, 3]], [[1, -2, 2]]])]
    ends = [walk(10, 11, 12, 13), walk(10, 13, 16, 19), walk(10, 11, 9, 11)]
    start, *distance = np.abs(scorer.embed_all([walk(10), *ends]) - scorer.embed(win)).ravel()
    if dense:
        expected = [0.5 - one / (one + start) for one in distance]
    else:
        expected = self_referential_reward(
            scorer.embed_all(ends), [0] * 3, [0] * 3, references=[scorer.embed(win)], reference_task=[0]
        )
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    assert len(np.unique(np.round(rewards, 3))) == 3


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("value", "error", "message"), [(math.nan, NonFiniteError, "not finite"), (0.0, VlacoachError, "all zeros")]
)
def test_embeddings_that_say_nothing_stop_with_the_world(dense: bool, value: float, error: type, message: str):
    def damaged(images: np.ndarray) -> torch.Tensor:
        features = encode(images)
        return torch.where(features == 13.0, value, features)

    envs = wrap(LineEnvs([0, 0]), [(20, 0)], dense=dense)
    envs.encode = damaged
    with pytest.raises(error, match=rf"slot 1 \(task 0, initial state 1\).*{message}"):
        play(envs, [[[0, 0, 0]], [[1, 1, 1]]])


def test_what_does_not_fit_is_refused():
    scorer = place_scorer()
    with pytest.raises(ConfigError, match=r"encode=policy\.encode"):
        SelfReferentialReward(LineEnvs([0]), scorer)
    with pytest.raises(ConfigError, match="untrained"):
        SelfReferentialReward(LineEnvs([0]), make_scorer("siglip-t", feature_dim=1), encode=encode)
    for options in ({"discount": 1.5}, {"window": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            SelfReferentialReward(LineEnvs([0]), scorer, encode=encode, **options)
    with pytest.raises(ConfigError, match="task"):
        SelfReferentialReward(gymnasium.make_vec("CartPole-v1"), scorer, encode=encode)
    silent = LineEnvs([0])
    silent.metadata = {}
    with pytest.raises(ConfigError, match="autoreset_mode"):
        SelfReferentialReward(silent, scorer, encode=encode)


# ---------------------------------------------------------------- the simulator


@pytest.mark.sim
def test_failures_in_the_simulator_are_graded_by_what_they_showed():
    from vlacoach.envs.vector import LiberoVectorEnv
    from vlacoach.policies import load_policy

    policy = load_policy("tiny")
    inner = LiberoVectorEnv(
        2, task=1, workers=1, chunk_size=8, image_size=policy.image_size, max_steps=16, autoreset_mode="SameStep"
    )
    scorer, bank = make_scorer("siglip"), ReferenceBank()
    reference = torch.linspace(-1, 1, policy.feature_dim)
    bank.add(scorer, [make_trajectory(reference[None], True, task=1)])
    envs = SelfReferentialReward(inner, scorer, bank, encode=policy.encode)
    generator = np.random.default_rng(0)
    distances: list[float] = []
    try:
        observation, _ = envs.reset(seed=0)
        for _ in range(2):
            shown = [[picture] for picture in observation["image"]]
            for _ in range(2):
                actions = generator.uniform(-1, 1, (2, 8, 7)).astype(np.float32)
                observation, reward, terminated, truncated, info = envs.step(actions)
                final = truncated.all()
                pictures = [last["image"] for last in info["final_obs"]] if final else observation["image"]
                for looks, picture in zip(shown, pictures, strict=True):
                    looks.append(picture)
            assert truncated.all()
            assert not terminated.any()
            for looks in shown:
                embedding = policy.encode(np.stack(looks)).mean(dim=(0, 1))
                distances.append(float((embedding - reference).norm()))
            z = (np.array(distances) - min(distances)) / (max(distances) - min(distances))
            np.testing.assert_allclose(reward, 0.6 / (1 + np.exp(-10 * (0.5 - z[-2:]))), atol=1e-3)
    finally:
        envs.close()
