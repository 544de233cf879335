"""Errors that vlacoach raises on purpose: each says what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit status of the ``vlacoach`` command, one per kind of outcome."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    SIMULATOR = 3
    MODEL = 4
    RUN = 5
    DIVERGED = 6
    INTERRUPTED = 130


class VlacoachError(Exception):
    """Root of every error raised on purpose.

    Args:
        message: What was wrong, and where.
        hint: What the user can do about it; shown on its own line.
    """

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries (environment workers), so keyword state must survive pickling.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[VlacoachError], message: str, hint: str | None) -> VlacoachError:
    error = kind.__new__(kind)
    VlacoachError.__init__(error, message, hint)
    return error


class ConfigError(VlacoachError):
    """A configuration value, key, or command-line argument that cannot be used."""

    exit_code = ExitCode.USAGE


class UnknownNameError(ConfigError):
    """A name that is not registered; the message lists what exists and suggests the nearest.

    Args:
        kind: What was looked up, for example ``"suite"``.
        name: The name that was given.
        available: Every name that would have been accepted.
    """

    def __init__(self, kind: str, name: object, available: Iterable[str]) -> None:
        names = sorted(available)
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        super().__init__(f"Unknown {kind} {name!r}.", f"{hint}Available: {', '.join(names) or 'none'}.")


class SimulatorError(VlacoachError):
    """The simulator or its renderer could not be started or broke down."""

    exit_code = ExitCode.SIMULATOR


class CheckpointError(VlacoachError):
    """A policy, adapter, scorer, or training state that is missing, corrupt, or of another shape."""

    exit_code = ExitCode.MODEL


class RunError(VlacoachError):
    """A run folder that is missing, incomplete, or in use."""

    exit_code = ExitCode.RUN


class RankError(RunError):
    """One of several processes that train together is lost, hangs, or has come to other numbers than the rest."""


class DivergedError(VlacoachError):
    """Training that must not go on: what it would do from here on is wrong.

    Attributes:
        what: Short name of the kind, for alerts and for the folder in which the evidence is kept.
    """

    exit_code: ExitCode = ExitCode.DIVERGED
    what: ClassVar[str] = "diverged"


class NonFiniteError(DivergedError):
    """A loss, gradient, ratio, embedding, or reward that is NaN or infinite; names the tensor (invariant 5)."""

    what = "nonfinite"


class RatioError(DivergedError):
    """The first probability ratio of an update is not 1: what is trained is not what acted (invariant 2)."""

    what = "ratio"


class UpdateMemoryError(VlacoachError):
    """The update does not fit into memory, with half the micro-batch neither."""


class LaunchError(VlacoachError):
    """A training that an engine was to run elsewhere could not be started there, or was given up."""
