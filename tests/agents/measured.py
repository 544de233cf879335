"""What tests of evaluations in folders share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlacoach.runs.reporting import NullReporter
from vlacoach.runs.results import EvaluationResult

STATES = {0: (4, 5, 6), 1: (30, 31)}


class Stop(NullReporter):
    """Loses the evaluation after some episodes."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.messages: list[str] = []

    def advance(self, amount: int = 1, **fields: Any) -> None:
        self.left -= amount
        if self.left <= 0:
            raise KeyboardInterrupt

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


def timeless(result: EvaluationResult) -> EvaluationResult:
    return replace(result, seconds=0.0)


def episodes(folder: Path) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    return sorted((one["seed"], one["number"], one["task"], one["init_state"], one["success"]) for one in lines)
