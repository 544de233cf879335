"""The toy policy, and one thread: the tests' matrices are too small to share."""

from __future__ import annotations

import pytest
import torch
from toy_envs import toy_policy

from vlacoach.policies import VLAPolicy


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def policy() -> VLAPolicy:
    return toy_policy()
