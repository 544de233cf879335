"""References that outlive a batch: the latest successes of each task.

The rule grades a failure by its distance to successes of the same task. Where a batch has none, the bank of an earlier
one helps. What is kept of a success is up to the scorer (:meth:`Scorer.reference`): the embedding where that never
changes; for SigLIP-T, whose MLP is trained on, the looks themselves, which are embedded anew each time.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlacoach.errors import CheckpointError, ConfigError, VlacoachError
from vlacoach.rewards.scorers import Scorer, check_says_something
from vlacoach.rewards.tensor_files import read_tensors, replace_file, write_tensors
from vlacoach.rewards.trajectory import Trajectory

FORMAT = 1
BANK_FILE = "bank.json"
BANK_TENSORS_FILE = "bank.safetensors"


class ReferenceBank:
    """The latest successes of each task, as what their scorer needs to embed them; the oldest goes first.

    A bank serves one scorer. Its memory is bounded: at most ``capacity`` successes a task, each (D,) float32, or
    (T + 1, D) for ``siglip-t``.

    Args:
        capacity: Successes that are kept of each task.

    Raises:
        ConfigError: If the capacity is not positive.
    """

    def __init__(self, capacity: int = 32) -> None:
        if capacity < 1:
            raise ConfigError(f"The capacity of a bank is {capacity}.", "Keep at least one success of each task.")
        self.capacity = capacity
        self._scorer: str | None = None
        self._kept: dict[int, deque[Tensor]] = {}

    @property
    def tasks(self) -> list[int]:
        """Tasks of which a success is known, sorted."""
        return sorted(self._kept)

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def add(self, scorer: Scorer, trajectories: Iterable[Trajectory]) -> None:
        """Keep the successes among trajectories; failures and invalid episodes are passed over.

        Args:
            scorer: The scorer that will compare with them.
            trajectories: In the order in which they are to be forgotten.

        Raises:
            NonFiniteError: What is to be kept is not finite; names the rollout slot.
            VlacoachError: It is all zeros (names the rollout slot), or the bank serves another scorer.
        """
        self._serve(scorer)
        for trajectory in trajectories:
            if trajectory.valid and trajectory.success:
                self.keep(scorer, trajectory.task, checked_reference(scorer, trajectory))

    def keep(self, scorer: Scorer, task: int, reference: Tensor) -> None:
        """Keep what :func:`checked_reference` gave of one success; arguments and errors of :meth:`add`."""
        self._serve(scorer)
        self._kept.setdefault(int(task), deque(maxlen=self.capacity)).append(reference)

    def embeddings(
        self, scorer: Scorer, tasks: Iterable[int] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Embed what is kept, with the scorer as it is now.

        Args:
            scorer: The scorer that the bank serves.
            tasks: Only these; None for all.

        Returns:
            (R, D) float32 embeddings and (R,) int64 their tasks: by task, oldest first. (0, 0) and (0,) if there are
            none.

        Raises:
            VlacoachError: The bank serves another scorer.
        """
        self._serve(scorer)
        wanted = self.tasks if tasks is None else sorted(self._kept.keys() & set(tasks))
        rows = [scorer.embed_reference(one) for task in wanted for one in self._kept[task]]
        owner = [task for task in wanted for _ in self._kept[task]]
        embeddings = np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)
        return embeddings, np.array(owner, dtype=np.int64)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the bank to a folder, beside its scorer: tensors as safetensors, the rest as JSON.

        Each file is replaced in one step, and the JSON holds the checksum of the tensors, so that an interrupted save
        is noticed by :meth:`load`.

        Raises:
            CheckpointError: If it cannot be written.
        """
        target = Path(folder)
        tensors = {_key(task, row): one for task in self.tasks for row, one in enumerate(self._kept[task])}
        try:
            target.mkdir(parents=True, exist_ok=True)
            description = {
                "format": FORMAT,
                "scorer": self._scorer,
                "successes": [[task, len(self._kept[task])] for task in self.tasks],
                "tensors_sha256": write_tensors(target / BANK_TENSORS_FILE, tensors),
            }
            replace_file(target / BANK_FILE, (json.dumps(description, indent=2) + "\n").encode())
        except OSError as error:
            raise CheckpointError(
                f"Cannot save the bank of references to {target}: {error}.", "Check free space and permissions."
            ) from error

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Take over what :meth:`save` wrote, in place of what is here; of more than fits, the latest.

        Raises:
            CheckpointError: If the folder has no bank, or a corrupt one.
        """
        description = _read_description(Path(folder))
        tensors = read_tensors(Path(folder) / BANK_TENSORS_FILE, description["tensors_sha256"])
        try:
            self._kept = {
                int(task): deque((tensors[_key(task, row)] for row in range(count)), maxlen=self.capacity)
                for task, count in description["successes"]
            }
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{Path(folder) / BANK_FILE} does not fit {BANK_TENSORS_FILE}: {error!r}.") from error
        self._scorer = description["scorer"]

    def _serve(self, scorer: Scorer) -> None:
        if self._scorer not in (None, scorer.name):
            raise VlacoachError(
                f"The bank keeps successes for scorer {self._scorer!r}, not {scorer.name!r}.",
                "Their embeddings cannot be compared; use a bank for each scorer.",
            )
        self._scorer = scorer.name


def checked_reference(scorer: Scorer, trajectory: Trajectory) -> Tensor:
    """What a scorer keeps of a trajectory, float32 on the CPU and a copy.

    Raises:
        NonFiniteError: It is not finite; names the rollout slot.
        VlacoachError: It is all zeros; names the rollout slot.
    """
    kept = scorer.reference(trajectory).detach().to("cpu", torch.float32, copy=True)
    # Refused now, while the slot is known: later it would stop every update of the task.
    check_says_something("reference", kept.numpy(), trajectory)
    return kept


def _key(task: int, row: int) -> str:
    return f"{task}.{row}"


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / BANK_FILE
    try:
        description = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"No bank of references in {folder}: {BANK_FILE} is missing.",
            "A checkpoint has one if it was trained with reward.reference=bank.",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {file}: {error}.") from error
    keys = {"format", "scorer", "successes", "tensors_sha256"}
    if not isinstance(description, dict) or not keys <= description.keys():
        raise CheckpointError(f"{file} does not describe a bank of references.")
    if description["format"] != FORMAT:
        raise CheckpointError(f"{file} has format {description['format']!r}; this version reads {FORMAT}.")
    return description
