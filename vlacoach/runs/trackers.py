"""Where metrics go beside the run folder: TensorBoard, Weights & Biases, trackio.

None of them is needed: each is an extra, loaded when it is asked for. None may end a training either: one that fails
while metrics come in is said so once, and gets no more.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

from vlacoach.errors import ConfigError

TrackerName = Literal["tensorboard", "wandb", "trackio"]

PROJECT = "vlacoach"
"""Project that runs are gathered under."""


class MetricWriter(Protocol):
    """Takes the metrics of a run, one call a line of metrics.jsonl."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take some metrics.

        Args:
            step: Updates done.
            metrics: Finite numbers by name.
        """

    def close(self) -> None:
        """Send what is left, and end."""


class Trackers:
    """The trackers of one run.

    Args:
        alert: Called with a message and advice when one has failed and was let go.
    """

    def __init__(self, alert: Callable[[str, str], None]) -> None:
        self._alert = alert
        self._writers: list[MetricWriter] = []

    def attach(self, writer: MetricWriter) -> None:
        """Send metrics to a tracker too, from now on."""
        self._writers.append(writer)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send a record's metrics to every tracker; what is not finite is left out."""
        metrics = finite(values) if self._writers else {}
        for writer in list(self._writers) if metrics else ():
            self._try(writer, partial(writer.log, step, metrics))

    def close(self) -> None:
        """End every tracker."""
        for writer in list(self._writers):
            self._try(writer, writer.close)
        self._writers.clear()

    def _try(self, writer: MetricWriter, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # Networks, servers and third parties fail in every way; training goes on.
            self._writers.remove(writer)
            self._alert(
                f"{writer.name} failed and gets no more metrics: {type(error).__name__}: {error}",
                "metrics.jsonl has them all; see vlacoach runs export.",
            )


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among a record's values that are finite numbers; trackers refuse or misdraw the others."""
    numbers = {key: value for key, value in values.items() if "/" in key and not isinstance(value, bool)}
    return {key: float(value) for key, value in numbers.items() if _is_finite(value)}


def _is_finite(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]  # Python's numbers, NumPy's, torch's.
    except (TypeError, ValueError):
        return False


def require_installed(names: Sequence[TrackerName]) -> None:
    """Refuse trackers that are not installed, before a run is begun for them.

    Raises:
        ConfigError: One is not; the hint has the command that installs it.
    """
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ConfigError(f"{name} is not installed.", f'Install it with: pip install "vlacoach[{name}]"') from None


def open_trackers(names: Sequence[TrackerName], run: Path, config: Mapping[str, Any]) -> list[MetricWriter]:
    """Start trackers for a run; a run that is resumed goes on under its name.

    Args:
        names: Which.
        run: The run's folder; its name is the run's name there.
        config: Settings to show with it, by dotted key.

    Raises:
        ConfigError: One is not installed, or does not start.
    """
    require_installed(names)
    writers: list[MetricWriter] = []
    try:
        for name in names:
            writers.append(_open(name, run, config))
    except Exception as error:  # No account, no network, no rights: each tracker has errors of its own for it.
        for writer in writers:
            writer.close()
        raise ConfigError(
            f"{names[len(writers)]} does not start: {type(error).__name__}: {error}",
            "Set it up as its own documentation says, or leave it out of --log.",
        ) from error
    return writers


def _open(name: TrackerName, run: Path, config: Mapping[str, Any]) -> MetricWriter:
    if name == "tensorboard":
        return TensorBoardWriter(run / "tensorboard")
    return WandbWriter(run, config) if name == "wandb" else TrackioWriter(run, config)


class TensorBoardWriter:
    """Event files for TensorBoard.

    Args:
        folder: Where they go; made if missing. Events there of the first step logged or a later one, which a run left
            behind that was resumed from before them, are marked as void.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        require_installed(("tensorboard",))
        self._folder = folder
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float], time: float | None = None) -> None:
        """Take some metrics.

        Args:
            step: Updates done.
            metrics: Finite numbers by name.
            time: Seconds since the epoch; None is now.
        """
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step, walltime=time)

    def close(self) -> None:
        """Write what is left, and end."""
        if self._writer is not None:
            self._writer.close()


class WandbWriter:
    """A run of Weights & Biases; ``WANDB_MODE=offline`` keeps it on this machine.

    Args:
        run: The run's folder.
        config: Settings by dotted key.
    """

    name = "wandb"

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT, name=run.name, id=run.name, dir=str(run), config=dict(config), resume="allow"
        )
        # Several lines may have one step, and a resumed run repeats some: wandb's own step would refuse both.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take some metrics."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """Send what is left, and end."""
        self._run.finish()


class TrackioWriter:
    """A run of trackio.

    Args:
        run: The run's folder.
        config: Settings by dotted key.
    """

    name = "trackio"

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        with redirect_stdout(sys.stderr):  # Standard output is for data.
            self._run = trackio.init(project=PROJECT, name=run.name, config=dict(config), resume="allow")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take some metrics."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Send what is left, and end."""
        with redirect_stdout(sys.stderr):
            # The run's own finish() would leave it to be finished, and said so, once more at exit.
            self._trackio.finish()
