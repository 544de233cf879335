from __future__ import annotations

import os
import signal
import threading

import pytest

from vlacoach.runs.stopping import SIGNALS, GracefulStop, interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_insists(number):
    before = signal.getsignal(number)
    told = []
    with GracefulStop(told.append) as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
        assert told == [number.name]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_other_threads_are_left_alone():
    stopped = []

    def work():
        with GracefulStop() as stop:
            stopped.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stopped == [False]


@pytest.mark.parametrize("number", SIGNALS)
def test_around_the_work_each_signal_is_an_interrupt(number):
    before = signal.getsignal(number)
    with interruptible():
        with GracefulStop() as stop:
            os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
