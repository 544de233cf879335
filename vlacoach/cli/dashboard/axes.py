"""Axes: ticks at round numbers, short labels, ranges that never collapse, and logarithms."""

from __future__ import annotations

import math

import numpy as np

from vlacoach.cli.dashboard.braille import Floats

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_MOST_DIGITS = 15
_LARGEST_POWER = 300.0
_LARGEST = float(np.finfo(np.float64).max)
# A range narrower than this share of its values shows rounding errors, not a curve.
_NARROWEST = 1e-12


def log_values(values: Floats) -> tuple[Floats, int]:
    """Decimal logarithms for a logarithmic axis.

    Args:
        values: ``(N,)`` values.

    Returns:
        ``(N,)`` logarithms, NaN for everything that has none, and how many finite values at or below zero that hides.
    """
    hidden = np.isfinite(values) & (values <= 0)
    usable = np.isfinite(values) & (values > 0)
    logarithms = np.full(values.shape, np.nan)
    logarithms[usable] = np.log10(values[usable])
    return logarithms, int(np.count_nonzero(hidden))


def spread_range(low: float, high: float) -> tuple[float, float]:
    """A range that can be drawn: as it is, or widened by half of its value where it has no extent.

    Args:
        low: Lowest value, finite.
        high: Highest value, finite.
    """
    largest = max(abs(low), abs(high))
    if high / 2 - low / 2 > _NARROWEST * largest:
        return low, high
    margin = largest / 2 if largest / 2 > 0 else 0.5
    return max(low - margin, -_LARGEST), min(high + margin, _LARGEST)


def linear_ticks(low: float, high: float, count: int, smallest: float = 0.0) -> Floats:
    """Ticks at multiples of 1, 2, or 5 times a power of ten.

    Args:
        low: Lower end of the axis.
        high: Upper end of the axis.
        count: About how many ticks are wanted; never more than one above that.
        smallest: Smallest distance allowed, for example 1 on an axis of whole numbers.

    Returns:
        Ticks within the axis, ascending; may be empty.
    """
    rough = max(high / count - low / count, smallest)
    if not math.isfinite(rough) or rough <= _NARROWEST * max(abs(low), abs(high)) or rough < 1e-300:
        return np.array([low])
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next((factor * power for factor in (1, 2, 5) if factor * power >= rough * (1 - 1e-9)), 10 * power)
    if not math.isfinite(distance):
        return np.array([low])
    # A tick at the very end must not be lost to rounding.
    first, last = math.ceil(low / distance - 1e-9), math.floor(high / distance + 1e-9)
    return np.asarray(np.arange(first, last + 1) * distance)


def log_ticks(low: float, high: float, count: int) -> Floats:
    """Ticks of a logarithmic axis: powers of ten, or round numbers if there are fewer than two of those on it.

    Args:
        low: Decimal logarithm of the lower end of the axis.
        high: That of the upper end.
        count: About how many ticks are wanted; never more than one above that.

    Returns:
        Decimal logarithms of the ticks, ascending; may be empty.
    """
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    if last - first < 1:
        # Powers of ten at the very ends of what a double holds have no neighbors to put ticks on.
        if low < -_LARGEST_POWER or high > _LARGEST_POWER:
            return np.arange(first, last + 1, dtype=np.float64)
        ticks = linear_ticks(10.0**low, 10.0**high, count)
        return np.asarray(np.log10(ticks[ticks > 0]))
    stride = math.ceil((last - first + 1) / (count + 1))
    return np.arange(first, last + 1, stride, dtype=np.float64)


def compact_number(value: float, digits: int = 3) -> str:
    """A number in few characters, for example ``0.25``, ``1.2k``, ``3e-5``, ``12M``.

    Args:
        value: Any number.
        digits: Significant digits, at least 3; zeros at the end are dropped.
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}" if value else "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    rounded = float(f"{mantissa}e{exponent}")
    if not 1e-3 <= abs(rounded) < 1e15:
        return f"{float(mantissa):.{digits}g}e{int(exponent)}"
    for factor, unit in _UNITS:
        if abs(rounded) >= factor:
            return f"{rounded / factor:.{digits}g}{unit}"
    return f"{rounded:.{digits}g}"


def tick_labels(ticks: Floats) -> list[str]:
    """Labels with as many digits as tell neighboring ticks apart."""
    distance = float(np.min(np.diff(ticks))) if ticks.size > 1 else math.inf
    for digits in range(3, _MOST_DIGITS):
        rounded = np.array([float(f"{tick:.{digits - 1}e}") for tick in ticks])
        if np.all(np.abs(rounded - ticks) <= distance / 100):
            break
    return [compact_number(tick, digits) for tick in ticks]


def gap_count(gaps: int) -> str:
    """How many values are missing, for example ``"2 gaps"``."""
    return f"{gaps} gap" if gaps == 1 else f"{gaps} gaps"
