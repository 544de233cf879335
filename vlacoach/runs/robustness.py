"""Success along perturbed axes: each axis by itself, beside the same episodes without a perturbation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vlacoach.runs.files import plain as as_json
from vlacoach.runs.results import Comparison, EvaluationResult, compare


@dataclass(frozen=True)
class AxisResult:
    """Episodes perturbed along one axis.

    Attributes:
        axis: What was perturbed, for example ``"camera"``.
        severity: How much, 1 to 5.
        result: Their outcomes.
    """

    axis: str
    severity: int
    result: EvaluationResult


@dataclass(frozen=True)
class AxisTable:
    """One policy on the same episodes, plain and perturbed along one axis after the other.

    Attributes:
        plain: The episodes as they are.
        axes: One entry for each axis, in the order in which they were played.

    Raises:
        RunError: An axis has other tasks, initial states or seeds than the plain episodes.
    """

    plain: EvaluationResult
    axes: tuple[AxisResult, ...]

    def __post_init__(self) -> None:
        self.changes()

    def changes(self) -> tuple[Comparison, ...]:
        """From plain to perturbed, paired by episode, for each axis."""
        return tuple(compare(self.plain, axis.result) for axis in self.axes)

    def to_json(self) -> dict[str, Any]:
        """JSON types: ``plain``, and for each axis its result and the paired difference to plain."""
        axes = [
            {"axis": axis.axis, "severity": axis.severity, **_difference(change), "result": axis.result.to_json()}
            for axis, change in zip(self.axes, self.changes(), strict=True)
        ]
        return {"plain": self.plain.to_json(), "axes": axes}


@dataclass(frozen=True)
class AxisComparison:
    """Two policies on the same episodes, each perturbed in the same way.

    Attributes:
        before: The one compared with.
        after: The other.

    Raises:
        RunError: They were not perturbed along the same axes, or have not the same episodes.
    """

    before: AxisTable
    after: AxisTable

    def __post_init__(self) -> None:
        self.changes()

    def changes(self) -> Mapping[str, Comparison]:
        """From one policy to the other under the same perturbation: ``"plain"``, then ``"camera:3"`` and so on."""
        first, second = _results(self.before), _results(self.after)
        return {name: compare(first[name], result) for name, result in second.items()}

    def to_json(self) -> dict[str, Any]:
        """JSON types: both tables, and the paired difference of the policies under each perturbation."""
        changes = {name: _difference(change) for name, change in self.changes().items()}
        return {"before": self.before.to_json(), "after": self.after.to_json(), "changes": changes}


PLAIN = "plain"
"""What episodes without a perturbation are called beside perturbed ones."""


def _results(table: AxisTable) -> dict[str, EvaluationResult]:
    return {PLAIN: table.plain, **{f"{axis.axis}:{axis.severity}": axis.result for axis in table.axes}}


def _difference(change: Comparison) -> dict[str, Any]:
    return {"difference": as_json(asdict(change.overall)), "clustered": as_json(asdict(change.clustered))}
