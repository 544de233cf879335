"""Choosing by parts of names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Item = TypeVar("_Item")


def score(pattern: str, text: str) -> float | None:
    """How well a text fits a pattern, whose letters must occur in it in this order.

    Args:
        pattern: What was typed; the case of letters does not matter.
        text: A name.

    Returns:
        Higher is better: letters side by side and at the beginning of words count more, long texts less. None if it
        does not fit.
    """
    pattern, text = pattern.lower(), text.lower()
    if not pattern:
        return 0.0
    start = text.find(pattern)
    if start >= 0:
        return 100.0 + 10.0 * _begins_word(text, start) - 0.01 * len(text)
    total, at, last = 0.0, -1, -2
    for letter in pattern:
        at = text.find(letter, at + 1)
        if at < 0:
            return None
        total += 1.0 + 2.0 * (at == last + 1) + 2.0 * _begins_word(text, at)
        last = at
    return total - 0.01 * len(text)


def matches(pattern: str, text: str) -> bool:
    """Whether every word of a pattern fits a text."""
    return all(score(word, text) is not None for word in pattern.split())


def best(pattern: str, items: Iterable[tuple[str, _Item]]) -> list[_Item]:
    """Items whose name fits, best first; equally good ones in their order."""
    scored = [(score(pattern, name), item) for name, item in items]
    fitting = [(value, item) for value, item in scored if value is not None]
    return [item for _, item in sorted(fitting, key=lambda pair: -pair[0])]


def _begins_word(text: str, at: int) -> bool:
    return at == 0 or not text[at - 1].isalnum()
