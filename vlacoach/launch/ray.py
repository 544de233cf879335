"""``vlacoach train`` as a group of Ray Train's: the cluster, the workers, and what the user hears meanwhile.

Each worker runs the very command that was typed here. Nothing of the training is decided in this file.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vlacoach.errors import ConfigError, ExitCode, LaunchError, RunError
from vlacoach.launch.mirror import RunMirror
from vlacoach.launch.ray_worker import Ledger, Standing, Task, work
from vlacoach.launch.storage import Storage
from vlacoach.runs import constants as names
from vlacoach.runs.checkpoints import CheckpointStore
from vlacoach.runs.stopping import GracefulStop

LOOK_SECONDS = 1.0
"""Between two looks at how the training stands."""

MIRROR_SECONDS = 5.0
"""Between two copies of a run folder out of the storage."""

PATIENCE = 20.0
"""Seconds without a group after which the user is told what it waits for, and then between two such messages."""

GRACE = 20.0
"""Seconds that a group has to end by itself once it is settled how."""

REACH_SECONDS = 5.0
"""Within which a cluster's head has to answer."""

RAY_FOLDER = ".ray"
"""Where Ray Train's own files are, beside the runs; they are removed at the end."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_COLOR_PREFIX": "0",
}
"""Of Ray, unless the user says otherwise: no telemetry, and nothing on the terminal that nobody asked for."""

CHATTER = ("(PlacementGroupCleaner ", "(PreemptionWatcher ", "(TrainController ")
"""Who of Ray's helpers is not passed on to the terminal."""

COLORS = r"\x1b\[\d*m"

Say = Callable[[str], None]


@dataclass(frozen=True)
class RaySettings:
    """What is asked of a cluster.

    Attributes:
        workers: Processes that train together.
        gpus: GPUs that each has for itself; None is one if any node has one.
        cpus: Cores that are set aside for each.
        address: Of the cluster's head, ``"auto"`` for the one that this machine belongs to, or None to start one here.
        placement: ``"PACK"`` for as few nodes as possible, or ``"SPREAD"``.
        max_failures: Times that a group is started again.
    """

    workers: int = 1
    gpus: int | None = None
    cpus: int = 1
    address: str | None = None
    placement: str = "PACK"
    max_failures: int = 3

    @property
    def needs(self) -> dict[str, float]:
        """Resources of one worker."""
        return {"CPU": float(self.cpus), **({"GPU": float(self.gpus)} if self.gpus else {})}

    def scaling(self) -> ScalingConfig:
        """As Ray Train wants it."""
        return ScalingConfig(
            num_workers=self.workers,
            use_gpu=bool(self.gpus),
            resources_per_worker=self.needs,
            placement_strategy=self.placement,
        )


def room(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """How many workers nodes have room for.

    Args:
        nodes: Resources of each.
        needs: Resources of one worker.
    """
    return sum(min(int(node.get(what, 0.0) // amount) for what, amount in needs.items()) for node in nodes)


def shortage(nodes: Sequence[Mapping[str, float]], settings: RaySettings) -> str | None:
    """What a cluster lacks, in words; None if it has room for all workers."""
    fit = room(nodes, settings.needs)
    if fit >= settings.workers:
        return None
    each = " and ".join(f"{amount:g} {what}" for what, amount in settings.needs.items())
    have = "; ".join(" and ".join(f"{node.get(what, 0.0):g} {what}" for what in settings.needs) for node in nodes)
    return (
        f"{settings.workers} workers with {each} each do not fit on the cluster's nodes ({have}): "
        f"there is room for {fit}."
    )


def start(settings: RaySettings, task: Task, say: Say) -> int:
    """Train on a cluster, until the training has ended there.

    Args:
        settings: What is asked of the cluster.
        task: What each worker does.
        say: Tells the user something.

    Returns:
        Exit status of the command; the run folder is then in the user's folder of runs.

    Raises:
        ConfigError: The cluster or the storage cannot be reached, or a cluster of this machine alone is too small.
        LaunchError: Ray gave it up.
        KeyboardInterrupt: The user insisted.
    """
    storage = Storage(task.storage or task.runs)
    if task.storage is not None:
        _make(storage)
    with _connected(settings.address) as nodes:
        chosen = _chosen(settings, nodes, say)
        task = replace(task, shared=str(Path(task.runs) / RAY_FOLDER / task.job.name))
        mirror = None
        if task.storage is not None:
            mirror = RunMirror(storage, Path(task.runs), task.job.name, folder=task.folder or None)
        both = (Storage(task.runs), storage)
        try:
            for place in both:
                _make(place, f"/{RAY_FOLDER}/{task.job.name}")
            return _Watch(chosen, task, storage, mirror, say).wait()
        finally:
            for place in both:
                _tidy(place, task.job.name)


def _make(storage: Storage, folder: str = "") -> None:
    try:
        storage.filesystem.create_dir(f"{storage.root}{folder}", recursive=True)
    except OSError as error:
        raise ConfigError(f"{storage.uri} cannot be written: {error}", "Is it there, and may you write it?") from error


def _tidy(storage: Storage, name: str) -> None:
    with suppress(OSError):
        storage.remove(f"{RAY_FOLDER}/{name}")
        if not storage.listdir(RAY_FOLDER):
            storage.remove(RAY_FOLDER)


def _chosen(settings: RaySettings, nodes: list[dict[str, float]], say: Say) -> RaySettings:
    if settings.gpus is None:
        settings = replace(settings, gpus=int(any(node.get("GPU") for node in nodes)))
    if lack := shortage(nodes, settings):
        if settings.address is None:
            raise ConfigError(lack, "Ask for less with --workers, --gpus-per-worker or --cpus-per-worker.")
        say(f"{lack} Waiting for nodes; Ctrl-C ends that.")
    return settings


@contextmanager
def _connected(address: str | None) -> Iterator[list[dict[str, float]]]:
    """Be a driver of a cluster; gives the resources of its nodes."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _require_reachable(address)
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    with redirect_stdout(_Heard(sys.stderr)), redirect_stderr(_Heard(sys.stderr)):
        try:
            ray.init(**options, logging_level="error", log_to_driver=True)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"Ray cannot be reached at {address or 'this machine'}: {_first_line(error)}",
                "Start it with `ray start --head`, and give this command on one of its nodes.",
            ) from error
        try:
            yield node_resources()
        finally:
            ray.shutdown()


def node_resources() -> list[dict[str, float]]:
    """Resources of each node that is alive."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _require_reachable(address: str | None) -> None:
    """Ask first: Ray would try for minutes."""
    if address in (None, "auto", "local"):
        return
    assert address is not None
    if "://" in address:
        raise ConfigError(
            f"--ray-address {address} is not that of a cluster's head.",
            "Give the command on a node of the cluster, with --ray-address auto or HOST:PORT.",
        )
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"No Ray cluster answers at {address}: {error}",
            "HOST:PORT is what `ray start --head` printed; --ray-address auto finds the one of this machine.",
        ) from error


class _Watch:
    """Sees a training through: starts it, tells the user how it goes, and hands on the wish to stop."""

    def __init__(self, settings: RaySettings, task: Task, storage: Storage, mirror: RunMirror | None, say: Say) -> None:
        self._settings, self._task, self._storage, self._mirror, self._say = settings, task, storage, mirror, say
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote()
        self._standing = Standing()
        self._error: BaseException | None = None
        self._idle = self._settled = 0.0
        self._since_copy = 0.0
        self._told = self._silent = False

    def wait(self) -> int:
        """Until it has ended; see :func:`start`."""
        # Beside this thread, in which Ray would answer Ctrl-C in its own way, without a checkpoint.
        group = threading.Thread(target=self._fit, daemon=True)
        with GracefulStop(
            lambda name: self._say(f"{name}: stopping after this update. Again to stop at once.")
        ) as stop:
            group.start()
            try:
                # Once it is settled, ranks that still wait for one that has ended need not be waited for.
                while group.is_alive() and self._settled < GRACE:
                    group.join(LOOK_SECONDS)
                    self._look(stop.requested)
            except BaseException:
                self._copy(checkpoints=True)
                self._say(self._way_on())
                raise
        self._look(False)
        self._copy(checkpoints=True)
        return self._judge()

    def _fit(self) -> None:
        settings = self._settings
        trainer = TorchTrainer(
            work,
            train_loop_config={"task": self._task, "ledger": self._ledger},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if settings.gpus else "gloo"),
            scaling_config=settings.scaling(),
            run_config=RunConfig(
                name=self._task.job.name,
                storage_path=f"{self._storage.root}/{RAY_FOLDER}",
                storage_filesystem=self._storage.filesystem,
                failure_config=FailureConfig(max_failures=settings.max_failures),
            ),
        )
        try:
            trainer.fit()
        except (Exception, SystemExit) as error:  # Whatever it is, _judge says it; Ray exits threads that it leaves.
            self._error = error

    def _look(self, stop: bool) -> None:
        try:
            if stop and not self._standing.stop:
                ray.get(self._ledger.stop.remote())
            before, self._standing = self._standing, ray.get(self._ledger.look.remote())
            if stop and self._standing.attempts == 0:
                raise KeyboardInterrupt
            self._narrate(before)
        except ray.exceptions.RayError as error:
            if not self._silent:
                self._say(f"Ray does not answer, and is asked again: {_first_line(error)}")
            self._silent = True
        self._settled += LOOK_SECONDS if self._standing.status is not None else 0.0
        self._since_copy += LOOK_SECONDS
        if self._since_copy >= MIRROR_SECONDS:
            self._since_copy = 0.0
            self._copy()

    def _narrate(self, before: Standing) -> None:
        now = self._standing.attempts
        if now > max(1, before.attempts):
            self._say(f"The group was started again, for the {now - 1}. time of {self._settings.max_failures}.")
        self._idle = self._idle + LOOK_SECONDS if now == 0 else 0.0
        if self._idle >= PATIENCE:
            self._idle = 0.0
            free = ray.available_resources()
            amounts = ", ".join(f"{free.get(what, 0.0):g} {what}" for what in self._settings.needs)
            lack = shortage(node_resources(), self._settings)
            self._say(lack or f"Waiting for Ray to start {self._settings.workers} workers; free are {amounts}.")

    def _copy(self, checkpoints: bool = False) -> None:
        """Bring the user's copy up to date; without a storage the run is there already."""
        if self._mirror is None:
            return
        try:
            self._mirror.sync(checkpoints)
            if self._mirror.path is not None and checkpoints:
                CheckpointStore(self._mirror.path / names.CHECKPOINTS_FOLDER).relink()
        except (OSError, RunError) as error:
            self._say(f"The run folder was not copied from {self._storage.uri}: {_first_line(error)}")
        if self._mirror.path is not None and not self._told:
            self._told = True
            run = self._mirror.path
            self._say(f"Run folder: {run}, a copy that grows. Watch it: vlacoach watch {run.name}")

    def _way_on(self) -> str:
        run = self._task.find(Path(self._task.runs))
        if run is None:
            return "Nothing had begun that could be gone on with."
        storage = f" --storage {self._task.storage}" if self._task.storage else ""
        return (
            f"Go on with: vlacoach train --engine ray --workers {self._settings.workers}{storage} --resume {run.name}"
        )

    def _judge(self) -> int:
        status, reason = self._standing.status, self._standing.reason
        if reason:
            raise ConfigError(reason, "Give --storage, a place that all nodes reach, or a --runs-dir on a shared disk.")
        if status is not None:
            if status == ExitCode.INTERRUPTED:
                self._say(self._way_on())
            return status
        cause = "" if self._error is None else f": {_last_line(self._error)}"
        raise LaunchError(f"Ray gave the training up{cause}", self._way_on()) from self._error


class _Heard:
    """A stream that passes on lines, except what Ray's helpers say among themselves."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        """Pass lines on that are whole."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if not line.startswith(CHATTER):
                # Ray colors the counts of repeated lines, wherever they go.
                self._stream.write(f"{line if self.isatty() else re.sub(COLORS, '', line)}\n")
        return len(text)

    def flush(self) -> None:
        """Pass on what is left."""
        if self._line and not self._line.startswith(CHATTER):
            self._stream.write(self._line)
            self._line = ""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether it ends at a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of what is behind it."""
        return self._stream.fileno()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
