"""An evaluation from beginning to end, in a folder from which it goes on if it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlacoach.agents.episode_videos import EpisodeVideos, VideoChoice
from vlacoach.agents.evaluation import States, evaluate_split, load_trained, make_envs
from vlacoach.agents.evaluation_settings import used_settings
from vlacoach.agents.keeping import EpisodeKeeper
from vlacoach.envs.perturbations import Perturbation
from vlacoach.envs.suites import get_suite
from vlacoach.envs.vector import LiberoVectorEnv
from vlacoach.policies.policy import VLAPolicy
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.constants import VIDEOS_FOLDER
from vlacoach.runs.evaluations import EvaluationFolder, fingerprint, settings_hash
from vlacoach.runs.provenance import installed_versions
from vlacoach.runs.reporting import NullReporter, Reporter
from vlacoach.runs.results import EvaluationResult
from vlacoach.runs.robustness import PLAIN, AxisResult, AxisTable

_VERSIONED = ("vlacoach", "torch", "mujoco", "robosuite")


@dataclass(frozen=True)
class Measurement:
    """What to evaluate, and where to keep it.

    Attributes:
        config: Names policy, suite, tasks, trials, and temperature.
        states: Initial states.
        split: What they are called.
        seeds: Seeds of the episodes; each plays the whole plan.
        checkpoint: Checkpoint folder of a run, or None for the policy itself.
        protocol: Name of the protocol that the configuration follows, for the record.
        label: What the policy is called in results; None is its own name.
        perturbations: What to perturb the episodes by: all at once, or for :func:`measure_axes` one after the other.
    """

    config: TrainConfig
    states: States
    split: str
    seeds: tuple[int, ...]
    checkpoint: Path | None = None
    protocol: str | None = None
    label: str | None = None
    perturbations: tuple[Perturbation, ...] = ()

    def settings(self, policy: VLAPolicy, by_axis: bool) -> dict[str, Any]:
        """Everything that decides the episodes.

        Args:
            policy: The policy.
            by_axis: Whether each perturbation is played by itself, after plain episodes.
        """
        suite = get_suite(self.config.env.suite)
        tasks = [task.index for task in suite.select(self.config.env.tasks)]
        states = self.states if not isinstance(self.states, Sequence) else dict.fromkeys(tasks, self.states)
        return {
            **used_settings(self.config, policy, suite.max_steps, self.perturbations),
            "by_axis": by_axis,
            "env.tasks": tasks,
            "seeds": list(self.seeds),
            "states": {str(task): list(states[task]) for task in tasks},
            "protocol": self.protocol,
            "policy.weights": self._weights(),
            **{f"version.{name}": version for name, version in installed_versions(_VERSIONED).items()},
        }

    def _weights(self) -> dict[str, str]:
        """Fingerprints of the folders that the policy is read from."""
        folders = {"policy": self.config.policy.path, "adapter": self.config.policy.adapter, "run": self.checkpoint}
        return {what: fingerprint(Path(path)) for what, path in folders.items() if path and Path(path).is_dir()}


def measure(
    wanted: Measurement,
    root: Path,
    out: Path | None = None,
    reporter: Reporter | None = None,
    video: VideoChoice = VideoChoice.NONE,
    fresh: bool = False,
) -> tuple[EvaluationResult, Path]:
    """Evaluate a policy; what ``vlacoach eval`` does.

    Every episode is written down as it ends. The same call goes on where it was interrupted, to the same result: an
    episode's random numbers are its own. Episodes that are there are not played, nor filmed, again.

    Args:
        wanted: What to evaluate.
        root: Folder of evaluations, where one named after its settings is used if ``out`` is None.
        out: Folder of this evaluation.
        reporter: Shows progress.
        video: Which episodes to keep as videos.
        fresh: Throw away what is there, and begin anew.

    Returns:
        The result, and the folder it is in.

    Raises:
        ConfigError: The folder holds an evaluation with other settings.
        VlacoachError: The policy or the simulator failed; what was played is kept.
    """
    with _session(wanted, False, root, out, reporter, video, fresh) as session:
        result = session.play(wanted.perturbations, session.folder.path / VIDEOS_FOLDER)
        session.folder.finish(result)
        return result, session.folder.path


def measure_axes(
    wanted: Measurement,
    root: Path,
    out: Path | None = None,
    reporter: Reporter | None = None,
    video: VideoChoice = VideoChoice.NONE,
    fresh: bool = False,
) -> tuple[AxisTable, Path]:
    """Evaluate a policy plain, and then along each perturbed axis by itself; ``vlacoach eval --perturb all``.

    All are the same episodes, in the same worlds. Arguments and errors are those of :func:`measure`; so is going on
    after an interruption, wherever it was. Videos are in a folder for each perturbation.
    """
    with _session(wanted, True, root, out, reporter, video, fresh) as session:
        videos = session.folder.path / VIDEOS_FOLDER
        plain = session.play((), videos / PLAIN)
        axes = [
            AxisResult(one.axis, one.severity, session.play((one,), videos / f"{one.axis}-{one.severity}"))
            for one in wanted.perturbations
        ]
        table = AxisTable(plain, tuple(axes))
        session.folder.finish(table)
        return table, session.folder.path


@dataclass(frozen=True)
class _Session:
    """An evaluation that is under way: policy, worlds, and folder are there."""

    wanted: Measurement
    policy: VLAPolicy
    label: str
    envs: LiberoVectorEnv
    folder: EvaluationFolder
    video: VideoChoice
    reporter: Reporter

    def play(self, perturbations: Sequence[Perturbation], filmed: Path) -> EvaluationResult:
        """Play the episodes, perturbed along all of some axes at once.

        Args:
            perturbations: At most one of each axis.
            filmed: Folder of their videos.
        """
        wanted = self.wanted
        tasks = self.envs.suite.select(wanted.config.env.tasks)
        videos = EpisodeVideos(filmed, self.video)
        perturbation = ",".join(sorted(map(str, perturbations)))
        keeper = EpisodeKeeper(self.folder, videos, {task.index: task.name for task in tasks}, perturbation)
        try:
            result = evaluate_split(
                self.policy,
                self.envs,
                wanted.config,
                wanted.states,
                wanted.split,
                self.reporter,
                protocol=wanted.protocol,
                seeds=wanted.seeds,
                keeper=keeper,
                label=self.label,
                perturbations=perturbations,
            )
        finally:
            videos.close()
        if self.video is not VideoChoice.NONE:
            videos.grid([keeper.task_name(task.index) for task in tasks])
        return result


@contextmanager
def _session(
    wanted: Measurement,
    by_axis: bool,
    root: Path,
    out: Path | None,
    reporter: Reporter | None,
    video: VideoChoice,
    fresh: bool,
) -> Iterator[_Session]:
    """Load the policy, lock the folder, and start the worlds; afterwards close them."""
    reporter = reporter or NullReporter()
    policy = load_trained(wanted.config, wanted.checkpoint)
    if policy.remark is not None:
        reporter.message(policy.remark, "warning")
    settings = wanted.settings(policy, by_axis)
    label = wanted.label or policy.name
    name = f"{Path(label).name}_{wanted.config.env.suite}_{wanted.split}_{settings_hash(settings)}"
    path = out or root / name
    reporter.message(f"Evaluation folder: {path}")
    with EvaluationFolder(path, settings, fresh) as folder:
        if folder.count:
            reporter.message(f"{folder.count} episodes of it are there already; --fresh plays them again")
        envs = make_envs(wanted.config, policy)
        try:
            yield _Session(wanted, policy, label, envs, folder, video, reporter)
        finally:
            envs.close()
