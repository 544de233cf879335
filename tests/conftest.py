"""What every room's tests share."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import settings
from oracle_cases import load_case

# Before torch is imported, and for every process that a test starts: these matrices are too small to share, and threads
# that wait for each other on a busy machine take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let golden files be written anew, after somebody has looked at what they would say."""
    parser.addoption("--update-golden", action="store_true", help="store screens as they are now")


@pytest.fixture(scope="session", autouse=True)
def _scene_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled scenes go to a folder of the session: only the first test waits for one, and none is left behind."""
    if "VLACOACH_CACHE" in os.environ:
        yield
        return
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLACOACH_CACHE", str(folder))
        yield
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _log_level() -> None:
    """Commands that ran in this process before may have silenced warnings."""
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture
def oracle() -> Callable[[str], dict[str, np.ndarray]]:
    """Load reference arrays, for example ``oracle("srpo/gripper")``; skips if they are missing."""
    return load_case
