"""The Gymnasium environments: one world and many."""

import os
import signal
import subprocess
import sys

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import vlacoach
from vlacoach.envs import libero_package
from vlacoach.envs.registration import ENV_IDS
from vlacoach.envs.simulator import Simulator, UnstableSimulationError
from vlacoach.envs.suites import STANDARD_SUITES
from vlacoach.envs.vector import LiberoVectorEnv
from vlacoach.envs.workers import Server, WorkerPool, WorkerSettings
from vlacoach.errors import ConfigError, SimulatorError, UnknownNameError

pytestmark = pytest.mark.sim


def make(**options):
    return LiberoVectorEnv(
        **{"num_envs": 3, "workers": 2, "chunk_size": 4, "image_size": 32, "max_steps": 10, **options}
    )


@pytest.fixture(scope="module")
def envs():
    with_two_workers = make()
    yield with_two_workers
    with_two_workers.close()


def test_importing_registers_every_suite():
    assert vlacoach.__version__
    assert set(ENV_IDS.values()) <= set(gymnasium.registry)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "env_id",
    [
        pytest.param(ENV_IDS[suite], marks=() if suite in ("libero_goal", "libero_10") else pytest.mark.slow)
        for suite in STANDARD_SUITES
    ],
)
def test_every_single_environment_passes_gymnasiums_checks(env_id):
    env = gymnasium.make(env_id, task=3, image_size=32, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


def test_the_single_environment_says_what_it_shows():
    env = gymnasium.make("vlacoach/LiberoGoal-v0", task=3, image_size=32, render_mode="rgb_array")
    observation, info = env.reset(seed=0, options={"init_state": 4})
    assert info["instruction"] == "open the top drawer and put the bowl inside"
    assert info["init_state"] == 4
    assert observation["task"] == 3
    assert env.render().shape == (32, 32, 3)
    np.testing.assert_array_equal(env.render()[:, ::-1], observation["image"])
    env.close()


def test_make_vec_gives_the_vector_environment():
    envs = gymnasium.make_vec("vlacoach/LiberoGoal-v0", num_envs=2, workers=1, task=1, image_size=32)
    assert isinstance(envs.unwrapped, LiberoVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    observation, info = envs.reset(seed=5)
    assert observation in envs.observation_space
    assert list(info["instruction"]) == ["put the bowl on the stove"] * 2
    envs.close()


def test_worlds_are_told_apart_and_finished_ones_stand_still(envs):
    options = {"task": np.array([1, 8, 2]), "init_state": np.array([0, 1, 2])}
    first, info = envs.reset(seed=0, options=options)
    assert list(info["instruction"]) == [
        "put the bowl on the stove",
        "put the bowl on the plate",
        "put the wine bottle on top of the cabinet",
    ]
    np.testing.assert_array_equal(info["init_state"], [0, 1, 2])
    executed = []
    for _ in range(4):
        _, reward, terminated, truncated, info = envs.step(np.zeros((3, 4, 7), dtype=np.float32))
        executed.append(info["executed"].tolist())
        assert not terminated.any()
        assert not reward.any()
    # Ten steps in chunks of four, then nothing: not even the picture changes.
    assert executed == [[4] * 3, [4] * 3, [2] * 3, [0] * 3]
    assert not truncated.any()

    mask = np.array([False, True, False])
    again, info = envs.reset(options={**options, "reset_mask": mask})
    np.testing.assert_array_equal(again["image"][1], first["image"][1])
    np.testing.assert_array_equal(again["state"][1], first["state"][1])
    _, _, _, truncated, info = envs.step(np.zeros((3, 4, 7), dtype=np.float32))
    assert info["executed"].tolist() == [0, 4, 0]


def test_an_episode_that_ends_says_so_once(envs):
    envs.reset(seed=0, options={"task": 1, "init_state": 0})
    for _ in range(2):
        envs.step(np.zeros((3, 4, 7), dtype=np.float32))
    _, _, _, truncated, info = envs.step(np.zeros((3, 4, 7), dtype=np.float32))
    assert truncated.all()
    np.testing.assert_array_equal(info["episode"]["l"], [10, 10, 10])
    np.testing.assert_array_equal(info["_episode"], [True] * 3)


def test_observations_are_not_overwritten_by_later_steps(envs):
    first, _ = envs.reset(seed=0, options={"task": 1, "init_state": 0})
    kept = {key: value.copy() for key, value in first.items()}
    envs.step(np.tile(np.array([1, 0, -1, 0, 0, 0, 1], dtype=np.float32), (3, 4, 1)))
    for key, value in kept.items():
        np.testing.assert_array_equal(first[key], value)


def test_a_vector_of_worlds_and_a_single_world_see_the_same():
    envs, env = (
        make(num_envs=1, workers=1),
        gymnasium.make("vlacoach/LiberoGoal-v0", chunk_size=4, image_size=32).unwrapped,
    )
    options = {"task": 5, "init_state": 9}
    action = np.random.default_rng(0).uniform(-1, 1, (4, 7)).astype(np.float32)
    many, _ = envs.reset(options=options)
    one, _ = env.reset(options=options)
    np.testing.assert_array_equal(many["image"][0], one["image"])
    many, *_ = envs.step(action[None])
    one, *_ = env.step(action)
    np.testing.assert_array_equal(many["image"][0], one["image"])
    np.testing.assert_array_equal(many["state"][0], one["state"])
    envs.close()


def test_threads_change_nothing_but_the_time():
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 7)).astype(np.float32)
    seen = []
    for threads in (1, 3):
        envs = make(num_envs=4, workers=1, threads=threads)
        envs.reset(options={"task": np.array([1, 1, 6, 8]), "init_state": np.arange(4)})
        seen.append([envs.step(chunk)[0] for chunk in actions])
        envs.close()
    for one, other in zip(*seen, strict=True):
        same(one, other, slice(None))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset(mode):
    envs = make(num_envs=2, workers=1, max_steps=4, autoreset_mode=mode, task=1)
    action = np.zeros((2, 4, 7), dtype=np.float32)
    start, _ = envs.reset(seed=0)
    observation, _, _, truncated, info = envs.step(action)
    assert truncated.all()
    if mode is AutoresetMode.SAME_STEP:
        assert info["_final_obs"].all()
        assert not np.array_equal(info["final_obs"][0]["image"], observation["image"][0])
        np.testing.assert_array_equal(info["final_info"]["episode"]["l"], [4, 4])
    else:
        _, reward, _, truncated, info = envs.step(action)
        assert not truncated.any()
        assert not reward.any()
        np.testing.assert_array_equal(info["executed"], [0, 0])
        _, _, _, truncated, _ = envs.step(action)
        assert truncated.all()
    assert start["image"].shape == (2, 32, 32, 3)
    envs.close()


def test_bad_input_is_named(envs):
    envs.reset(seed=0)
    actions = np.zeros((3, 4, 7))
    actions[1, 2, 3] = np.inf
    with pytest.raises(ConfigError, match="world 1"):
        envs.step(actions)
    with pytest.raises(ConfigError, match="shape"):
        envs.step(np.zeros((3, 7)))
    with pytest.raises(UnknownNameError, match="Did you mean 'init_state'"):
        envs.reset(options={"initstate": 3})
    with pytest.raises(ConfigError, match="no task 11"):
        envs.reset(options={"task": 11})
    with pytest.raises(UnknownNameError, match="render profile"):
        make(render_profile="fats")
    with pytest.raises(ConfigError, match="threads is 0"):
        make(threads=0)
    # The environment survived all of it.
    observation, _ = envs.reset(seed=0)
    assert observation["image"].any()


def same(first, second, worlds):
    for key, value in first.items():
        np.testing.assert_array_equal(value[worlds], second[key][worlds], err_msg=key)


def test_a_killed_worker_costs_its_episodes_and_nothing_else(caplog):
    envs = make(num_envs=16)
    mine, theirs = slice(8, 16), slice(0, 8)
    options = {"task": 8, "init_state": np.arange(16)}
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 16, 4, 7)).astype(np.float32)

    envs.reset(options=options)
    envs.step(actions[0])
    undisturbed, *_ = envs.step(actions[1])

    envs.reset(options=options)
    envs.step(actions[0])
    children = envs.processes
    pending = envs.begin_step(actions[1], np.ones(16, dtype=bool))
    os.kill(children[1].pid, signal.SIGKILL)
    observation, reward, terminated, truncated, info = envs.finish(pending)
    same(observation, undisturbed, theirs)
    lost = np.arange(16) >= 8
    np.testing.assert_array_equal(truncated, lost)
    np.testing.assert_array_equal(info["invalid"], lost)
    assert not terminated.any()
    assert not reward.any()
    assert info["episode"]["l"][mine].tolist() == [4] * 8
    assert envs.workers_lost == 1
    assert "exit code -9" in caplog.text

    # Those that were lost start anew, and are as good as before.
    envs.reset(options={**options, "reset_mask": lost})
    for chunk in actions:
        observation, _, _, truncated, info = envs.step(np.where(lost[:, None, None], chunk, 0.0).astype(np.float32))
    same(observation, undisturbed, mine)
    assert "invalid" not in info

    children += envs.processes
    envs.close()
    assert not any(psutil.pid_exists(child.pid) and child.is_alive() for child in children)


def test_a_worker_that_dies_in_a_reset_or_between_steps_is_replaced():
    envs = make(num_envs=2)
    envs.reset(options={"task": 8, "init_state": 0})
    envs.processes[0].kill()
    pending = envs.begin_reset({"task": 8, "init_state": 1})
    envs.processes[1].kill()
    observation, *_ = envs.finish(pending)
    expected, _ = envs.reset(options={"task": 8, "init_state": 1})
    same(observation, expected, slice(None))
    envs.processes[0].kill()
    envs.processes[0].join()
    *_, truncated, info = envs.step(np.zeros((2, 4, 7), dtype=np.float32))
    assert truncated.tolist() == info["invalid"].tolist() == [True, False]
    assert envs.workers_lost == 3
    envs.close()


def test_worlds_that_stood_by_while_their_worker_died_are_invalid_at_their_next_step():
    envs = make(num_envs=2, workers=1)
    envs.reset(options={"task": 8, "init_state": 0})
    chunk = np.zeros((2, 4, 7), dtype=np.float32)
    pending = envs.begin_step(chunk, np.array([True, False]))
    envs.processes[0].kill()
    *_, truncated, info = envs.finish(pending)
    assert truncated.tolist() == info["invalid"].tolist() == [True, False]
    *_, truncated, info = envs.step(chunk)
    assert truncated.tolist() == info["invalid"].tolist() == [False, True]
    envs.close()


def test_a_worker_that_hangs_is_replaced(monkeypatch):
    envs = make(num_envs=2, worker_timeout=600.0)
    envs.reset(options={"task": 8, "init_state": 0})
    os.kill(envs.processes[1].pid, signal.SIGSTOP)
    monkeypatch.setattr(envs._pool, "_timeout", 15.0)
    *_, truncated, info = envs.step(np.zeros((2, 4, 7), dtype=np.float32))
    monkeypatch.undo()
    assert truncated.tolist() == info["invalid"].tolist() == [False, True]
    envs.reset(options={"task": 8, "init_state": 0})
    *_, truncated, _ = envs.step(np.zeros((2, 4, 7), dtype=np.float32))
    assert not truncated.any()
    envs.close()


def test_workers_that_never_come_up_are_an_error():
    settings = WorkerSettings("no_such_suite", 1, ("agentview",), 32, "fast", 10, 0, "egl", 0, 1)
    pool = WorkerPool([settings], timeout=60.0)
    with pytest.raises(SimulatorError, match="4 times in a row"):
        pool.wait(pool.begin("reset", {0: (8, 0, 0)}))
    pool.close()


def test_a_world_that_is_unstable_from_the_start_is_invalid_at_its_first_step(envs, monkeypatch):
    settings = WorkerSettings("libero_goal", 2, ("agentview",), 32, "fast", 10, 0, "egl", 0, 2)
    server = Server(settings, bytearray(2 * 32 * 32 * 3))
    reset = server.runner.reset

    def unstable(world, task, init_state, state_seed=0):
        reset(world, task, init_state, state_seed)
        if world == 1:
            raise UnstableSimulationError("became unstable")

    monkeypatch.setattr(server.runner, "reset", unstable)
    answer = server.answer("reset", [(0, 8, 0), (1, 8, 0)])
    assert [outcome if outcome is None else outcome.invalid for _, _, outcome in answer] == [None, True]

    # The parent: an answer like that, in place of the second process's, whose one world is number 2.
    pending = envs.begin_reset({"task": 8, "init_state": 0})
    process, connection = envs._pool._workers[1]
    envs._pool._workers[1] = (process, Replaced(connection, [(0, *answer[1][1:])]))
    envs.finish(pending)
    envs._pool._workers[1] = (process, connection)
    *_, truncated, info = envs.step(np.zeros((3, 4, 7), dtype=np.float32))
    assert truncated.tolist() == info["invalid"].tolist() == [False, False, True]
    envs.reset(options={"task": 8, "init_state": 0})
    *_, info = envs.step(np.zeros((3, 4, 7), dtype=np.float32))
    assert "invalid" not in info


class Replaced:
    """A connection whose next answer is another one."""

    def __init__(self, connection, answer):
        self._connection, self._answer = connection, answer

    def poll(self, timeout):
        return self._connection.poll(timeout)

    def recv(self):
        self._connection.recv()
        return self._answer


def test_a_reset_is_liberos_hard_reset_without_compiling_anew():
    with libero_package.quiet():
        from libero.libero.envs.env_wrapper import ControlEnv
    suite = Simulator("libero_spatial").suite
    task = next(task for task in suite.tasks if task.name.endswith("on_the_stove_and_place_it_on_the_plate"))
    soft = libero_package.control_env(task.bddl_file, 0)
    libero_package.reset(soft, 1)
    with libero_package.quiet():
        hard = ControlEnv(bddl_file_name=task.bddl_file, use_camera_obs=False, has_offscreen_renderer=False)
        np.random.seed(1)
        hard.env.reset()
    np.testing.assert_array_equal(soft.env.sim.data.qpos, hard.env.sim.data.qpos)
    for field in ("body_pos", "body_quat"):
        ours, theirs = (getattr(env.env.sim.model._model, field) for env in (soft, hard))
        np.testing.assert_array_equal(ours, theirs)


def test_fresh_states_put_things_where_the_task_says():
    """The bowl of this task starts on the stove, which LIBERO's samplers miss by a meter after a soft reset."""
    simulator = Simulator("libero_spatial")
    task = next(task for task in simulator.suite.tasks if task.name.endswith("on_the_stove_and_place_it_on_the_plate"))
    places = []
    for seed in (0, 1, 2):
        simulator.reset(0, task.index, -1, settle_steps=0, state_seed=seed)
        view = simulator.view(0)
        bowl, stove = view.body_position("akita_black_bowl_1_main"), view.site_position("flat_stove_1_cook_region")
        assert np.abs(bowl - stove)[:2].max() < 0.08
        assert 0.0 < bowl[2] - stove[2] < 0.12  # LIBERO drops it.
        # Nothing touches the robot, and nothing sits inside anything else.
        assert np.all(view.data.contact.dist > -0.01)
        places.append(view.body_position("plate_1_main"))
    assert not np.allclose(places[0], places[1])
    # Fixtures did not move: the official states still fit.
    simulator.reset(0, task.index, 3)
    official = simulator.state(0)
    other = Simulator("libero_spatial")
    other.reset(0, task.index, 3)
    np.testing.assert_array_equal(other.state(0), official)


def test_fresh_states_follow_the_seed_and_differ_from_each_other(envs):
    pictures = []
    for seed in (5, 5, 6):
        observation, info = envs.reset(seed=seed, options={"task": 8, "init_state": -1})
        pictures.append(observation["image"])
        assert info["init_state"].tolist() == [-1] * 3
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()
    assert (pictures[0][0] != pictures[0][1]).any()
    single = gymnasium.make("vlacoach/LiberoGoal-v0", task=8, image_size=32)
    for seed in (5, 6):
        observation, info = single.reset(seed=seed, options={"init_state": -1})
        again, _ = single.reset(seed=seed, options={"init_state": -1})
        np.testing.assert_array_equal(observation["image"], again["image"])


def test_numbered_fresh_states_are_the_same_whoever_asks_and_whenever():
    first, second = (Simulator("libero_goal", seed=0) for _ in range(2))
    for simulator, numbers in ((first, (1000, 1001, 1000)), (second, (1001, 1000))):
        for number in numbers:
            simulator.reset(0, 8, number, settle_steps=0, state_seed=number % 7)
    np.testing.assert_array_equal(first.state(0), second.state(0))
    second.reset(0, 8, 1001, settle_steps=0)
    assert not np.array_equal(first.state(0), second.state(0))


def test_the_arm_of_fresh_states_varies_as_in_the_official_ones():
    """LIBERO made the official ones with robosuite's noise, which an environment of its does not have by itself."""
    simulator = Simulator("libero_goal")
    arm = slice(1, 8)  # After the time, the seven joints.
    official = simulator.suite.initial_states(8)[:, arm]
    fresh = []
    for number in range(1000, 1050):
        simulator.reset(0, 8, number, settle_steps=0)
        fresh.append(simulator.state(0)[arm])
    # The standard deviation of fifty draws is itself known to a tenth; 350 together to 4 %.
    spread = [np.sqrt(np.mean((draws - np.mean(draws, axis=0)) ** 2)) for draws in (official, np.array(fresh))]
    np.testing.assert_allclose(spread, 0.02, rtol=0.15)
    np.testing.assert_allclose(np.mean(fresh, axis=0), np.mean(official, axis=0), atol=4 * 0.02 * np.sqrt(2 / 50))


def test_nothing_is_printed_by_the_packages_below():
    code = (
        "import numpy as np\n"
        "from vlacoach.envs.vector import LiberoVectorEnv\n"
        "if __name__ == '__main__':\n"
        "    envs = LiberoVectorEnv(num_envs=1, workers=1, image_size=32)\n"
        "    envs.reset(seed=0)\n"
        "    envs.step(np.zeros((1, 7), dtype=np.float32))\n"
        "    envs.close()\n"
    )
    import pathlib
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        script = pathlib.Path(folder) / "quiet.py"
        script.write_text(code)
        result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert result.stderr == ""


def test_stable_baselines_trains_on_it():
    baselines = pytest.importorskip("stable_baselines3")
    env = gymnasium.make("vlacoach/LiberoGoal-v0", task=8, image_size=36, max_steps=20)
    # Without chunks; images, numbers, and the task's number side by side are what MultiInputPolicy is for.
    agent = baselines.PPO("MultiInputPolicy", env, n_steps=128, batch_size=64, n_epochs=2, seed=0, device="cpu")
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(256)
    assert agent.num_timesteps == 256
    assert len(agent.ep_info_buffer) == 256 // 20
    assert any((value != before[name]).any() for name, value in agent.policy.state_dict().items())
    env.close()


def test_no_gl_library_is_an_error_that_names_packages(monkeypatch):
    from vlacoach.envs.rendering import find_gl_backend

    find_gl_backend.cache_clear()
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    with pytest.raises(SimulatorError, match="apt-get install libegl1"):
        find_gl_backend()
    find_gl_backend.cache_clear()
