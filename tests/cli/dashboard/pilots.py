"""What the dashboard's tests do with a running app: read its screen, and wait."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console


def screen_text(app: Any) -> str:
    """What is on screen, as plain text."""
    # The compositor has no public way to print a screen without colors.
    with open(os.devnull, "w") as nowhere:
        console = Console(
            width=app.size.width, height=app.size.height, record=True, file=nowhere, force_terminal=True,
            legacy_windows=False,
        )  # fmt: skip
        console.print(app.screen._compositor.render_update(full=True))
        text = console.export_text()
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip() + "\n"


async def settle(pilot: Any) -> None:
    """Wait until files have been read, messages handled, and the screen drawn."""
    app = pilot.app
    for _ in range(3):
        # One by one: an empty list would mean all workers, and some wait for a key.
        for worker in [worker for worker in app.workers if worker.group == "poll"]:
            await worker.wait()
        await pilot.pause()


async def until(pilot: Any, condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that another thread or process brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain; on screen:\n{screen_text(pilot.app)}"
        await pilot.pause(0.05)
