"""The suites are registered with Gymnasium whichever of the two is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
import gymnasium
from vlacoach.envs.registration import ENV_IDS
assert set(ENV_IDS.values()) <= set(gymnasium.registry)
assert type(gymnasium.__loader__).__name__ == "SourceFileLoader"
assert gymnasium.__spec__.loader is gymnasium.__loader__
"""


@pytest.mark.parametrize(
    "code",
    [
        "import gymnasium, vlacoach",
        "import vlacoach, sys; assert 'gymnasium' not in sys.modules; import gymnasium",
        "import vlacoach, sys; import gymnasium.spaces; assert 'GymnasiumFinder' not in str(sys.meta_path)",
        "import vlacoach, importlib; importlib.reload(vlacoach); import gymnasium; importlib.reload(vlacoach)",
    ],
)
def test_every_suite_is_registered(code):
    subprocess.run([sys.executable, "-c", code + CHECK], check=True)


def test_gymnasium_finds_a_suite_by_the_packages_name_alone():
    code = "import gymnasium; print(gymnasium.make('vlacoach:vlacoach/LiberoGoal-v0', task=1).spec.id)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "vlacoach/LiberoGoal-v0\n"


def test_without_gymnasium_the_error_is_pythons_own():
    code = """
import sys
import vlacoach
sys.path[:] = []
sys.path_importer_cache.clear()
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
try:
    import gymnasium
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "No module named 'gymnasium'\n"
