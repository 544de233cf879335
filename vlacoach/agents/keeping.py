"""What becomes of an evaluation's episodes while it goes on: lines in a folder, and videos."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from vlacoach.agents.episode_videos import EpisodeVideos
from vlacoach.agents.prompts import Prompt
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs.evaluations import EvaluationFolder, Played


class EpisodeKeeper:
    """Keeps each episode as it ends, so that an interrupted evaluation need not play it again.

    Args:
        folder: Where outcomes go.
        videos: Where pictures go.
        names: Name of each task, for the videos' files.
        perturbation: What the episodes are perturbed by, in words.
    """

    def __init__(
        self, folder: EvaluationFolder, videos: EpisodeVideos, names: Mapping[int, str], perturbation: str = ""
    ) -> None:
        self.folder = folder
        self.videos = videos
        self.names = names
        self.perturbation = perturbation
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent on the evaluation, that of earlier calls included."""
        return self.folder.seconds(self.perturbation) + time.perf_counter() - self._started

    def played(self, seed: int, plan: Sequence[Prompt]) -> dict[int, Played]:
        """Episodes of a plan that are there already, by their number.

        Raises:
            RunError: What is there is of another plan.
        """
        found = {
            i: self.folder.played(seed, i, one.task, one.init_state, self.perturbation) for i, one in enumerate(plan)
        }
        return {number: episode for number, episode in found.items() if episode is not None}

    def look(self, seed: int, number: int, prompt: Prompt, picture: Any) -> None:
        """Take what the policy sees in an episode."""
        self.videos.look(self._name(seed, number, prompt), picture)

    def ended(self, seed: int, number: int, trajectory: Trajectory) -> None:
        """Take an episode that has ended; one that broke down leaves nothing.

        Raises:
            RunError: It cannot be written.
        """
        prompt = Prompt(trajectory.task, trajectory.init_state)
        name = self._name(seed, number, prompt)
        self.videos.end(name, success=trajectory.success, valid=trajectory.valid)
        if trajectory.valid:
            self.folder.record(
                seed,
                number,
                self.perturbation,
                task=prompt.task,
                init_state=prompt.init_state,
                instruction=trajectory.instruction,
                success=trajectory.success,
                length=trajectory.length,
                elapsed=round(self.seconds, 3),
            )

    def task_name(self, task: int) -> str:
        """What the names of a task's videos begin with."""
        return f"{task:02d}_{self.names[task]}"

    def _name(self, seed: int, number: int, prompt: Prompt) -> str:
        return f"{self.task_name(prompt.task)}_state{prompt.init_state:02d}_seed{seed}_{number:04d}"
