"""Rollouts for the reward lab show what the policy sees: its cameras, at its size."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from openvla_folders import OFT, load, oracle_folder
from typer.testing import CliRunner

from vlacoach.agents.reward_lab import SHARES, as_trajectory, collect_rollouts
from vlacoach.cli.main import app
from vlacoach.data.rollouts import RecordedEpisode, read_rollouts, write_rollouts
from vlacoach.errors import ConfigError
from vlacoach.policies import VLAPolicy, load_policy

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def policy() -> VLAPolicy:
    """Reads two cameras at 256 pixels."""
    return load(OFT)


@pytest.fixture(scope="module")
def recorded(policy: VLAPolicy) -> list[RecordedEpisode]:
    return collect_rollouts(policy, "libero_goal", [8], 3, max_steps=8, num_envs=1, workers=1)


def test_every_kind_of_rollout_shows_the_policys_cameras_at_its_size(recorded: list[RecordedEpisode]):
    assert Counter(one.source for one in recorded) == dict.fromkeys(SHARES, 1)
    for one in recorded:
        assert one.frames.shape == (2, 2, 256, 256, 3)
        hand, scene = (one.frames[:, camera].astype(float) for camera in (1, 0))
        assert np.abs(hand - scene).mean() > 10
        # After eight actions the hand's camera has moved, and the other has not.
        assert np.abs(hand[1] - hand[0]).mean() > np.abs(scene[1] - scene[0]).mean()


def test_they_are_kept_encoded_and_shown_by_the_first_camera(policy: VLAPolicy, recorded, tmp_path):
    kept = read_rollouts(write_rollouts(tmp_path / "rollouts.hdf5", recorded))
    for one, other in zip(recorded, kept, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
    trajectory = as_trajectory(policy, kept[0])
    assert trajectory.features.shape == (1, policy.num_patches, policy.feature_dim) == (1, 512, 72)
    np.testing.assert_array_equal(trajectory.frames, kept[0].frames[:, 0])
    with pytest.raises(ConfigError, match=r"reads 1 image\(s\) a look, not 2"):
        as_trajectory(load_policy("tiny"), kept[0])


def test_the_bench_runs_on_two_cameras(recorded, tmp_path):
    """On copies that are said to be of both halves of the initial states and to have both outcomes."""
    several = [replace(one, init_state=state, success=state % 4 < 2) for one in recorded[:2] for state in range(4)]
    file = write_rollouts(tmp_path / "rollouts.hdf5", several)
    arguments = ["--policy", oracle_folder(OFT), "--scorer", "siglip", "--scorer", "pixels", "--resamples", 100]
    command = ["-q", "reward", "bench", "--rollouts", file, *arguments, "--json"]
    result = CliRunner().invoke(app, [str(one) for one in command])
    assert result.exit_code == 0, result.output
    assert [one["name"] for one in json.loads(result.stdout)["scorers"]] == ["siglip", "pixels"]
