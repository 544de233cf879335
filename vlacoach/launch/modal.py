"""``vlacoach train`` in a container of Modal's: the image, the volumes, the function, and what happens at both ends.

The function runs the very command that was typed here, with the run folder in a volume. Nothing of the training is
decided in this file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import modal

import vlacoach
from vlacoach.errors import ConfigError, LaunchError
from vlacoach.launch.following import Say, follow, ways_to_go_on
from vlacoach.launch.mirror import RunMirror
from vlacoach.launch.pricing import Machine
from vlacoach.launch.supervising import Job, supervise

APP = "vlacoach"
RUNS_VOLUME, CACHE_VOLUME = "vlacoach-runs", "vlacoach-cache"
RUNS, CACHE = "/runs", "/cache"
"""Where the volumes are mounted."""

PYTHON = "3.11"
"""Of the container; every version of Modal's image builder has it."""

SYSTEM_LIBRARIES = ("libegl1", "libgl1", "libgl1-mesa-dri")
"""What scripts/system_libraries.sh installs for MuJoCo to draw with."""

EXTRAS = ("quantize", "video")
"""Extras of the project that are always installed there: large policies are quantized, and videos are kept."""

SOURCE = "/opt/vlacoach"
"""Where a checkout is copied to."""

PACKAGE_FILES = ("pyproject.toml", "README.md", "LICENSE")

DAY = 24 * 3600
"""Seconds; the longest that Modal lets an attempt take."""

RETRIES = 3
"""Attempts after the first that failed for want of memory, by a simulator, by an unknown error or by its time limit.
A container that Modal takes away is replaced without being counted."""


@dataclass(frozen=True)
class AppSettings:
    """Everything that an app is made of; :func:`build_app` turns it into Modal's objects.

    Attributes:
        machine: What is rented.
        checkout: Folder of this project's source to install, or None to install the released version.
        version: The released version.
        extras: Extras of the project to install.
        secrets: Names of environment variables to hand over, such as ``HF_TOKEN``.
        timeout: Seconds that an attempt may take.
        retries: Attempts after the first.
    """

    machine: Machine
    checkout: Path | None
    version: str = vlacoach.__version__
    extras: tuple[str, ...] = EXTRAS
    secrets: tuple[str, ...] = ()
    timeout: int = DAY
    retries: int = RETRIES

    @property
    def requirement(self) -> str:
        """What pip is asked for without a checkout."""
        return f"vlacoach[{','.join(self.extras)}]=={self.version}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the container: downloads and compiled scenes outlive it."""
        return {
            "HF_HOME": f"{CACHE}/huggingface",
            "VLACOACH_CACHE": f"{CACHE}/vlacoach",
            "PYTHONUNBUFFERED": "1",
        }


@dataclass(frozen=True)
class TrainingApp:
    """Modal's objects for one training.

    Attributes:
        app: The app.
        function: What trains; takes a :class:`~vlacoach.launch.supervising.Job` as a dict.
        volumes: By the path that they are mounted at.
    """

    app: modal.App
    function: modal.Function
    volumes: Mapping[str, modal.Volume] = field(default_factory=dict)


def find_checkout(package: Path = Path(vlacoach.__file__).parent) -> Path | None:
    """The folder of the project's source, if this package runs from it and was not installed."""
    root = package.parent
    try:
        text = (root / PACKAGE_FILES[0]).read_text(encoding="utf-8")
    except OSError:
        return None
    return root if re.search(r'^name = "vlacoach"$', text, re.MULTILINE) else None


def build_image(settings: AppSettings) -> modal.Image:
    """Debian with the GL libraries, CUDA's torch, which is what pip installs on Linux, and this project."""
    image = modal.Image.debian_slim(PYTHON).apt_install(*SYSTEM_LIBRARIES)
    if settings.checkout is None:
        return image.pip_install(settings.requirement).env(settings.environment)
    # Dependencies first: a changed source file must not install torch again.
    image = image.pip_install_from_pyproject(str(settings.checkout / PACKAGE_FILES[0]), list(settings.extras))
    for name in PACKAGE_FILES:
        image = image.add_local_file(settings.checkout / name, f"{SOURCE}/{name}", copy=True)
    image = image.add_local_dir(
        settings.checkout / "vlacoach", f"{SOURCE}/vlacoach", copy=True, ignore=["**/__pycache__", "**/*.pyc"]
    )
    return image.run_commands(f"python -m pip install --no-deps {SOURCE}").env(settings.environment)


def build_app(settings: AppSettings) -> TrainingApp:
    """Make the app; nothing is sent anywhere, and no account is needed."""
    volumes = {
        mount: modal.Volume.from_name(name, create_if_missing=True)
        for mount, name in ((RUNS, RUNS_VOLUME), (CACHE, CACHE_VOLUME))
    }
    app = modal.App(APP)
    register = app.function(
        image=build_image(settings),
        gpu=settings.machine.gpu.name,
        cpu=float(settings.machine.cores),
        memory=settings.machine.memory * 1024,
        volumes=volumes,
        secrets=[modal.Secret.from_dict({name: os.environ[name]}) for name in settings.secrets],
        timeout=settings.timeout,
        retries=modal.Retries(max_retries=settings.retries, initial_delay=1.0),
        include_source=False,  # The image has the project, with what is not Python too.
    )
    return TrainingApp(app, register(train_in_container), volumes)


def train_in_container(job: dict[str, Any]) -> dict[str, Any]:
    """What runs at Modal: one attempt at a job; see :func:`~vlacoach.launch.supervising.supervise`."""
    volumes = [modal.Volume.from_name(name) for name in (RUNS_VOLUME, CACHE_VOLUME)]

    def commit() -> None:
        for volume in volumes:
            volume.commit()

    return asdict(supervise(Job(**job), Path(RUNS), commit, modal.exception.Error))


def require_account() -> None:
    """Check that Modal knows the user, before anything is built.

    Raises:
        ConfigError: There is no token, it is not accepted, or Modal does not answer.
    """
    try:
        modal.Client.from_env()
    except modal.exception.AuthError as error:
        raise ConfigError(
            f"Modal does not know you: {_first_sentence(error)}",
            "Make an account at https://modal.com and a token with: modal token new",
        ) from error
    except modal.exception.Error as error:
        raise ConfigError(
            f"Modal cannot be used: {_first_sentence(error)}",
            "Check the network, and ~/.modal.toml or the MODAL_ variables; modal token info says who you are.",
        ) from error


def _first_sentence(error: Exception) -> str:
    return f"{str(error).split('. ')[0].rstrip('.')}."


def runs_volume() -> modal.Volume:
    """The volume with every run that was trained at Modal."""
    return modal.Volume.from_name(RUNS_VOLUME, create_if_missing=True)


def start(settings: AppSettings, job: Job, mirror: RunMirror, say: Say, logs: bool) -> dict[str, Any] | None:
    """Start a job at Modal and copy its run folder until it has ended.

    Args:
        settings: Of the app.
        job: What to run.
        mirror: Copies the run folder.
        say: Tells the user something.
        logs: Whether to show Modal's progress and what the container prints, on standard error.

    Returns:
        Exit status and standard output of the command there; None if the user left while it goes on.

    Raises:
        LaunchError: It could not be started, or was given up.
        RunError: The copy of the run folder cannot be written.
    """
    training = build_app(settings)
    try:
        with ExitStack() as stack:
            if logs:
                # Modal prints on standard output, which is for data here.
                stack.enter_context(redirect_stdout(sys.stderr))
                stack.enter_context(modal.enable_output())
            # Detached: losing this machine must not lose the training.
            stack.enter_context(training.app.run(detach=True))
            app_id = training.app.app_id or ""
            call = training.function.spawn(asdict(job))
            with ways_to_go_on(mirror, app_id, say):
                return follow(call, mirror, say, {"app": app_id, "call": call.object_id})
    except modal.exception.Error as error:
        raise LaunchError(f"Modal could not start the training: {type(error).__name__}: {error}") from error
    return None  # Modal ends the block by itself when it is interrupted.


def follow_again(call: modal.FunctionCall, mirror: RunMirror, say: Say, record: Mapping[str, str]) -> dict[str, Any]:
    """Go on copying the run folder of a training that this machine had left."""
    with ways_to_go_on(mirror, record["app"], say):
        return follow(call, mirror, say, record)


def running_call(record: Mapping[str, str]) -> modal.FunctionCall | None:
    """The call that a run was started by, if it has not ended.

    Args:
        record: What :func:`start` left in the copy of the run.

    Raises:
        LaunchError: Modal does not answer, so that it is not known; two containers must not write one run.
    """
    call = modal.FunctionCall.from_id(record["call"])
    try:
        call.get(timeout=0)
    except TimeoutError:
        return call
    except modal.exception.ConnectionError as error:
        raise LaunchError(f"Whether the run is at work at Modal cannot be told: {error}") from error
    except Exception:  # However it ended; those who followed it had its error then.
        return None
    return None
