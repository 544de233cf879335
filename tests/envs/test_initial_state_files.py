"""LIBERO's initial states may be pickles: only those of the installed package are read."""

from __future__ import annotations

import pytest
import yaml

from vlacoach.envs import libero_package
from vlacoach.errors import SimulatorError


def test_initial_states_come_from_the_installed_package_alone(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"init_states": str(tmp_path / "states")}))
    assert len(libero_package.initial_states("libero_goal", 8)) == 50
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with pytest.raises(SimulatorError, match="outside of the installed package") as caught:
        libero_package.initial_states("libero_goal", 8)
    assert str(tmp_path / "states") in caught.value.message
    assert "LIBERO_CONFIG_PATH" in caught.value.hint
