"""Perturbed episodes in the simulator: each axis changes what it should, the same each time, and nothing else."""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vlacoach.envs.libero import LiberoEnv
from vlacoach.envs.perturbations import AXES, MAGNITUDES, Perturbation, PerturbedEpisode
from vlacoach.envs.perturbed_start import SLACK
from vlacoach.envs.rephrasing import rephrase
from vlacoach.envs.simulator import Simulator
from vlacoach.envs.suites import FRESH_STATE, get_suite
from vlacoach.envs.vector import LiberoVectorEnv
from vlacoach.envs.wrappers import PerturbedLibero
from vlacoach.errors import ConfigError, UnknownNameError

pytestmark = pytest.mark.sim

TASK, STATE = 8, 3
STARTS = {"robot", "layout"}
"""Axes that change the state itself."""
SIGHTS = {"camera", "light", "background"}
"""Axes that change pictures alone."""
MODEL_ARRAYS = ("cam_pos", "cam_quat", "light_dir", "light_diffuse", "light_castshadow", "geom_rgba", "geom_matid")


@pytest.fixture(scope="module")
def simulator():
    return Simulator("libero_goal", 2, image_size=48)


def episode(axis: str, severity: int, seed: int = 0, state: int = STATE) -> PerturbedEpisode:
    return PerturbedEpisode((Perturbation(axis, severity),), seed, TASK, state)


def start(simulator: Simulator, perturbed: PerturbedEpisode | None, world: int = 0):
    """State, picture, and proprioception at the start."""
    simulator.reset(world, TASK, STATE, episode=perturbed)
    return simulator.state(world), simulator.render(world)["agentview"], simulator.proprioception(world)


def different(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("axis", AXES)
def test_severity_0_is_the_plain_episode_bit_by_bit(simulator, axis):
    plain = start(simulator, None)
    for before, after in zip(plain, start(simulator, episode(axis, 0)), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("axis", [axis for axis in AXES if axis != "language"])
def test_an_axis_changes_what_it_should_the_same_each_time_and_nothing_else(simulator, axis):
    state, picture, proprioception = start(simulator, None)
    model = simulator.view(0).model
    kept = {name: getattr(model, name).copy() for name in MODEL_ARRAYS}
    seen = [start(simulator, episode(axis, 4, seed)) for seed in (7, 7, 8)]
    for once, again in zip(seen[0], seen[1], strict=True):
        np.testing.assert_array_equal(once, again)
    assert different(seen[0][1], seen[2][1]) > 0.3
    assert different(seen[0][1], picture) > 0.3
    assert np.array_equal(seen[0][0], state) == (axis not in STARTS)
    assert np.array_equal(seen[0][2], proprioception) == (axis not in {"robot", "noise"})
    for name, values in kept.items():
        np.testing.assert_array_equal(getattr(model, name), values)
    for before, after in zip((state, picture, proprioception), start(simulator, None), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("axis", sorted(SIGHTS | {"noise"}))
def test_pictures_differ_more_with_severity(simulator, axis):
    _, picture, _ = start(simulator, None)
    distances = [
        np.mean([different(start(simulator, episode(axis, severity, seed))[1], picture) for seed in range(6)])
        for severity in (1, 3, 5)
    ]
    assert distances == sorted(distances)
    assert distances[0] > 0.5


def test_the_arm_starts_bent_by_the_tables_length_and_stays_so(simulator):
    joints = np.arange(7)
    plain = get_suite("libero_goal").initial_states(TASK)[STATE][1 + joints]
    for severity in range(1, 6):
        for seed in range(3):
            state, *_ = start(simulator, episode("robot", severity, seed))
            length = MAGNITUDES["robot"]["joints_rad"][severity - 1]
            # The controller holds the pose while objects settle.
            assert np.linalg.norm(state[1 + joints] - plain) == pytest.approx(length, abs=0.01)


def test_a_bent_arm_moves_by_its_actions(simulator):
    simulator.reset(0, TASK, STATE, episode=episode("robot", 3))
    before = simulator.view(0).end_effector()[0]
    for _ in range(5):
        simulator.step(0, [0, 0, 1, 0, 0, 0, -1])
    assert 0.03 < simulator.view(0).end_effector()[0][2] - before[2] < 0.25


def objects(simulator: Simulator, world: int = 0) -> dict[str, np.ndarray]:
    view = simulator.view(world)
    free = view.model.jnt_bodyid[view.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    return {view.model.body(body).name: view.data.xpos[body].copy() for body in free}


def test_objects_stand_elsewhere_within_bounds_and_the_goal_is_open(simulator):
    start(simulator, None)
    plain = objects(simulator)
    means = []
    for severity in range(1, 6):
        bound = MAGNITUDES["layout"]["shift_m"][severity - 1]
        distances = []
        for seed in range(3):
            start(simulator, episode("layout", severity, seed))
            assert not simulator.success(0)
            moved = {name: place - plain[name] for name, place in objects(simulator).items()}
            distances += [float(np.hypot(*way[:2])) for way in moved.values()]
            assert all(abs(way[2]) < SLACK for way in moved.values())
        assert max(distances) < bound + 2 * SLACK
        assert max(distances) > bound - SLACK
        means.append(np.mean(distances))
    assert means == sorted(means)


def test_what_stands_on_another_thing_stays_there():
    simulator = Simulator("libero_spatial", image_size=32)
    task = next(t.index for t in simulator.suite.tasks if "on the ramekin" in t.instruction)
    simulator.reset(0, task, 0)
    plain = objects(simulator)
    simulator.reset(0, task, 0, episode=PerturbedEpisode((Perturbation("layout", 4),), 0, task, 0))
    moved = {name: np.hypot(*(place - plain[name])[:2]) for name, place in objects(simulator).items()}
    assert moved["akita_black_bowl_1_main"] < SLACK
    assert moved["glazed_rim_porcelain_ramekin_1_main"] < SLACK
    assert max(moved.values()) > 0.03


def test_an_object_that_tips_over_by_itself_does_not_stop_a_layout(monkeypatch):
    """The wine bottle of this state falls over on landing, and does so wherever it is put."""
    monkeypatch.setenv("VLACOACH_CACHE", "off")
    simulator = Simulator("libero_10_object", image_size=32)
    task, state = 3, 30
    simulator.reset(0, task, state)
    plain, bottle = objects(simulator), "wine_bottle_1_main"
    lying = simulator.view(0).data.xmat[simulator.view(0).model.body(bottle).id].reshape(3, 3)[2, 2]
    assert abs(lying) < 0.1
    simulator.reset(0, task, state, episode=PerturbedEpisode((Perturbation("layout", 5),), 0, task, state))
    moved = {name: np.hypot(*(place - plain[name])[:2]) for name, place in objects(simulator).items()}
    assert moved["black_bowl_1_main"] == pytest.approx(0.07, abs=2 * SLACK)
    assert objects(simulator)[bottle][2] > plain[bottle][2] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "task"),
    [("libero_90", 16), ("libero_90", 42), ("libero_90", 74), ("libero_10_swap", 1), ("libero_goal_task", 6)],
)
def test_every_axis_works_in_scenes_of_other_suites(suite, task, monkeypatch):
    monkeypatch.setenv("VLACOACH_CACHE", "off")
    simulator = Simulator(suite, image_size=48)
    instruction = simulator.suite.task(task).instruction
    for state in (30, 31):
        simulator.reset(0, task, state)
        plain, picture = simulator.state(0), simulator.render(0)["agentview"]
        for axis in AXES:
            perturbed = PerturbedEpisode((Perturbation(axis, 5),), state, task, state)
            simulator.reset(0, task, state, episode=perturbed)
            assert np.array_equal(simulator.state(0), plain) == (axis not in STARTS)
            assert (different(simulator.render(0)["agentview"], picture) > 0.3) == (axis != "language")
            assert (rephrase(instruction, perturbed) != instruction) == (axis == "language")
            assert not simulator.step(0, [0, 0, 0, 0, 0, 0, -1])


def test_lights_cast_shadows_from_severity_3_on(simulator):
    for severity, shadows in ((2, False), (3, True)):
        simulator.reset(0, TASK, STATE, episode=episode("light", severity))
        assert simulator._worlds[0].appearance.shadows is shadows


def test_a_perturbed_world_leaves_its_neighbor_alone(simulator):
    everything = PerturbedEpisode(tuple(Perturbation(axis, 5) for axis in AXES), 1, TASK, STATE)
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 7))

    def play(neighbor: PerturbedEpisode | None) -> list[np.ndarray]:
        start(simulator, neighbor, world=1)
        seen = [*start(simulator, None)]
        simulator.render(1)
        for action in actions:
            simulator.step(1, action[::-1])
            simulator.step(0, action)
            simulator.render(1)
            seen += [simulator.state(0), simulator.render(0)["agentview"], simulator.proprioception(0)]
        return seen

    for alone, beside in zip(play(None), play(everything), strict=True):
        np.testing.assert_array_equal(alone, beside)


def test_noise_changes_with_time_and_not_with_looking(simulator):
    _, picture, _ = start(simulator, episode("noise", 3))
    np.testing.assert_array_equal(simulator.render(0)["agentview"], picture)
    simulator.step(0, [0] * 7)
    assert different(simulator.render(0)["agentview"], picture) > 1


def test_the_wrapper_perturbs_and_passes_gymnasiums_checks():
    env = LiberoEnv("libero_goal", task=TASK, image_size=32)
    plain, info = env.reset(seed=4, options={"init_state": STATE})
    wrapped = PerturbedLibero(env, (Perturbation("camera", 3), Perturbation("language", 2)))
    observation, said = wrapped.reset(seed=4, options={"init_state": STATE})
    assert different(observation["image"], plain["image"]) > 3
    np.testing.assert_array_equal(observation["state"], plain["state"])
    assert said["instruction"] != info["instruction"] == "put the bowl on the plate"
    again, _ = LiberoEnv("libero_goal", task=TASK, image_size=32, perturbations=wrapped.perturbations).reset(
        seed=4, options={"init_state": STATE}
    )
    np.testing.assert_array_equal(again["image"], observation["image"])
    other, _ = wrapped.reset(options={"init_state": STATE, "perturbation_seed": 5})
    assert different(other["image"], observation["image"]) > 1
    after, _ = env.reset(seed=4, options={"init_state": STATE})
    np.testing.assert_array_equal(after["image"], plain["image"])


@pytest.mark.filterwarnings("error")
def test_a_world_perturbed_along_every_axis_passes_gymnasiums_checks():
    everything = tuple(Perturbation(axis, 2) for axis in AXES)
    settings = {"task": TASK, "image_size": 32, "render_mode": "rgb_array", "perturbations": everything}
    check_env(gymnasium.make("vlacoach/LiberoGoal-v0", **settings).unwrapped)
    wrapped = PerturbedLibero(LiberoEnv("libero_goal", task=TASK, image_size=32), everything)
    observation, _ = wrapped.reset(seed=0)
    assert observation in wrapped.observation_space


def test_what_cannot_be_wrapped_or_asked_for_is_an_error():
    with pytest.raises(ConfigError, match="cannot wrap CartPoleEnv"):
        PerturbedLibero(gymnasium.make("CartPole-v1"), ())
    env = LiberoEnv("libero_goal", task=TASK, image_size=32)
    with pytest.raises(ConfigError, match="light is given twice"):
        PerturbedLibero(env, (Perturbation("light", 1), Perturbation("light", 2)))
    with pytest.raises(UnknownNameError, match="Did you mean 'perturbations'"):
        env.reset(options={"perturbation": ()})


def test_the_vector_environment_perturbs_world_by_world():
    one = LiberoEnv("libero_goal", image_size=32)
    envs = LiberoVectorEnv(3, "libero_goal", workers=1, image_size=32)
    try:
        options = {"task": TASK, "init_state": np.array([STATE, STATE, FRESH_STATE])}
        plain, _ = envs.reset(seed=3, options=options)
        perturbed = (Perturbation("light", 4), Perturbation("language", 4), Perturbation("layout", 2))
        mask = np.array([False, True, False])
        seen, info = envs.reset(options={**options, "reset_mask": mask, "perturbations": perturbed})
        alone, said = one.reset(seed=3, options={"task": TASK, "init_state": STATE, "perturbations": perturbed})
        np.testing.assert_array_equal(seen["image"][1], alone["image"])
        np.testing.assert_array_equal(seen["state"][1], alone["state"])
        for world in (0, 2):
            np.testing.assert_array_equal(seen["image"][world], plain["image"][world])
        assert list(info["instruction"]) == [
            "put the bowl on the plate", said["instruction"], "put the bowl on the plate"
        ]  # fmt: skip
        actions = np.zeros((3, 7), dtype=np.float32)
        after, *_, info = envs.step(actions)
        assert info["instruction"][1] == said["instruction"]
        before, *_ = one.step(actions[0])
        np.testing.assert_array_equal(after["image"][1], before["image"])
        other, _ = envs.reset(
            options={**options, "reset_mask": mask, "perturbations": perturbed, "perturbation_seed": np.arange(3)}
        )
        assert different(other["image"][1], seen["image"][1]) > 1
        envs.perturb(perturbed, seed=3)
        again, _ = envs.reset(options={**options, "reset_mask": mask})
        np.testing.assert_array_equal(again["image"][1], seen["image"][1])
        envs.perturb(())
        again, _ = envs.reset(options={**options, "reset_mask": mask})
        np.testing.assert_array_equal(again["image"][1], plain["image"][1])
    finally:
        envs.close()
