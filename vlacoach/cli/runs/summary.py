"""What the commands about runs say of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlacoach.runs.folder import RunFolder


def summarize(folder: RunFolder) -> dict[str, Any]:
    """Identity, state, and last success of a run, in JSON types.

    Raises:
        RunError: The run cannot be read.
    """
    from vlacoach.runs import constants as names

    info = folder.info()
    records = folder.metrics()
    steps = [record[names.STEP] for record in records if isinstance(record.get(names.STEP), int)]
    return {
        "id": str(info.get("id", "")),
        "name": str(info.get("name", "")),
        "folder": folder.path.name,
        "status": folder.status(),
        "updates": max(steps, default=0),
        "rollout_success": _last(records, names.ROLLOUT_SUCCESS),
        "eval_success": _last(records, names.EVAL_SUCCESS),
        "created": float(info.get("created") or 0.0),
    }


def _last(records: list[dict[str, Any]], key: str) -> float | None:
    for record in reversed(records):
        if isinstance(record.get(key), (int, float)):
            return float(record[key])
    return None


def percentage(value: float | None) -> str:
    """A rate such as ``"43.0 %"``; nothing for None."""
    return "" if value is None else f"{100 * value:.1f} %"
