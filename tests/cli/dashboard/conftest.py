from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import make_run
from rich.console import Console

from vlacoach.cli.dashboard.app import DashboardApp
from vlacoach.cli.dashboard.settings import DashboardSettings
from vlacoach.cli.dashboard.view import Options

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run; not to be written to."""
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def same_everywhere(monkeypatch):
    """Nothing may depend on the terminal or the clock's zone of whoever runs the tests."""
    for name in ("NO_COLOR", "COLORTERM", "TEXTUAL_THEME", "TEXTUAL_COLOR_SYSTEM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.setenv("TERM", "xterm-256color")


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


@pytest.fixture
def drive(finished):
    """Run the dashboard at a size, press keys, and hand it to a function while it runs."""

    def start(
        *keys: str,
        run: Path | None = None,
        size: tuple[int, int] = (80, 24),
        act: Callable[[Any], Awaitable[Any]] | None = None,
        settings: DashboardSettings | None = None,
        settings_file: Path | None = None,
        others: tuple[Path, ...] = (),
        **options: Any,
    ) -> str:
        path = run or finished
        made = Options(path.parent, poll_seconds=options.pop("poll_seconds", 60.0), **options)

        async def main() -> str:
            app = DashboardApp(path, made, settings, settings_file, others)
            async with app.run_test(size=size) as pilot:
                await settle(pilot)
                for key in keys:
                    await pilot.press(key)
                    await settle(pilot)
                if act is not None:
                    await act(pilot)
                    await settle(pilot)
                return screen_text(app) if app.is_running else ""

        return asyncio.run(main())

    return start


@pytest.fixture
def golden(request) -> Callable[[str, str], None]:
    """Compare a screen with the stored one; ``pytest --update-golden`` stores what is there now."""

    def compare(name: str, text: str) -> None:
        file = GOLDEN / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert file.is_file(), f"{file} is missing: look at the screen, then run pytest --update-golden\n{text}"
        assert text == file.read_text(encoding="utf-8")

    return compare
