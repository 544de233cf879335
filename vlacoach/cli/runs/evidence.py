"""Tables of what a guard has kept, for ``vlacoach runs show --evidence``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vlacoach.cli.console import narration, show, show_json
from vlacoach.runs.evidence import list_evidence, read_evidence
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.formatting import format_value

EPISODES, PARAMETERS = 16, 10
"""Rows that are shown of each; ``--json`` has all."""

_FACTS = ("update", "stage", "step", "optimizer_steps", "learning_rate", "micro_batch", "precision")
_EPISODE = ("slot", "group", "task", "init_state", "success", "valid", "length", "reward", "advantage")
_TOKENS = ("log_prob_change", "nonfinite_tokens")


def show_evidence(folder: RunFolder, as_json: bool) -> None:
    """Print all evidence of a run as JSON, or the newest as tables.

    Raises:
        RunError: It cannot be read.
    """
    found = [read_evidence(path) for path in list_evidence(folder.path)]
    if as_json:
        show_json({"run": str(folder.path), "evidence": found})
        return
    if not found:
        narration().print(f"Run {folder.path.name} has no evidence: no guard has stopped it.")
        return
    for renderable in evidence_tables(found[-1]):
        show(renderable)
    for earlier in found[:-1]:
        narration().print(f"Earlier evidence: {earlier['path']}")


def evidence_tables(facts: Mapping[str, Any]) -> list[RenderableType]:
    """What stopped a training: the error, the episodes that look worst, and the weights that do."""
    return [_summary(facts), *_episodes(facts["episodes"]), *_parameters(facts["parameters"])]


def _summary(facts: Mapping[str, Any]) -> RenderableType:
    table = Table(title=Text(str(facts.get("message", "")), style="bold red"), title_justify="left", show_header=False)
    if isinstance(facts.get("time"), (int, float)):
        table.add_row("time", f"{datetime.fromtimestamp(facts['time']):%Y-%m-%d %H:%M:%S}")
    for key in _FACTS:
        if key in facts:
            table.add_row(key.replace("_", " "), format_value(facts[key]))
    table.add_row("advice", str(facts.get("hint") or ""))
    table.add_row("tensors", Path(str(facts["tensor_file"])).as_posix())
    return table


def _episodes(episodes: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    if not episodes:
        return []
    columns = [key for key in (*_EPISODE, *_TOKENS) if any(key in one for one in episodes)]
    title = f"Episodes that look worst, {min(EPISODES, len(episodes))} of {len(episodes)}"
    table = Table(title=title, title_justify="left")
    for key in columns:
        table.add_column(key.replace("_", " "), justify="right")
    for one in sorted(episodes, key=_suspicion, reverse=True)[:EPISODES]:
        table.add_row(*(_cell(one, key) for key in columns))
    return [table]


def _cell(record: Mapping[str, Any], key: str) -> str:
    # What was not finite is null and named; what was not computed is null or not there.
    value = record.get(key)
    if value is None:
        return "not finite" if key in (record.get("nonfinite") or ()) else "-"
    return format_value(value)


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _suspicion(episode: Mapping[str, Any]) -> tuple[float, float]:
    broken = len(episode.get("nonfinite") or ()) + _number(episode, "nonfinite_tokens")
    return broken, _number(episode, "log_prob_change")


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    if not parameters:
        return []
    title = f"Weights that look worst, {min(PARAMETERS, len(parameters))} of {len(parameters)} that are trained"
    table = Table(title=title, title_justify="left")
    for heading in ("tensor", "norm", "not finite", "gradient's norm", "not finite in it"):
        table.add_column(heading, justify="left" if heading == "tensor" else "right", overflow="fold")

    def badness(one: Mapping[str, Any]) -> tuple[float, float]:
        broken = _number(one, "nonfinite_elements") + _number(one, "nonfinite_gradient_elements")
        return broken, _number(one, "gradient_norm")

    for one in sorted(parameters, key=badness, reverse=True)[:PARAMETERS]:
        counts = [str(one.get(key) or 0) for key in ("nonfinite_elements", "nonfinite_gradient_elements")]
        table.add_row(str(one.get("name")), _cell(one, "norm"), counts[0], _cell(one, "gradient_norm"), counts[1])
    return [table]
