"""Perturbations of an episode along the seven axes of LIBERO-Plus (Fei et al., 2025), as far as no assets are needed.

What is perturbed and by how much is decided here, by one table; the modules of each axis only carry it out. A
perturbation is drawn from the seed, the axis, the severity, the task, and the initial state, so an episode that is
played again is perturbed in the same way, whichever world it is played in and whatever was played before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vlacoach.errors import ConfigError, UnknownNameError

AXES = ("camera", "robot", "language", "light", "background", "noise", "layout")
"""What can be perturbed. Seeds depend on the order; new axes go to the end."""

MAX_SEVERITY = 5
ALL_AXES = "all"
ALL_SEVERITY = 3
"""Severity of ``all`` where none is given."""

MAGNITUDES: dict[str, dict[str, tuple[float, float, float, float, float]]] = {
    "camera": {
        "orbit_deg": (3.0, 6.0, 9.0, 12.0, 15.0),
        "turn_deg": (1.0, 2.0, 3.0, 4.0, 5.0),
        "distance": (0.03, 0.06, 0.09, 0.12, 0.15),
    },
    "robot": {"joints_rad": (0.1, 0.2, 0.3, 0.4, 0.5)},
    "language": {"added_words": (1, 3, 4, 8, 15)},
    "light": {
        "turn_deg": (5.0, 10.0, 15.0, 20.0, 25.0),
        "intensity": (0.15, 0.3, 0.45, 0.6, 0.75),
        "color": (0.08, 0.16, 0.24, 0.32, 0.4),
        "shadows": (0, 0, 1, 1, 1),
    },
    "background": {"tint": (0.15, 0.3, 0.45, 0.6, 0.75), "surfaces_swapped": (0, 0, 0.34, 0.67, 1)},
    "noise": {
        "gaussian": (2.0, 5.0, 9.0, 14.0, 20.0),
        "blur": (0.002, 0.0035, 0.005, 0.007, 0.009),
        "compression": (3.0, 6.0, 10.0, 15.0, 20.0),
        "dropout": (0.0005, 0.001, 0.002, 0.004, 0.008),
        "position_m": (0.001, 0.002, 0.004, 0.007, 0.01),
        "angle_rad": (0.005, 0.01, 0.02, 0.035, 0.05),
        "finger_m": (0.0002, 0.0004, 0.0008, 0.0012, 0.002),
    },
    "layout": {"shift_m": (0.01, 0.02, 0.035, 0.05, 0.07)},
}
"""By axis and quantity, the magnitude at severities 1 to 5; units and meanings are in docs/perturbations.md."""


@dataclass(frozen=True)
class Perturbation:
    """One axis at one severity.

    Attributes:
        axis: One of ``AXES``.
        severity: 1 (slight) to 5 (strong); 0 leaves everything as it is, bit by bit.

    Raises:
        UnknownNameError: There is no such axis.
        ConfigError: The severity is out of range.
    """

    axis: str
    severity: int

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise UnknownNameError("perturbation axis", self.axis, AXES)
        if self.severity not in range(MAX_SEVERITY + 1):
            raise _severity_error(self.axis, self.severity)

    def __str__(self) -> str:
        return f"{self.axis}:{self.severity}"

    def magnitude(self, quantity: str) -> float:
        """The table's value for a quantity of the axis; 0 at severity 0."""
        return float(MAGNITUDES[self.axis][quantity][self.severity - 1]) if self.severity else 0.0


def parse_perturbations(text: str) -> tuple[Perturbation, ...]:
    """Read what a person writes: ``"camera:3,light:2"``, ``"all"``, or ``"all:4"``.

    Returns:
        In the order given; for ``all``, one of each axis, at severity 3 unless another is given. Together they perturb
        one episode along several axes; a table by axis plays each by itself.

    Raises:
        UnknownNameError: An axis does not exist.
        ConfigError: A severity is missing, not a whole number, or outside 1 to 5; or an axis comes twice.
    """
    found: list[Perturbation] = []
    for part in text.split(","):
        axis, colon, severity = (piece.strip() for piece in part.partition(":"))
        if axis not in (*AXES, ALL_AXES):
            raise UnknownNameError("perturbation axis", axis, (*AXES, ALL_AXES))
        if axis == ALL_AXES and not colon:
            severity = str(ALL_SEVERITY)
        if severity not in {str(number) for number in range(1, MAX_SEVERITY + 1)}:
            raise _severity_error(axis, severity or "missing")
        found += [Perturbation(name, int(severity)) for name in (AXES if axis == ALL_AXES else (axis,))]
    return check_perturbations(found)


def check_perturbations(perturbations: Iterable[Perturbation]) -> tuple[Perturbation, ...]:
    """The same, if they can perturb one episode together.

    Raises:
        ConfigError: An axis comes twice.
    """
    chosen = tuple(perturbations)
    axes = [each.axis for each in chosen]
    for axis in axes:
        if axes.count(axis) > 1:
            raise ConfigError(f"The perturbation axis {axis} is given twice.", "Give each axis one severity.")
    return chosen


def _severity_error(axis: str, severity: object) -> ConfigError:
    return ConfigError(
        f"The severity of {axis} is {severity}.", f"Severities are 1 to {MAX_SEVERITY}, as in {axis}:{ALL_SEVERITY}."
    )


@dataclass(frozen=True)
class PerturbedEpisode:
    """The perturbations of one episode, and what they are drawn from.

    Attributes:
        perturbations: At most one of each axis.
        seed: Chosen by whoever plays the episode.
        task: Index of the task.
        init_state: Index of the initial state, or -1 for a fresh one that ``state_seed`` decides.
        state_seed: Seed of a fresh state.
    """

    perturbations: tuple[Perturbation, ...]
    seed: int
    task: int
    init_state: int
    state_seed: int = 0

    def along(self, axis: str) -> Perturbation:
        """The perturbation of an axis; of severity 0 if there is none."""
        return next((each for each in self.perturbations if each.axis == axis), Perturbation(axis, 0))

    def generator(self, axis: str, *moment: int) -> np.random.Generator:
        """A generator for an axis at its severity; always in the same state.

        Args:
            axis: One of ``AXES``.
            moment: What else the draw belongs to, for example a step; none is negative.
        """
        # A seed sequence takes no negative numbers, and a fresh state is number -1.
        episode = (self.seed, self.task, self.init_state + 1, self.state_seed)
        return np.random.default_rng([*episode, AXES.index(axis), self.along(axis).severity, *moment])
