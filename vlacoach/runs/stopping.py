"""A polite stop: the first Ctrl-C or SIGTERM asks, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask for a stop; SIGUSR1 is what Slurm sends before the time limit."""


class GracefulStop:
    """While active, the first signal only sets :attr:`requested`; the second raises ``KeyboardInterrupt``.

    The loop looks at :attr:`requested` between stages, saves a checkpoint and then raises
    ``KeyboardInterrupt`` itself, which ends the command with status 130. Outside the main thread, where
    Python allows no signal handlers, it does nothing.

    Args:
        notify: Called once with the signal's name when a stop is first asked for.

    Attributes:
        requested: Whether a stop was asked for.
    """

    def __init__(self, notify: Callable[[str], None] | None = None) -> None:
        self.requested = False
        self._notify = notify
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._notify is not None:
            self._notify(signal.Signals(number).name)

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


@contextmanager
def interruptible() -> Iterator[None]:
    """While active, each of :data:`SIGNALS` raises ``KeyboardInterrupt``, as Ctrl-C does.

    For the time around :class:`GracefulStop`, in which there is nothing to finish: what is open is closed, and the
    command ends with status 130 instead of dying in silence.
    """
    previous: dict[signal.Signals, signal._HANDLER] = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
