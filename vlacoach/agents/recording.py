"""Pictures of rollouts for people: a few episodes of each update as videos, and the newest picture of one world."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlacoach.agents.prompts import Prompt
from vlacoach.agents.video import upright, write_video
from vlacoach.rewards.bench import progress_curve
from vlacoach.runs.constants import VIDEOS_FOLDER
from vlacoach.runs.live import LiveView

if TYPE_CHECKING:
    from vlacoach.agents.rollout import Job
    from vlacoach.rewards.scorers import Scorer
    from vlacoach.rewards.trajectory import Trajectory
    from vlacoach.runs.folder import RunFolder

FOLLOW_SECONDS = 2.0
"""A world that has shown nothing for this long is done, or lost; another is shown then."""


class LivePictures:
    """Shows one world, from the beginning of an episode to its end, to whoever watches.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._view = LiveView(folder.path)
        self._followed: int | None = None
        self._last = 0.0

    def take(self, number: int, prompt: Prompt, picture: NDArray[np.uint8], facts: Mapping[str, Any]) -> None:
        """Take a picture; it is shown if it is of the world that is being followed and somebody watches.

        Args:
            number: Episode.
            prompt: Its task and initial state.
            picture: (H, W, 3) uint8, as the policy sees it.
            facts: What else to say.

        Raises:
            RunError: The run folder cannot be written.
        """
        now = time.monotonic()
        if number != self._followed and now - self._last < FOLLOW_SECONDS:
            return
        self._followed, self._last = number, now
        if self._view.wanted():
            said = {"task": prompt.task, "init_state": prompt.init_state, "episode": number, **facts}
            self._view.show(upright(picture), said)


class RolloutPictures:
    """Records the first episode of groups spread over an update's prompts.

    Args:
        folder: The run's folder.
        episodes: Episodes to record in an update.
        live: Gets every picture.
    """

    def __init__(self, folder: RunFolder, episodes: int, live: LivePictures) -> None:
        self._folder = folder
        self._episodes = episodes
        self._live = live
        self._update = 0
        self._prompts: dict[int, Prompt] = {}
        self._recorded: dict[int, list[NDArray[np.uint8]]] = {}

    def begin(self, update: int, jobs: Sequence[Job]) -> None:
        """Choose what to record of a rollout."""
        self._update = update
        self._prompts = {job.slot: job.prompt for job in jobs}
        first: dict[int, int] = {}
        for job in jobs:
            first.setdefault(job.group, job.slot)
        slots = list(first.values())
        count = min(self._episodes, len(slots))
        self._recorded = {slots[index * len(slots) // count]: [] for index in range(count)}

    def take(self, slot: int, picture: NDArray[np.uint8]) -> None:
        """Take a picture of a rollout."""
        if slot in self._recorded:
            self._recorded[slot].append(upright(picture))
        self._live.take(slot, self._prompts[slot], picture, {"update": self._update})

    def finish(self, trajectories: Sequence[Trajectory], scorer: Scorer) -> dict[int, dict[str, Any]]:
        """Write the videos.

        Args:
            trajectories: The rollout.
            scorer: Says how far an episode had come at each look, where it has successes of the task to compare with.

        Returns:
            Row of each recorded trajectory to what is logged of it: its video, relative to the run folder, and its
            progress at each look.

        Raises:
            RunError: A video cannot be written.
        """
        notes: dict[int, dict[str, Any]] = {}
        for row, trajectory in enumerate(trajectories):
            frames = self._recorded.get(trajectory.slot)
            if not frames or not trajectory.valid:
                continue
            stem = self._folder.path / VIDEOS_FOLDER / f"update_{self._update:04d}" / f"slot_{trajectory.slot:03d}"
            notes[row] = {"video": str(write_video(stem, frames).relative_to(self._folder.path))}
            others = [t for t in trajectories if t is not trajectory and t.task == trajectory.task]
            # Scorers that look at frames run a model of their own, too slow to ask at every look.
            if scorer.fitted and scorer.compares and not scorer.needs_frames:
                notes[row]["progress"] = progress(trajectory, [t for t in others if t.success and t.valid], scorer)
        self._recorded = {}
        return notes


def progress(trajectory: Trajectory, successes: Sequence[Trajectory], scorer: Scorer) -> list[float] | None:
    """How much of the way to success an episode has come at each look, by the scorer's distance.

    Args:
        trajectory: T looks and the terminal one.
        successes: Others of the same task that succeeded.
        scorer: Embeds.

    Returns:
        T + 1 numbers: 0 as far from the mean success as at the first look, 1 there, negative farther away; None if
        there is no other success.
    """
    if not successes or trajectory.terminal_features is None:
        return None
    reference = scorer.embed_all(successes).mean(axis=0)
    closeness = progress_curve(scorer, trajectory, reference)
    start = abs(closeness[0])
    return [round(float(1.0 + value / start), 4) for value in closeness] if start > 0 else None
