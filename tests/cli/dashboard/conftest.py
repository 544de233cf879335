from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import make_run
from pilots import screen_text, settle

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
