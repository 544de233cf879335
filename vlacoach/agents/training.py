"""A training run from beginning to end: evaluate, train, evaluate again, and leave everything in a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlacoach.agents.evaluation import evaluate_split, load_trained, make_envs
from vlacoach.agents.evidence import keeping_evidence
from vlacoach.agents.grpo import GRPOAgent
from vlacoach.agents.ranks import Ranks
from vlacoach.agents.recording import LivePictures, RolloutPictures
from vlacoach.agents.video import VideoRecorder, side_by_side, write_video
from vlacoach.errors import ConfigError
from vlacoach.rewards import make_scorer
from vlacoach.rewards.check import ScorerCheck
from vlacoach.runs import constants as names
from vlacoach.runs.control import RemoteControl
from vlacoach.runs.files import replace_text
from vlacoach.runs.guards import RunGuards
from vlacoach.runs.heartbeat import RunReporter
from vlacoach.runs.jsonl import numbers_of
from vlacoach.runs.report import write_learning_curve
from vlacoach.runs.results import Comparison, EvaluationResult, TrainResult, compare, read_baseline, write_results
from vlacoach.runs.resuming import require_same_config
from vlacoach.runs.splits import HELD_OUT, TRAIN, Splits, require_same_splits, write_splits
from vlacoach.runs.stalls import StallWatch
from vlacoach.runs.stopping import GracefulStop
from vlacoach.runs.system import SystemSampler
from vlacoach.runs.yaml_io import write_config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vlacoach.agents.prompts import Prompt
    from vlacoach.policies.policy import VLAPolicy
    from vlacoach.rewards.scorers import Scorer
    from vlacoach.rewards.trajectory import Trajectory
    from vlacoach.runs.config import RewardConfig, TrainConfig
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.reporting import Reporter


def train(
    config: TrainConfig, folder: RunFolder, reporter: Reporter, resume: bool = False, ranks: Ranks | None = None
) -> TrainResult:
    """Run a configuration.

    Success is measured on held-out states, and on training states, before and after: same states, same seeds, so
    the difference is paired. Ctrl-C ends the current update, writes a checkpoint, and raises KeyboardInterrupt.

    Args:
        config: Everything that decides the result.
        folder: The run's folder, locked by this process.
        reporter: Shows progress.
        resume: Go on from the folder's last checkpoint.
        ranks: The processes that train together, of which this is one; None trains alone.

    Returns:
        What was measured, and where everything is.

    Raises:
        VlacoachError: See the errors' messages; whatever was done before is in the folder.
    """
    reporter = RunReporter(folder, reporter)
    with GracefulStop(lambda name: reporter.message(f"{name}: stopping after this update", "warning")) as stop:
        run = TrainingRun(config, folder, reporter, stop, ranks or Ranks())
        try:
            sampler = SystemSampler(folder.path, run.device_memory())
            with sampler as run.sampler, StallWatch(folder, reporter, config.guards.stall):
                return run.run(resume)
        finally:
            run.envs.close()


@dataclass(frozen=True)
class Agreement:
    """What the ranks do next, all of them.

    Attributes:
        stop: Whether training ends here, to be resumed.
        late: Whether the time is up.
        evaluate: Whether a watcher asked for an evaluation.
        checkpoint: Whether a watcher asked for a checkpoint.
    """

    stop: bool = False
    late: bool = False
    evaluate: bool = False
    checkpoint: bool = False


class TrainingRun:
    """The parts of a run and the order in which they are used; see :func:`train`.

    Args:
        config: Everything that decides the result.
        folder: The run's folder.
        reporter: Shows progress.
        stop: Says whether the run is to end early.
        ranks: The processes that train together. What one of them decides alone, such as when to stop, is agreed upon
            between updates.

    Attributes:
        sampler: Looks at memory and processors meanwhile, if anything does.
    """

    def __init__(
        self, config: TrainConfig, folder: RunFolder, reporter: Reporter, stop: GracefulStop, ranks: Ranks
    ) -> None:
        self.config = config
        self.ranks = ranks
        self.sampler: SystemSampler | None = None
        self._stop = stop
        self._agreed = Agreement()
        self._control = RemoteControl(folder, reporter, stop, on_pause=ranks.beat)
        self._guards = RunGuards(folder, config.guards, reporter)
        self.folder = folder
        self.reporter = reporter
        self.policy = load_trained(config, for_training=True)
        scorer = build_scorer(config.reward, self.policy)
        self.envs = make_envs(config, self.policy)
        try:
            tasks = self.envs.suite.select(config.env.tasks)
            self._splits = Splits.of_config(config, [task.index for task in tasks])
            folder.update_info(tasks={task.index: task.instruction for task in tasks})
            self.agent = GRPOAgent(self.policy, self.envs, scorer, config, folder, reporter, ranks)
        except BaseException:
            self.envs.close()
            raise
        self.agent.on_rollout = self._check_scorer
        self.agent.on_beat = self._control.obey
        self.agent.clock = self._control.clock
        self._live = LivePictures(folder)
        if ranks.leads:
            self.agent.pictures = RolloutPictures(folder, config.logging.episodes, self._live)
        if self.policy.remark is not None:
            reporter.message(self.policy.remark, "warning")
        self._check = ScorerCheck(seed=config.seed)
        self._videos: dict[str, VideoRecorder] = {}
        self._started = self._control.clock()
        self._spent = 0.0
        self._saved = -1

    def device_memory(self) -> Callable[[], int] | None:
        """What says how many bytes torch holds on the policy's CUDA device; None on the CPU."""
        import torch

        device = self.policy.device
        return partial(torch.cuda.memory_reserved, device) if device.type == "cuda" else None

    def run(self, resume: bool) -> TrainResult:
        """Evaluate, train, evaluate, report."""
        if resume and not self._nothing_began():
            require_same_splits(self.folder, self._splits)
            self._resume()
            self._guards.catch_up()
        else:
            write_splits(self.folder, self._splits)
            # Before anything that takes time, so that there is always something to resume.
            self._checkpoint()
        before = self._baseline()
        self._learn()
        after = self._evaluate("after")
        comparisons = {split: compare(before[split], after[split]) for split in after}
        return self._finish(comparisons)

    def _nothing_began(self) -> bool:
        """Whether the run was killed before its first checkpoint, which precedes every line of metrics."""
        return not self.folder.checkpoints.entries() and not self.folder.metrics()

    def _resume(self) -> None:
        checkpoint, problems = self.folder.checkpoints.newest_intact()
        for problem in problems:
            text = f"Passed over a damaged checkpoint: {problem}"
            self.folder.alert("warning", text, f"Going on from {checkpoint}; what was done after it is done again.")
            self.reporter.message(text, "warning")
        require_same_config(checkpoint, self.config)
        self.agent.load(checkpoint)
        self.agent.on_rollout = lambda trajectories: None  # Its first batches are long past.
        self._saved = self.agent.update
        self.folder.checkpoints.set_aside(self.agent.update)
        self.folder.rewind(self.agent.update)
        self._spent = max(numbers_of(self.folder.metrics(), names.TIME_ELAPSED), default=0.0)
        self.reporter.message(f"Going on after update {self.agent.update}, from {checkpoint}")

    def _learn(self) -> None:
        grpo, every = self.config.grpo, self.config.evaluation.every
        self._agree()
        while self.agent.update < grpo.updates and not self._agreed.late and not self._agreed.stop:
            self.agent.learn_once()
            done = self.agent.update
            lost = {names.WORKERS_REPLACED: self.envs.workers_lost}
            if self.ranks.size > 1:
                lost[names.BYTES_SENT] = self.ranks.sent
            self.folder.log_metrics(done, {names.TIME_ELAPSED: self._elapsed(), **lost})
            self._guards.look()
            self._agree()
            last = done == grpo.updates or self._agreed.late
            if (self._agreed.evaluate or (every and done % every == 0)) and not last:
                self._log_evaluation(HELD_OUT, self._evaluate_split(HELD_OUT, None))
            if self._agreed.checkpoint or done % self.config.checkpoint.every == 0:
                self._checkpoint()
            self._warn_if_blind()
            self._agree(wishes=False)
        if self._saved != self.agent.update:
            self._checkpoint()
        self._raise_if_asked()

    def _agree(self, wishes: bool = True) -> None:
        """Settle with the other ranks what only one of them may know: whether to stop, and what a watcher asked for."""
        mine = Agreement(
            stop=self._stop.requested,
            late=self.ranks.leads and self._out_of_time(),
            evaluate=wishes and self._control.take("evaluate"),
            checkpoint=wishes and self._control.take("checkpoint"),
        )
        everyone = self.ranks.gather_json(asdict(mine))
        self._agreed = Agreement(**{key: any(one[key] for one in everyone) for key in asdict(mine)})

    def _warn_if_blind(self) -> None:
        if self.sampler is not None and self.sampler.problem is not None:
            self.reporter.message(f"Memory and processors are no longer watched: {self.sampler.problem}", "warning")
            self.sampler.problem = None

    def _check_scorer(self, trajectories: list[Trajectory]) -> None:
        """Say how well the scorer tells success from failure, before it has decided much of the run."""
        scorer = self.agent.scorer
        if not scorer.compares:
            return
        area = self._check.observe(scorer, trajectories)
        if area is None:
            return
        interval = f"95 % interval {area.low:.2f} to {area.high:.2f}"
        self.folder.log_event("scorer", scorer=scorer.name, auroc=area.value, low=area.low, high=area.high)
        self.reporter.message(f"reward {scorer.name}: AUROC of success against failure {area.value:.2f} ({interval})")
        if area.low <= 0.5:
            text = f"Reward {scorer.name} does not tell success from failure: AUROC {area.value:.2f} ({interval})."
            advice = "How it grades failures is then close to chance: try --reward success, or vlacoach reward bench."
            self.folder.alert("warning", text, advice)
            self.reporter.message(f"{text} {advice}", "warning")

    def _raise_if_asked(self) -> None:
        self._agree(wishes=False)
        if self._agreed.stop:
            self.reporter.message(
                f"Stopped after update {self.agent.update}; go on with: vlacoach train --resume latest"
            )
            raise KeyboardInterrupt

    def _elapsed(self) -> float:
        return self._spent + self._control.clock() - self._started

    def _out_of_time(self) -> bool:
        minutes = self.config.grpo.minutes
        return minutes is not None and self._elapsed() >= 60.0 * minutes

    # Evaluation

    def _baseline(self) -> dict[str, EvaluationResult]:
        file = self.folder.path / names.BASELINE_FILE
        if stored := read_baseline(file):
            return stored
        if self.agent.update > 0:
            raise ConfigError(f"{file} is missing, so there is nothing to compare the trained policy with.")
        results = self._evaluate("before")
        text = json.dumps({split: result.to_json() for split, result in results.items()}, indent=2)
        replace_text(file, text + "\n")
        return results

    def _evaluate(self, when: str) -> dict[str, EvaluationResult]:
        results = {}
        for split in (HELD_OUT, TRAIN) if self.config.evaluation.train_states else (HELD_OUT,):
            results[split] = self._evaluate_split(split, when if split == HELD_OUT else None)
        if when == "after":
            self._raise_if_asked()
        # Together and last. A run that was killed in between has one of them already, and must not have it twice.
        self.folder.forget_metrics(self.agent.update, [f"{_prefix(split)}/success" for split in results])
        for split, result in results.items():
            self._log_evaluation(split, result)
        return results

    def _evaluate_split(self, split: str, when: str | None) -> EvaluationResult:
        states = self.config.evaluation.states if split == HELD_OUT else self.config.env.states
        videos = None
        if when is not None and self.ranks.leads:
            videos = VideoRecorder(self.folder.path / names.VIDEOS_FOLDER, f"{when}_")
            self._videos[when] = videos
        self.folder.log_event("stage", stage=names.STAGE_EVALUATION, update=self.agent.update)
        self.ranks.enter(f"{names.STAGE_EVALUATION} after update {self.agent.update}")
        with keeping_evidence(self.agent, names.STAGE_EVALUATION):
            return evaluate_split(
                self.policy,
                self.envs,
                self.config,
                states,
                split,
                self.reporter,
                on_look=self._beat,
                videos=videos,
                on_pictures=self._show if self.ranks.leads else None,
                ranks=self.ranks,
            )

    def _beat(self) -> None:
        self.folder.beat()
        self.ranks.beat()
        self._control.obey()

    def _show(self, prompt: Prompt, number: int, picture: NDArray[np.uint8]) -> None:
        self._live.take(number, prompt, picture, {"update": self.agent.update, "evaluation": True})

    def _log_evaluation(self, split: str, result: EvaluationResult) -> None:
        prefix = _prefix(split)
        metrics = {
            f"{prefix}/success": result.rate,
            f"{prefix}/successes": result.successes,
            f"{prefix}/episodes": result.episodes,
        }
        metrics |= {f"{prefix}/success/{task.task}": task.successes / task.episodes for task in result.tasks}
        self.folder.log_metrics(self.agent.update, metrics)
        self.reporter.message(
            f"success on {split} states after update {self.agent.update}: {result.successes}/{result.episodes} "
            f"({result.rate:.1%}, 95 % interval {result.interval.low:.1%} to {result.interval.high:.1%})"
        )

    # What is left behind

    def _checkpoint(self) -> None:
        self._saved = self.agent.update
        if not self.ranks.leads:
            return
        self.ranks.enter(f"{names.STAGE_CHECKPOINT} after update {self.agent.update}")
        self.folder.log_event("stage", stage=names.STAGE_CHECKPOINT, update=self.agent.update)
        self.folder.progress(names.STAGE_CHECKPOINT)
        self.folder.sync()
        self.folder.checkpoints.save(self.agent.update, self._save, self._recent_success())

    def _recent_success(self) -> float | None:
        """Mean success of the rollouts of the last ``checkpoint.every`` updates: one alone says little."""
        recent = range(self.agent.update - self.config.checkpoint.every + 1, self.agent.update + 1)
        lines = [line for line in self.folder.metrics() if line.get(names.STEP) in recent]
        rates = numbers_of(lines, names.ROLLOUT_SUCCESS)
        return sum(rates) / len(rates) if rates else None

    def _save(self, folder: Path) -> None:
        self.agent.save(folder)
        write_config(self.config, folder / names.CONFIG_FILE)

    def _finish(self, comparisons: dict[str, Comparison]) -> TrainResult:
        artifacts: dict[str, Path] = {}
        if not self.ranks.leads:
            return TrainResult(self.folder.path, self.agent.update, self._elapsed(), comparisons, artifacts)
        checkpoint = self.folder.checkpoints.last()
        adapter = checkpoint / names.ADAPTER_FOLDER
        artifacts["adapter"] = adapter if adapter.is_dir() else checkpoint / names.POLICY_FOLDER
        plot = self.folder.path / names.CURVES_FILE
        artifacts["plot"] = write_learning_curve(self.folder.metrics(), plot, self.folder.path.name)
        if video := self._before_and_after():
            artifacts["video"] = video
        result = TrainResult(self.folder.path, self.agent.update, self._elapsed(), comparisons, artifacts)
        write_results(result, self.folder.path / names.RESULTS_FILE)
        return result

    def _before_and_after(self) -> Path | None:
        if not {"before", "after"} <= self._videos.keys():
            return None  # A resumed run has no pictures of the time before training in memory.
        frames = side_by_side(self._videos["before"].frames(), self._videos["after"].frames())
        return write_video(self.folder.path / names.VIDEOS_FOLDER / "before_after", frames) if frames else None


def _prefix(split: str) -> str:
    """What the metrics of an evaluation begin with."""
    return "eval" if split == HELD_OUT else "eval_train"


def build_scorer(config: RewardConfig, policy: VLAPolicy) -> Scorer:
    """The scorer of a configuration."""
    params = dict(config.params)
    if config.name in ("siglip", "siglip-t"):
        pooling_k = config.last_k if config.pooling == "last-k" else config.segments
        params = {"pooling": config.pooling, "pooling_k": pooling_k, "grid": config.grid, **params}
    if config.name == "siglip-t":
        params = {"temporal": config.temporal, "fusion": config.fusion, **params}
    if config.rule != "srpo":  # A plugin need not know of rules.
        params["rule"] = {"rule": config.rule, **params.get("rule", {})}
    return make_scorer(config.name, policy=policy, **params)
