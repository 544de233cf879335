"""Other processes that play episodes of the same batch; here there are none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

Columns = Mapping[str, npt.NDArray[Any]]
"""Arrays with a row for each of some things, (B, ...) each."""


class Peers:
    """What a scorer needs of the processes that share a batch, for one process that has the whole of it.

    Attributes:
        rank: Number of this process among them.
        size: How many there are.
    """

    rank = 0
    size = 1

    def gather(self, columns: Columns) -> dict[str, npt.NDArray[Any]]:
        """Rows of all processes, in the order of their ranks; every process must ask for the same columns.

        Args:
            columns: (B, ...) each; B may differ between processes, the rest of a shape may not, unless B is 0.
        """
        return dict(columns)
