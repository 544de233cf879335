"""A thread of the trainer that notices when the trainer no longer gives signs of life."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType

from vlacoach.errors import RunError
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.formatting import format_seconds
from vlacoach.runs.guards import Finding, warn
from vlacoach.runs.reporting import Reporter

LOOKS = 10
"""How often the watch looks within the time that counts as a stall."""

FRAMES = 8
"""Innermost calls of the stalled thread that are kept with the alert."""


class Idleness:
    """How long there has been no sign of life, as far as whoever watches was awake itself.

    A process that was stopped and goes on, or a machine that slept, has not stalled: a look that comes late counts for
    no more than ``longest`` seconds.

    Args:
        longest: What the time between two looks may count for.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._beat: float | None = None
        self._looked: float | None = None
        self.seconds = 0.0

    def look(self, beat: float, now: float) -> float:
        """Look at the time of the last sign of life, and return how long ago it counts as, in seconds."""
        if beat != self._beat or self._looked is None:
            self.seconds = 0.0
        else:
            self.seconds += min(now - self._looked, self._longest)
        self._beat, self._looked = beat, now
        return self.seconds


class StallWatch:
    """While active, writes one alert for each time in which the run gives no sign of life for too long.

    It says where the thread that made it stands, which is what one needs to know of something that hangs.

    Args:
        folder: The run's folder, whose heartbeat is watched.
        reporter: Told of a stall too.
        limit: Seconds without a sign of life; None watches nothing.
    """

    def __init__(self, folder: RunFolder, reporter: Reporter, limit: float | None) -> None:
        self._folder = folder
        self._reporter = reporter
        self._limit = limit
        self._watched = threading.get_ident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall-watch", daemon=True)

    def __enter__(self) -> StallWatch:
        if self._limit is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        assert self._limit is not None
        pause = self._limit / LOOKS
        idleness, told = Idleness(2 * pause), False
        while not self._stop.wait(pause):
            idle = idleness.look(self._folder.last_beat, time.monotonic())
            if idle < self._limit:
                told = False
            elif not told:
                told = True
                try:
                    self._tell(idle)
                except RunError:
                    return  # The folder is gone, which the trainer will say when it goes on.

    def _tell(self, idle: float) -> None:
        frame = sys._current_frames().get(self._watched)
        calls = [] if frame is None else traceback.extract_stack(frame)[-FRAMES:]
        stack = [f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls]
        stage = self._folder.heartbeat().get("stage") or "starting"
        where = f", in {stack[-1]}" if stack else ""
        finding = Finding(
            "stall",
            f"No sign of life for {format_seconds(idle)} in stage {stage}{where}.",
            "Simulators that hang are replaced by themselves. If it lasts, look at memory and disk, and stop with "
            "Ctrl-C, twice if need be; --resume latest goes on from the last checkpoint.",
        )
        warn(self._folder, self._reporter, finding, stage=stage, stack=stack)
