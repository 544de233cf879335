"""Scripted experts on the real simulator, and what keeps their labels clean."""

import numpy as np
import pytest

from vlacoach.data.hdf5 import DemonstrationReader
from vlacoach.envs.experts import get_expert, get_experts, motion, run_expert
from vlacoach.envs.experts.collection import collect
from vlacoach.envs.simulator import Simulator
from vlacoach.errors import ConfigError, UnknownNameError

LEVELS = {-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0}


@pytest.fixture(scope="module")
def goal():
    return Simulator("libero_goal", image_size=32)


def test_snap_gives_levels_and_true_zeros():
    error = np.array([0.0, -0.003, 0.005, -0.012, 0.03, -1.0])
    action = motion.snap(error, motion.TRANSLATION_LEVELS)
    np.testing.assert_array_equal(action, [0.0, 0.0, 0.25, -0.5, 1.0, -1.0])
    assert not np.signbit(action[1])


def test_the_funnel_lifts_only_away_from_the_goal():
    goal_position = np.array([0.1, 0.2, 0.9])
    above = np.array([0.105, 0.2, 1.2])
    np.testing.assert_array_equal(motion.funnel(goal_position, above, 0.1), goal_position)
    np.testing.assert_allclose(motion.funnel(goal_position, np.zeros(3), 0.1), [0.1, 0.2, 1.0])
    assert goal_position[2] == 0.9


def test_experts_that_do_not_exist_are_named():
    with pytest.raises(UnknownNameError, match="libero_gaol"):
        get_expert("libero_gaol", 0)
    with pytest.raises(ConfigError, match="task 10") as caught:
        get_expert("libero_goal", 10)
    assert "0, 1, 2" in caught.value.hint


def test_every_promised_task_has_an_expert():
    assert sorted(get_experts("libero_goal")) == list(range(10))
    assert len(get_experts("libero_spatial")) >= 8
    assert len(get_experts("libero_object")) >= 8


@pytest.mark.sim
@pytest.mark.parametrize("task", [1, 6, 8, 9])
def test_experts_succeed_quickly_with_clean_labels(goal, task):
    for state in (4, 31):
        episode = run_expert(goal, 0, task, state)
        assert episode.success
        assert goal.success(0)
        assert episode.length <= 100
        assert set(np.unique(episode.labels[:, :3])) <= LEVELS
        assert not episode.labels[:, 3:6].any()
        assert set(np.unique(episode.labels[:, 6])) == {-1.0, 1.0}
        np.testing.assert_array_equal(episode.labels, episode.actions)
        assert len(episode.states) == len(episode.proprioception) == len(episode.joints) == episode.length


@pytest.mark.sim
def test_noise_disturbs_what_is_executed_and_not_the_labels(goal):
    runs = [run_expert(goal, 0, 8, 5, noise=0.2, rng=np.random.default_rng(3), render=True) for _ in range(2)]
    episode = runs[0]
    assert episode.success
    difference = episode.actions - episode.labels
    assert 0.05 < difference[:, :3].std() < 0.3
    assert 0.02 < difference[:, 3:6].std() < 0.1
    np.testing.assert_array_equal(difference[:, 6], 0.0)
    assert set(np.unique(episode.labels[:, :3])) <= LEVELS
    assert np.abs(episode.actions).max() <= 1.0
    np.testing.assert_array_equal(runs[1].actions, episode.actions)
    np.testing.assert_array_equal(runs[1].states, episode.states)
    assert episode.images["agentview"].shape == (episode.length, 32, 32, 3)
    bowl = episode.object_positions[:, episode.object_names.index("akita_black_bowl_1")]
    plate = episode.object_positions[:, episode.object_names.index("plate_1")]
    assert np.linalg.norm((bowl - plate)[-1]) < 0.06 < np.linalg.norm((bowl - plate)[0])
    with pytest.raises(ConfigError, match="random generator"):
        run_expert(goal, 0, 8, 5, noise=0.2)


@pytest.mark.sim
def test_a_dropped_object_is_picked_up_again(goal):
    """The robot is told to open its hand in mid-air; the expert, which sees only the state, starts over."""
    goal.reset(0, 8, 2)
    view = goal.view(0)
    forced = 0
    success = False
    for step, action in enumerate(get_expert("libero_goal", 8)(view)):
        if forced < 10 and (forced or view.body_position("akita_black_bowl_1_main")[2] > 0.93):
            action = np.array([0, 0, 0, 0, 0, 0, -1.0])
            forced += 1
        success = goal.step(0, action)
        if success or step > 200:
            break
    assert forced == 10
    assert success


@pytest.mark.slow
@pytest.mark.sim
def test_collecting_resumes_and_does_not_depend_on_who_made_an_episode(tmp_path):
    options = {"states": [0, 7], "noise": 0.1, "image_size": 32, "seed": 5}
    counts = []
    files = collect("libero_goal", [8], 1, tmp_path / "a", workers=1, progress=counts.append, **options)
    before = files[8].stat().st_mtime_ns
    assert sum(counts) == 1
    collect("libero_goal", [8], 3, tmp_path / "a", workers=2, progress=counts.append, **options)
    assert sum(counts) == 4
    assert files[8].stat().st_mtime_ns > before
    collect("libero_goal", [8], 3, tmp_path / "b", workers=1, **options)
    first, second = DemonstrationReader(tmp_path / "a"), DemonstrationReader(tmp_path / "b")
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.images["agentview"], other.images["agentview"])
    assert [demonstration.init_state for demonstration in first] == [0, 7, 0]
    assert np.abs(first.read("put_the_bowl_on_the_plate", 0).labels[:, 3:6]).max() == 0


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "solved"), [("libero_goal", range(10)), ("libero_spatial", None), ("libero_object", None)]
)
def test_experts_solve_their_suites(suite, solved):
    simulator = Simulator(suite)
    rates = {}
    for task in get_experts(suite):
        states = range(0, 50, 5)
        rates[task] = np.mean([run_expert(simulator, 0, task, state).success for state in states])
    good = [task for task, rate in rates.items() if rate >= 0.9]
    assert len(good) >= (8 if solved is None else len(solved)), rates
