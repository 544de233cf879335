"""The simulator against LIBERO's own environment, and its own promises."""

import numpy as np
import pytest

from vlacoach.envs import libero_package
from vlacoach.envs.rendering import find_gl_backend, select_gl_backend
from vlacoach.envs.simulator import Simulator, UnstableSimulationError
from vlacoach.errors import ConfigError, SimulatorError, UnknownNameError

pytestmark = pytest.mark.sim

IDLE = np.array([0.0] * 6 + [-1.0])


@pytest.fixture(scope="module", autouse=True)
def _gl():
    select_gl_backend(find_gl_backend())


@pytest.fixture(scope="module")
def reference():
    """LIBERO's own environment on task 8 of libero_goal: the picture and the motion to match."""
    suite = Simulator("libero_goal").suite
    with libero_package.quiet():
        from libero.libero.envs import OffScreenRenderEnv

        env = OffScreenRenderEnv(
            bddl_file_name=suite.task(8).bddl_file, camera_heights=128, camera_widths=128, hard_reset=False
        )
        np.random.seed(0)
        env.env.reset()
    yield env
    with libero_package.quiet():
        env.close()


@pytest.fixture(scope="module")
def simulator():
    return Simulator("libero_goal", num_worlds=3, image_size=128, render_profile="reference")


def test_moves_and_looks_as_libero_does(reference, simulator):
    simulator.reset(0, task=8, init_state=3, settle_steps=0)
    observation = reference.set_init_state(simulator.suite.initial_states(8)[3])
    picture = simulator.render(0)["agentview"]
    np.testing.assert_array_equal(picture, observation["agentview_image"][::-1, ::-1])

    rng = np.random.default_rng(0)
    free = rng.uniform(-1, 1, (30, 7)) * [1, 1, 0.3, 1, 1, 1, 1] + [0, 0, 0.3, 0, 0, 0, 0]
    actions = [IDLE] * 5 + list(free)
    exact = Simulator("libero_goal", exact=True)
    exact.reset(0, task=8, init_state=3, settle_steps=0)
    for action in actions:
        observation, _, done, _ = reference.step(action)
        assert simulator.step(0, action) == exact.step(0, action) == done
    qpos = reference.env.sim.data.qpos
    np.testing.assert_allclose(simulator.view(0).data.qpos, qpos, rtol=0, atol=1e-6)
    np.testing.assert_allclose(exact.view(0).data.qpos, qpos, rtol=0, atol=1e-9)
    # LIBERO samples its observations one physics step earlier or later, which moves the hand by less than 2 mm.
    np.testing.assert_allclose(simulator.proprioception(0)[:3], observation["robot0_eef_pos"], atol=2e-3)


def test_same_actions_give_the_same_numbers_whatever_happened_before(simulator):
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (12, 7))
    states, pictures = [], []
    for world in (1, 2, 1):
        simulator.reset(world, task=1, init_state=7)
        for action in actions:
            simulator.step(world, action)
        states.append(simulator.state(world))
        pictures.append(simulator.render(world)["agentview"])
    for state, picture in zip(states[1:], pictures[1:], strict=True):
        np.testing.assert_array_equal(state, states[0])
        np.testing.assert_array_equal(picture, pictures[0])


def test_goals_agree_with_libero_on_states_that_fulfil_them(reference, simulator):
    """Carry the bowl onto the plate by hand: LIBERO and we must change our minds at the same heights."""
    env = reference.env
    simulator.reset(0, task=8, init_state=0)
    view = simulator.view(0)
    bowl = view.model.joint("akita_black_bowl_1_joint0").qposadr[0]
    plate = view.body_position("plate_1_main")
    seen = set()
    import mujoco

    for dx in (0.0, 0.02, 0.05):
        for height in np.linspace(0.0, 0.03, 16):
            view.data.qpos[bowl : bowl + 3] = plate + np.array([dx, 0.0, height])
            mujoco.mj_forward(view.model, view.data)
            env.sim.data.qpos[:] = view.data.qpos
            env.sim.forward()
            ours, theirs = simulator.success(0), bool(env._check_success())
            assert ours == theirs
            seen.add(ours)
    assert seen == {True, False}


def test_settling_leaves_nothing_of_the_previous_episode(simulator):
    simulator.reset(0, task=1, init_state=0)
    fresh = simulator.state(0)
    for _ in range(20):
        simulator.step(0, np.array([1, 1, -1, 0.5, 0.5, 0.5, 1]))
    simulator.reset(0, task=1, init_state=0)
    np.testing.assert_array_equal(simulator.state(0), fresh)


@pytest.mark.parametrize(
    ("action", "message"),
    [(np.zeros(6), r"shape \(6,\)"), (np.array([0, 0, np.nan, 0, 0, 0, 0]), "nan at index 2")],
)
def test_bad_actions_are_named(simulator, action, message):
    simulator.reset(0, task=1, init_state=0, settle_steps=0)
    with pytest.raises(ConfigError, match=message):
        simulator.step(0, action)


def test_actions_beyond_the_range_are_clipped(simulator):
    for world, size in ((0, 1.0), (1, 5.0)):
        simulator.reset(world, task=1, init_state=0, settle_steps=0)
        for _ in range(3):
            simulator.step(world, np.array([size] * 6 + [-1.0]))
    np.testing.assert_array_equal(simulator.state(0), simulator.state(1))


def test_an_unstable_simulation_is_neither_success_nor_failure(simulator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulator.reset(0, task=1, init_state=0)
    simulator.view(0).data.qvel[:] = 1e12
    with pytest.raises(UnstableSimulationError, match="world 0"):
        simulator.step(0, IDLE)
    assert not list(tmp_path.iterdir())  # MuJoCo would leave a log in the working directory.


def test_what_does_not_exist_is_named(simulator):
    with pytest.raises(UnknownNameError, match="Did you mean 'libero_goal'"):
        Simulator("libero_gaol")
    with pytest.raises(ConfigError, match="no task 12"):
        simulator.reset(0, task=12, init_state=0)
    with pytest.raises(ConfigError, match="no initial state 50"):
        simulator.reset(0, task=1, init_state=50)
    untouched = Simulator("libero_goal")
    with pytest.raises(SimulatorError, match="has not been reset"):
        untouched.step(0, IDLE)
    other = Simulator("libero_goal", cameras=("agentveiw",))
    other._scenes, other._keys = simulator._scenes, simulator._keys
    other.reset(0, task=1, init_state=0, settle_steps=0)
    with pytest.raises(UnknownNameError, match="camera"):
        other.render(0)
