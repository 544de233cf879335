import subprocess
import sys

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vlacoach.envs.controller import osc_torque, rotation_matrix
from vlacoach.envs.libero_package import quiet
from vlacoach.errors import ExitCode

ARM = np.array([1, 2, 4, 5, 6, 8, 9])
"""Where the arm's joints are among eleven."""


def _situation(seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(11, 11))
    return {
        "mass": root @ root.T + 0.1 * np.eye(11),
        "jacobian": rng.normal(size=(6, 11)),
        "position": rng.normal(size=3),
        "rotation": Rotation.random(random_state=seed).as_matrix().ravel(),
        "qpos": rng.normal(size=11),
        "qvel": rng.normal(size=11),
        "bias": rng.normal(size=11),
        "qpos_index": ARM,
        "qvel_index": ARM,
        "goal_position": rng.normal(size=3),
        "goal_rotation": Rotation.random(random_state=seed + 1).as_matrix(),
        "rest_position": rng.normal(size=7),
    }


def _written_out(s):
    """Khatib's law with robosuite's constants, by pseudo-inverses, as it is written down there."""
    mass, jacobian = s["mass"][np.ix_(ARM, ARM)], s["jacobian"][:, ARM]
    inverse_mass = np.linalg.inv(mass)
    full = np.linalg.pinv(jacobian @ inverse_mass @ jacobian.T)
    linear = np.linalg.pinv(jacobian[:3] @ inverse_mass @ jacobian[:3].T)
    angular = np.linalg.pinv(jacobian[3:] @ inverse_mass @ jacobian[3:].T)
    velocity = s["jacobian"] @ s["qvel"]
    now, goal = s["rotation"].reshape(3, 3), s["goal_rotation"]
    turn = 0.5 * sum(np.cross(now[:, axis], goal[:, axis]) for axis in range(3))
    damping = 2 * np.sqrt(150.0)
    force = linear @ (150.0 * (s["goal_position"] - s["position"]) - damping * velocity[:3])
    moment = angular @ (150.0 * turn - damping * velocity[3:])
    posture = mass @ (10.0 * (s["rest_position"] - s["qpos"][ARM]) - 2 * np.sqrt(10.0) * s["qvel"][ARM])
    null_space = np.eye(7) - inverse_mass @ jacobian.T @ full @ jacobian
    return jacobian.T @ np.concatenate([force, moment]) + null_space.T @ posture + s["bias"][ARM]


@pytest.mark.parametrize("seed", range(5))
def test_torques_are_those_of_the_law_written_out(seed):
    situation = _situation(seed)
    torque = np.empty(7)
    assert osc_torque(*situation.values(), torque)
    expected = _written_out(situation)
    np.testing.assert_allclose(torque, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("broken", ["mass", "jacobian"])
def test_a_singular_arm_is_reported(broken):
    situation = _situation()
    situation[broken][0 if broken == "jacobian" else ARM[0]] = 0.0
    assert not osc_torque(*situation.values(), np.empty(7))


def test_a_state_that_is_not_a_number_is_reported():
    situation = _situation()
    situation["mass"][:] = np.nan
    assert not osc_torque(*situation.values(), np.empty(7))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.5, 3.0])
def test_rotation_matrices(angle):
    vector = angle * np.array([0.6, 0.0, -0.8])
    # Single precision, as robosuite has it.
    np.testing.assert_allclose(rotation_matrix(vector), Rotation.from_rotvec(vector).as_matrix(), atol=5e-7)


@pytest.mark.sim
def test_rotation_matrices_are_robosuites_to_the_last_bit():
    with quiet():
        from robosuite.utils.transform_utils import axisangle2quat, quat2mat
    for vector in np.random.default_rng(0).normal(size=(50, 3)):
        np.testing.assert_array_equal(rotation_matrix(vector), quat2mat(axisangle2quat(vector)))


def test_a_fatal_error_in_compiled_code_ends_the_process_with_a_word_and_no_prompt(tmp_path):
    code = (
        "import ctypes, pathlib, mujoco, vlacoach.envs.physics\n"
        "(file,) = pathlib.Path(mujoco.__file__).parent.glob('libmujoco*')\n"
        "ctypes.CDLL(str(file)).mju_error(b'out of memory')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == ExitCode.SIMULATOR
    assert "MuJoCo cannot go on: out of memory" in done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_the_bindings_still_raise():
    with pytest.raises(mujoco.FatalError):
        mujoco.mj_saveModel(mujoco.MjModel.from_xml_string("<mujoco/>"), None, np.empty(1, dtype=np.uint8))
