"""One picture of a real LIBERO scene, drawn where a crash of the GL driver hurts nobody."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

SECONDS = 300.0
"""Time for the picture; a scene that was never used here is compiled first."""

HINT = "See docs/environments.md, and try another back end: MUJOCO_GL=osmesa"

_SUITE, _SIZE, _PICTURES = "libero_goal", 128, 5


@dataclass(frozen=True)
class Frame:
    """A picture that was drawn.

    Attributes:
        backend: GL back end that drew it.
        size: Its height and width in pixels.
        milliseconds: Mean time of one of several more like it.
        seconds: Time to the first, with loading or compiling the scene.
    """

    backend: str
    size: int
    milliseconds: float
    seconds: float


def draw_frame() -> Frame | str:
    """Draw a scene of LIBERO with the project's own simulator in a process of its own.

    Returns:
        What was drawn, or what went wrong.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_draw_and_send, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS):
            return f"no picture within {SECONDS:.0f} s"
        found: Frame | str = ours.recv()
        return found
    except EOFError:
        process.join()
        return f"the process that drew ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()
        ours.close()


def _draw_and_send(connection: Connection) -> None:
    # Drivers and libraries write to standard error as they please; what matters is sent.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        found: Frame | str = _draw()
    except Exception as error:  # Whatever a driver or library raises is what the user wants to know.
        found = f"{type(error).__name__}: {error}".splitlines()[0]
    connection.send(found)
    connection.close()
    os._exit(0)  # Without clean-up: GL contexts complain in their destructors.


def _draw() -> Frame | str:
    from vlacoach.envs.checking import shows_nothing
    from vlacoach.envs.simulator import Simulator

    begin = time.monotonic()
    simulator = Simulator(_SUITE, image_size=_SIZE)
    simulator.reset(0, 0, 0, settle_steps=0)
    (picture,) = simulator.render(0).values()
    first = time.monotonic()
    if shows_nothing(picture):
        return f"the picture by {os.environ['MUJOCO_GL']} is black"
    for _ in range(_PICTURES):
        simulator.render(0)
    milliseconds = 1000.0 * (time.monotonic() - first) / _PICTURES
    return Frame(os.environ["MUJOCO_GL"], _SIZE, milliseconds, first - begin)
