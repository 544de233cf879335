"""The toy policy, and a place where it is trained."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from toy_envs import toy_policy
from toy_house import House
from toy_trainer import Trainers

from vlacoach.policies import VLAPolicy


@pytest.fixture
def policy() -> VLAPolicy:
    return toy_policy()


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("toy_house")
    trainers = Trainers(folder)
    yield House(folder, trainers)
    trainers.close()
