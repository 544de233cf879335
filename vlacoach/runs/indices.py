"""Index lists as people type them: ``"1,4,8"``, ``"30-49"``, ``"0-3,7"``."""

from __future__ import annotations

from collections.abc import Iterable

from vlacoach.errors import ConfigError

MAX_INDEX = 100_000
"""Largest index accepted; a slip such as ``0-99999999999`` must not fill the memory."""


def parse_indices(text: str | int | Iterable[int]) -> tuple[int, ...]:
    """Read a list of indices.

    Args:
        text: Comma-separated indices and inclusive ranges, one index, or indices themselves.

    Returns:
        The indices in the order given, each at most once.

    Raises:
        ConfigError: Something is not an index, a range runs backward, or an index occurs twice.
    """
    if isinstance(text, bool):
        raise ConfigError(f"{text!r} is not an index.", "Write for example 1,4,8 or 30-49.")
    if isinstance(text, int):
        parts = [str(text)]
    elif isinstance(text, str):
        parts = [part.strip() for part in text.split(",")]
    else:
        parts = [str(part) for part in text]
    indices = [index for part in parts for index in _expand(part)]
    repeated = sorted({index for index in indices if indices.count(index) > 1}) if len(indices) < 5000 else []
    if repeated or len(set(indices)) != len(indices):
        raise ConfigError(f"Indices {text!r} name {repeated or 'some'} more than once.")
    return tuple(indices)


def _expand(part: str) -> range:
    first, dash, last = part.partition("-")
    if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
        raise ConfigError(
            f"{part!r} is neither an index nor a range.", "Write indices from 0 on, as in 1,4,8 or 30-49."
        )
    low = int(first)
    high = int(last) if dash else low
    if high < low or high > MAX_INDEX:
        raise ConfigError(f"Range {part!r} runs backward or beyond {MAX_INDEX}.")
    return range(low, high + 1)


def format_indices(indices: Iterable[int]) -> str:
    """Write indices the short way, the inverse of :func:`parse_indices` up to order.

    Args:
        indices: Indices, in any order.

    Returns:
        Sorted indices with runs of three or more as ranges, for example ``"0-3,7"``.
    """
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return ",".join(parts)
