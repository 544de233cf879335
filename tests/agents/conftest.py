"""The toy policy, a place where it is trained, and toy worlds to measure it in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from measured import STATES
from toy_envs import TOY_SUITE, ToyEnvs, toy_config, toy_policy
from toy_house import House
from toy_trainer import Trainers

from vlacoach.agents import measuring
from vlacoach.agents.measuring import Measurement
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


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[ToyEnvs]:
    """Toy worlds in the place of LIBERO, those that were made; one state breaks down in each, once."""
    return toys_for_libero(monkeypatch, broken=(5,))


@pytest.fixture
def sound_worlds(monkeypatch: pytest.MonkeyPatch) -> list[ToyEnvs]:
    """Toy worlds in the place of LIBERO, those that were made; none breaks down."""
    return toys_for_libero(monkeypatch)


def toys_for_libero(monkeypatch: pytest.MonkeyPatch, broken: tuple[int, ...] = ()) -> list[ToyEnvs]:
    made: list[ToyEnvs] = []

    def make(config: object, policy: object) -> ToyEnvs:
        made.append(ToyEnvs(4, broken, repaired_after=1))
        return made[-1]

    monkeypatch.setattr(measuring, "make_envs", make)
    monkeypatch.setattr(measuring, "get_suite", lambda name: TOY_SUITE)
    return made


@pytest.fixture
def wanted(tmp_path: Path) -> Measurement:
    base = toy_policy().save(tmp_path / "base")
    config = toy_config(policy={"path": str(base)}, evaluation={"trials": 6, "temperature": 1.0})
    return Measurement(config, STATES, "held-out", (3, 5))
