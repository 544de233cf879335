"""What every room's tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from oracle_cases import load_case


@pytest.fixture
def oracle() -> Callable[[str], dict[str, np.ndarray]]:
    """Load reference arrays, for example ``oracle("srpo/gripper")``; skips if they are missing."""
    return load_case
