"""What a run is warned of: rules that look at a series of numbers and say what is wrong with it, if anything.

Each rule is a function of series alone. :class:`RunGuards` reads the series from the run folder after each update, and
writes what the rules find as alerts: once, until it has been well again for some time. What must stop the training
(numbers that are not finite, a first ratio off 1) is raised where it occurs: :class:`vlacoach.errors.DivergedError`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from vlacoach.runs import constants as names
from vlacoach.runs.formatting import format_seconds
from vlacoach.runs.statistics import wilson_interval

if TYPE_CHECKING:
    from vlacoach.runs.config import GuardsConfig
    from vlacoach.runs.folder import RunFolder
    from vlacoach.runs.reporting import Reporter

QUIET_LOOKS = 3
"""Looks without a finding after which a trouble counts as over, and would be told of anew."""

WARMUP_SECONDS = 600.0
"""Memory is not judged before: scenes are compiled, and caches fill up."""

SHORTEST_SECONDS, LONGEST_SECONDS = 1800.0, 7200.0
"""Least and greatest time over which memory's growth is judged: an update's rise and fall is not growth."""

BINS = 12
RISING = 0.15
"""Growth is steady if no more than this share of pairs of moments fell. A single jump leaves half of them flat."""


@dataclass(frozen=True)
class Finding:
    """Something that a person should know of.

    Attributes:
        kind: Short name; of one kind there is one alert until it is over.
        message: What was seen.
        advice: What can be done.
    """

    kind: str
    message: str
    advice: str


def entropy_collapse(entropy: Sequence[float], share: float, window: int) -> Finding | None:
    """Whether the policy has nearly stopped to vary its actions, so that groups have nothing left to compare.

    Args:
        entropy: Mean entropy of an action token in each update, nats, oldest first.
        share: Of the entropy at the start, below which it counts as collapsed.
        window: Updates that are averaged, at the start and now; nothing is found before there are twice as many.
    """
    if len(entropy) < 2 * window:
        return None
    start, now = float(np.mean(entropy[:window])), float(np.mean(entropy[-window:]))
    if not now < share * start:
        return None
    return Finding(
        "entropy",
        f"Entropy has collapsed: {now:.3g} nats a token over the last {window} updates, {start:.3g} at the start.",
        "The policy hardly explores any more. Raise grpo.temperature or grpo.clip_high, lower grpo.learning_rate, or "
        "add grpo.kl_coefficient, in a new run from an earlier checkpoint.",
    )


def success_fall(rate: Sequence[float], prompts: Sequence[int], confidence: float, window: int) -> Finding | None:
    """Whether success lies below what it was before, at the start or at its best.

    The updates before the last ``window`` are divided into parts of ``window``, and the part with the best lower bound
    is taken: a policy that learned and then forgot is as bad off as one that never learned. Wilson's intervals of that
    part and of the last updates must lie apart. Siblings of a group resemble each other, so a whole prompt counts as
    one trial: rather too few than too many, which also makes up for choosing the best of several parts.

    Args:
        rate: Success of the rollouts of each update, 0 to 1, oldest first.
        prompts: Groups behind each.
        confidence: Of the intervals, between 0 and 1.
        window: Updates that are pooled, before and now; nothing is found before there are twice as many.
    """
    if len(rate) < 2 * window:
        return None
    now, counts = _pooled(rate[-window:], prompts[-window:])
    after = wilson_interval(*counts, confidence)
    lowest, best, begin = 0.0, 0.0, 0
    for start in range(0, len(rate) - 2 * window + 1, window):
        mean, counts = _pooled(rate[start : start + window], prompts[start : start + window])
        before = wilson_interval(*counts, confidence)
        if before.low > lowest:
            lowest, best, begin = before.low, mean, start
    if not after.high < lowest:
        return None
    return Finding(
        "success",
        f"Success has fallen from {100 * best:.1f} % (updates {begin + 1} to {begin + window}) to {100 * now:.1f} % "
        f"(the last {window}): their {100 * confidence:g} % intervals lie apart.",
        "Stop, take the best checkpoint (vlacoach runs export adapter --checkpoint best --out FOLDER), and go on from "
        "it in a new run (policy.adapter) with a lower grpo.learning_rate or a grpo.target_kl. "
        "Look at reward/auroc too.",
    )


def _pooled(rate: Sequence[float], prompts: Sequence[int]) -> tuple[float, tuple[int, int]]:
    trials = int(sum(prompts))
    mean = float(np.dot(rate, prompts)) / trials if trials else 0.0
    return mean, (round(mean * trials), trials)


def memory_growth(seconds: Sequence[float], resident: Sequence[float], share: float) -> Finding | None:
    """Whether memory grows steadily, as it does with a leak.

    The time is divided into :data:`BINS` equal parts with the median of each, and growth is the median of the slopes
    between any two of them (Theil and Sen's estimate). It counts if nearly all of these slopes rise: a jump, for
    instance a worker that was replaced, and the rise and fall of an update do not make a leak.

    Args:
        seconds: When each sample was taken, rising.
        resident: Resident memory of the trainer and its processes, bytes.
        share: Growth within an hour that counts, as a share of the memory at the beginning.
    """
    if len(seconds) < 2 * BINS or seconds[-1] - seconds[0] < SHORTEST_SECONDS:
        return None
    times, values = np.asarray(seconds, np.float64), np.asarray(resident, np.float64)
    place = np.minimum(BINS * (times - times[0]) / (times[-1] - times[0]), BINS - 1).astype(np.int64)
    bins = [(float(np.median(times[place == i])), float(np.median(values[place == i]))) for i in np.unique(place)]
    slopes = [(late[1] - early[1]) / (late[0] - early[0]) for early, late in combinations(bins, 2)]
    hourly, beginning = 3600.0 * float(np.median(slopes)), bins[0][1]
    if float(np.quantile(slopes, RISING)) <= 0.0 or hourly <= share * beginning:
        return None
    return Finding(
        "memory",
        f"Memory grows by {hourly / 2**30:.2f} GiB an hour, for {format_seconds(times[-1] - times[0])} now: "
        f"{bins[-1][1] / 2**30:.2f} GiB after {beginning / 2**30:.2f} GiB.",
        "If it goes on, stop with Ctrl-C and go on with --resume latest: a new process begins small. Pages that "
        "processes share count once for each; /proc/PID/smaps_rollup (Pss) says which process really grows.",
    )


class AlarmBook:
    """Remembers what is wrong at present, so that it is told once and not at every look."""

    def __init__(self) -> None:
        self._quiet: dict[str, int] = {}

    def new(self, kinds: Sequence[str], findings: Sequence[Finding]) -> list[Finding]:
        """Those of this look's findings that were not known yet.

        Args:
            kinds: What was looked for: troubles of other kinds are neither there nor over.
            findings: What was found.
        """
        found = {finding.kind for finding in findings}
        fresh = [finding for finding in findings if finding.kind not in self._quiet]
        for kind in found:
            self._quiet[kind] = 0
        for kind in set(kinds) - found:
            if kind in self._quiet:
                self._quiet[kind] += 1
                if self._quiet[kind] >= QUIET_LOOKS:
                    del self._quiet[kind]
        return fresh


class RunGuards:
    """Looks at what a run has written so far, and warns.

    Args:
        folder: The run's folder.
        settings: Thresholds.
        reporter: Told of what is new, beside the alerts.
    """

    def __init__(self, folder: RunFolder, settings: GuardsConfig, reporter: Reporter) -> None:
        self._folder = folder
        self._settings = settings
        self._reporter = reporter
        self._metrics = folder.reader(names.METRICS_FILE)
        self._system = folder.reader(names.SYSTEM_FILE)
        self._book = AlarmBook()
        self._entropy: list[float] = []
        self._rate: list[float] = []
        self._prompts: list[int] = []
        self._memory: deque[tuple[float, float]] = deque()
        self._memory_from: float | None = None

    def catch_up(self) -> None:
        """Take in what an earlier session of the run wrote, whose alerts are there already."""
        self._system.read()  # Of other processes, which are gone.
        for record in self._metrics.read():
            self._take(record)

    def look(self) -> None:
        """Read what is new, and write an alert for each trouble that was not there before.

        Raises:
            RunError: The folder is gone or not writable.
        """
        fresh = [finding for record in self._metrics.read() for finding in self._take(record)]
        samples = self._system.read()
        for sample in samples:
            self._sample(float(sample[names.TIME]), float(sample[names.SYSTEM_RSS]))
        if samples and self._settings.memory is not None:
            times, values = [time for time, _ in self._memory], [resident for _, resident in self._memory]
            found = memory_growth(times, values, self._settings.memory)
            fresh += self._book.new(["memory"], [] if found is None else [found])
        for finding in fresh:
            warn(self._folder, self._reporter, finding)

    def _take(self, record: dict[str, Any]) -> list[Finding]:
        """Of an update's line, what is newly wrong."""
        settings, findings, kinds = self._settings, [], []
        if _is_number(record.get(names.TRAIN_ENTROPY)):
            self._entropy.append(float(record[names.TRAIN_ENTROPY]))
            findings.append(entropy_collapse(self._entropy, settings.entropy, settings.window))
            kinds.append("entropy")
        if _is_number(record.get(names.ROLLOUT_SUCCESS)) and record.get(names.ROLLOUT_GROUPS):
            self._rate.append(float(record[names.ROLLOUT_SUCCESS]))
            self._prompts.append(int(record[names.ROLLOUT_GROUPS]))
            if settings.success is not None:
                findings.append(success_fall(self._rate, self._prompts, settings.success, settings.window))
                kinds.append("success")
        return self._book.new(kinds, [finding for finding in findings if finding is not None])

    def _sample(self, time: float, resident: float) -> None:
        if self._memory_from is None or (self._memory and time < self._memory[-1][0]):
            # The first sample, or a clock that was set back.
            self._memory_from = time
            self._memory.clear()
        if time - self._memory_from < WARMUP_SECONDS:
            return
        self._memory.append((time, resident))
        while self._memory[-1][0] - self._memory[0][0] > LONGEST_SECONDS:
            self._memory.popleft()


def warn(folder: RunFolder, reporter: Reporter, finding: Finding, **fields: Any) -> None:
    """Write a finding down as an alert, and say it.

    Raises:
        RunError: The folder is gone or not writable.
    """
    folder.alert("warning", finding.message, finding.advice, kind=finding.kind, **fields)
    reporter.message(f"{finding.message} {finding.advice}", "warning")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
