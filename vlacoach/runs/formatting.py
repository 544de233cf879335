"""Numbers for people."""

from __future__ import annotations

import math


def format_value(value: object) -> str:
    """A number in at most four significant digits; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def format_seconds(seconds: float) -> str:
    """A duration such as ``"0:42"`` or ``"1:03:20"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_bytes(count: float) -> str:
    """An amount of memory such as ``"3.1 GiB"``."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} GiB" if count < 1000 else f"{count:.0f} GiB"


def format_percent(rate: float) -> str:
    """A rate in [0, 1] as a percentage, for example ``"43.0"``."""
    return f"{100 * rate:.1f}"
