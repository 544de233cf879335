"""Memory and processor time of a run, sampled by a thread of the trainer into system.jsonl."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.jsonl import JsonlWriter

SAMPLE_SECONDS = 5.0


class SystemSampler:
    """While active, writes a line every few seconds.

    Args:
        folder: The run folder.
        device_memory: Bytes that are held on the accelerator; None where there is none.
        seconds: Time between two lines.

    Attributes:
        problem: Why sampling has stopped, or None; the training goes on without it.
    """

    def __init__(
        self, folder: Path, device_memory: Callable[[], int] | None = None, seconds: float = SAMPLE_SECONDS
    ) -> None:
        import psutil

        self.problem: RunError | None = None
        self._folder = folder
        self._device_memory = device_memory
        self._seconds = seconds
        self._process = psutil.Process()
        # Processor time is counted from one look at a process to the next, so the objects must live on.
        self._known: dict[int, psutil.Process] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-sampler", daemon=True)

    def __enter__(self) -> SystemSampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        writer: JsonlWriter | None = None
        try:
            # A writer of its own: those of the run folder belong to the main thread.
            writer = JsonlWriter(self._folder / names.SYSTEM_FILE)
            self.sample()  # Processor time is counted from here.
            pause = min(1.0, self._seconds)
            while not self._stop.wait(pause):
                writer.write(self.sample())
                pause = self._seconds
        except RunError as error:
            self.problem = error
        finally:
            if writer is not None:
                writer.close()

    def sample(self) -> dict[str, float]:
        """Look now; processor time is that since the last look."""
        import psutil

        found = {process.pid: process for process in [self._process, *self._process.children(recursive=True)]}
        self._known = {pid: self._known.get(pid, process) for pid, process in found.items()}
        rss = cpu = 0.0
        for process in self._known.values():
            try:
                with process.oneshot():
                    rss += process.memory_info().rss
                    cpu += process.cpu_percent(None)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # It ended between the list and the look.
        values = {
            names.SYSTEM_RSS: rss,
            names.SYSTEM_CPU: cpu,
            names.SYSTEM_PROCESSES: float(len(found)),
            names.SYSTEM_FREE_MEMORY: float(psutil.virtual_memory().available),
        }
        try:
            values[names.SYSTEM_FREE_DISK] = float(psutil.disk_usage(str(self._folder)).free)
        except OSError as error:
            raise RunError(f"{self._folder} is gone: {error.strerror}.") from error
        if self._device_memory is not None:
            values[names.SYSTEM_VRAM] = float(self._device_memory())
        return values
