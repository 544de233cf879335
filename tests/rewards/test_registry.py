from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from vlacoach.errors import ConfigError, UnknownNameError
from vlacoach.rewards import available_scorers, make_scorer, register_scorer, registry
from vlacoach.rewards.scorers import SuccessScorer


def halved(policy=None, *, share: float):
    return SuccessScorer(rule={"success_reward": share})


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def test_the_shipped_scorers_are_listed_and_built():
    assert {"siglip", "siglip-t", "success"} <= set(available_scorers())
    for name in ("siglip", "siglip-t", "success"):
        options = {"feature_dim": 8} if name == "siglip-t" else {}
        assert make_scorer(name, **options).name == name


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'siglip-t'"):
        make_scorer("siglipt")


def test_an_unknown_option_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'fusion'"):
        make_scorer("siglip-t", feature_dim=8, fusin="add")


@pytest.mark.usefixtures("empty_registry")
def test_a_registered_scorer_is_built_with_its_options():
    register_scorer("halved", halved)
    assert "halved" in available_scorers()
    assert make_scorer("halved", share=0.5).rule.success_reward == 0.5
    with pytest.raises(ConfigError, match="needs share"):
        make_scorer("halved")
    with pytest.raises(ConfigError, match="exists already"):
        register_scorer("halved", halved)
    with pytest.raises(ConfigError, match="exists already"):
        register_scorer("siglip", halved)


def test_installed_packages_offer_scorers_that_are_imported_on_use_only(tmp_path):
    """A real distribution on the path, in a fresh interpreter."""
    (tmp_path / "plugin.py").write_text("from vlacoach.rewards import SuccessScorer as make\n")
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vlacoach.scorers]\nfrom-plugin = plugin:make\nbroken = no_such_module:make\n"
    )
    code = textwrap.dedent(
        """
        import sys
        from vlacoach.errors import ConfigError
        from vlacoach.rewards import available_scorers, make_scorer
        assert {"from-plugin", "broken", "siglip"} <= set(available_scorers())
        assert "plugin" not in sys.modules and "torch" not in sys.modules
        try:
            make_scorer("broken")
        except ConfigError as error:
            assert "no_such_module" in str(error), error
        else:
            raise SystemExit("a broken plugin went unnoticed")
        assert "plugin" not in sys.modules
        make_scorer("from-plugin")
        assert "plugin" in sys.modules
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(tmp_path), "PATH": ""})
