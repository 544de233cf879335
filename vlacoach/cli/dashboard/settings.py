"""What the dashboard keeps between starts: theme, smoothing, and a user's own keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlacoach.cli.dashboard.keys import check_keymap
from vlacoach.errors import ConfigError
from vlacoach.runs.files import replace_text
from vlacoach.runs.yaml_io import read_yaml

SETTINGS_FILE = "dashboard.yaml"


class DashboardSettings(BaseModel):
    """Settings of the dashboard."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    theme: str = "textual-dark"
    """One of Textual's themes."""
    smoothing: float = Field(default=0.6, ge=0.0, lt=1.0)
    """Share of the past in the moving average of a chart."""
    keys: dict[str, str] = {}
    """Identifier of a key (see the help screen) to the keys it is to have, for example ``{pause: "space"}``."""


def settings_file() -> Path:
    """Where the settings are: in the user's configuration folder."""
    from platformdirs import user_config_path

    return user_config_path("vlacoach") / SETTINGS_FILE


def load_settings(file: Path) -> DashboardSettings:
    """Read settings; a missing file has the defaults.

    Raises:
        ConfigError: The file cannot be read, has unknown keys, or a value that is not valid.
    """
    if not file.is_file():
        return DashboardSettings()
    try:
        settings = DashboardSettings.model_validate(read_yaml(file))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        known = ", ".join(DashboardSettings.model_fields)
        raise ConfigError(f"{file}: {'; '.join(problems)}.", f"Keys are: {known}.") from error
    check_keymap(settings.keys, str(file))
    return settings


def save_settings(file: Path, settings: DashboardSettings) -> None:
    """Write settings that differ from the defaults.

    Raises:
        RunError: The file cannot be written.
        OSError: Its folder cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = settings.model_dump(exclude_defaults=True)
    replace_text(file, yaml.safe_dump(values, sort_keys=False) if values else "{}\n", sync=False)
