"""The dashboard: a screen of panes that follows a run from its folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from textual import on
from textual.app import App, SystemCommand
from textual.screen import Screen

from vlacoach.cli.dashboard.keys import KEYS
from vlacoach.cli.dashboard.main_screen import MainScreen, SettingsChanged
from vlacoach.cli.dashboard.settings import DashboardSettings, save_settings
from vlacoach.cli.dashboard.view import Options, View
from vlacoach.errors import RunError


class DashboardApp(App[None]):
    """Follows a run.

    Args:
        run: The run folder.
        options: How the dashboard was started.
        settings: What was kept from earlier starts.
        settings_file: Where to keep it; None keeps nothing.
        others: Runs to lay over the charts.
    """

    TITLE = "vlacoach"

    def __init__(
        self,
        run: Path,
        options: Options,
        settings: DashboardSettings | None = None,
        settings_file: Path | None = None,
        others: Iterable[Path] = (),
    ) -> None:
        super().__init__()
        self.view = View.of(run, options)
        self.view.select(run, list(others))
        self._settings = settings or DashboardSettings()
        self._settings_file = settings_file
        self._started = False

    def on_mount(self) -> None:
        """Take over what was kept, and show the main screen."""
        self.set_keymap(self._settings.keys)
        if self._settings.theme in self.available_themes:
            self.theme = self._settings.theme
        self.push_screen(MainScreen(self.view, self._settings))
        self._started = True

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Every key's action, by name, in the palette."""
        yield from super().get_system_commands(screen)
        if isinstance(screen, MainScreen):
            for key in KEYS:
                yield SystemCommand(key.label, key.description, self._runner(screen, key.action))

    def _runner(self, screen: Screen[Any], action: str) -> Any:
        async def run() -> None:
            await screen.run_action(action)

        return run

    def watch_theme(self, theme: str) -> None:
        """Keep the theme, whichever way it was chosen."""
        if self._started:
            self._keep(theme=theme)

    @on(SettingsChanged)
    def _settings_changed(self, message: SettingsChanged) -> None:
        self._keep(**message.changes)

    def _keep(self, **changes: Any) -> None:
        self._settings = self._settings.model_copy(update=changes)
        if self._settings_file is None:
            return
        try:
            save_settings(self._settings_file, self._settings)
        except (RunError, OSError) as error:
            self.notify(f"Settings are not kept: {error}", severity="warning", markup=False)
