"""Modal's app before it is sent; test_modal_command.py reads what is sent."""

from __future__ import annotations

import re
from pathlib import Path

import modal
import pytest

import vlacoach
from vlacoach.launch import modal as launch
from vlacoach.launch.modal import AppSettings, build_app, find_checkout
from vlacoach.launch.pricing import GPUS, Machine

ROOT = Path(__file__).parents[2]
MACHINE = Machine(GPUS["A10G"], cores=8, memory=32)


@pytest.fixture(params=[ROOT, None], ids=["checkout", "released"])
def settings(request):
    return AppSettings(MACHINE, request.param)


def specification(training):
    """What Modal keeps of a function for its own ``modal shell``; the only place that has it before it is sent."""
    return training.function._spec_


def test_the_app_has_one_function_with_the_gpu_the_cores_and_the_memory(settings):
    training = build_app(settings)
    found = specification(training)
    assert isinstance(training.app, modal.App)
    assert training.app.name == "vlacoach"
    assert (found.gpus, found.cpu, found.memory) == ("A10G", 8.0, 32 * 1024)
    assert training.function.app is training.app


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_that_has_a_price_can_be_asked_for(name):
    assert specification(build_app(AppSettings(Machine(GPUS[name], 1, 1), None))).gpus == name


def test_runs_and_caches_are_in_volumes_of_their_own(settings):
    training = build_app(settings)
    volumes = {path: volume.name for path, volume in specification(training).volumes.items()}
    assert volumes == {"/runs": "vlacoach-runs", "/cache": "vlacoach-cache"}
    assert {path: volume.name for path, volume in training.volumes.items()} == volumes


def test_the_caches_of_weights_and_scenes_are_in_the_volume(settings):
    for variable in ("HF_HOME", "VLACOACH_CACHE"):
        assert settings.environment[variable].startswith("/cache/")


def test_the_image_has_the_libraries_that_the_project_installs():
    script = (ROOT / "scripts" / "system_libraries.sh").read_text()
    libraries = re.search(r"missing\+=\((libegl1[^)]*)\)", script)
    assert libraries is not None
    assert set(launch.SYSTEM_LIBRARIES) == set(libraries[1].split())


def test_the_python_of_the_image_is_one_the_project_supports():
    least = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert least is not None
    assert int(launch.PYTHON.removeprefix("3.")) >= int(least[1])


def test_without_a_checkout_the_released_version_is_installed():
    settings = AppSettings(MACHINE, None, extras=("quantize", "video", "wandb"))
    assert settings.requirement == f"vlacoach[quantize,video,wandb]=={vlacoach.__version__}"


def test_every_extra_that_is_installed_exists():
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in text for extra in launch.EXTRAS)


def test_a_checkout_is_known_by_its_project_file(tmp_path):
    assert find_checkout() == ROOT
    assert find_checkout(tmp_path / "site-packages" / "vlacoach") is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert find_checkout(tmp_path / "vlacoach") is None


def test_a_secret_that_is_not_in_the_environment_is_not_made_up(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert len(specification(build_app(AppSettings(MACHINE, None, secrets=("HF_TOKEN",)))).secrets) == 1
    assert specification(build_app(AppSettings(MACHINE, None))).secrets == []
