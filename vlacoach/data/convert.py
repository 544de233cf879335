"""Demonstrations from one layout to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vlacoach.data.hdf5 import (
    SUFFIX,
    Demonstration,
    DemonstrationError,
    DemonstrationWriter,
    EpisodeReader,
    demonstration_file,
)
from vlacoach.errors import ConfigError
from vlacoach.profiles import RenderProfile
from vlacoach.runs.files import publish_folder


def task_names(tasks: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Instruction to LIBERO's name of the task, as far as the instruction tells it.

    Args:
        tasks: Instruction and name of each task. ``libero_90`` gives one instruction in several scenes; such are left
            out, for a LeRobot data set does not know the scene.
    """
    names: dict[str, list[str]] = {}
    for instruction, name in tasks:
        names.setdefault(instruction.lower(), []).append(name)
    return {instruction: found[0] for instruction, found in names.items() if len(found) == 1}


def select_episodes(
    reader: EpisodeReader, tasks: Sequence[str], progress: Callable[[int], None] = lambda count: None
) -> Iterator[Demonstration]:
    """The episodes of some tasks, one at a time.

    Args:
        reader: Where they are.
        tasks: Names of the tasks as the reader has them.
        progress: Called with 1 when an episode has been dealt with.

    Raises:
        ConfigError: A task is not there.
        DemonstrationError: An episode is damaged.
    """
    for task in tasks:
        if task not in reader.tasks:
            raise ConfigError(
                f"There are no demonstrations of task {task!r}.", f"There are: {', '.join(reader.tasks)}."
            )
    for task in tasks:
        for index in reader.indices(task):
            yield reader.read(task, index)
            progress(1)


def write_hdf5(
    target: Path,
    episodes: Iterable[Demonstration],
    suite: str,
    names: Mapping[str, str] | None = None,
    render_profile: RenderProfile = "reference",
    force: bool = False,
) -> dict[str, int]:
    """Write a folder of LIBERO's HDF5 files, one a task, as a whole or not at all.

    Episodes are numbered anew in each file, from 0.

    Args:
        target: Folder that is to hold the files; its parents are made.
        episodes: The episodes; one at a time is in memory.
        suite: Name of the suite.
        names: Instruction to LIBERO's name of the task; None where episodes say it themselves.
        render_profile: How the pictures were rendered.
        force: Replace a folder of such files that is there.

    Returns:
        Name of each task to the number of its episodes.

    Raises:
        ConfigError: ``target`` exists and may not be replaced.
        DemonstrationError: There is no episode, one belongs to no task, or its pictures are not square.
        RunError: The folder cannot be written; ``target`` is then as before.
    """
    counts: dict[str, int] = {}

    def fill(folder: Path) -> None:
        writers: dict[str, DemonstrationWriter] = {}
        for episode in episodes:
            task = episode.task if names is None else names.get(episode.instruction.lower())
            if task is None:
                hint = "Name the suite it belongs to with --suite, or choose others with --tasks."
                raise DemonstrationError(f"No one task of {suite} is called {episode.instruction!r}.", hint)
            sides = {side for images in episode.images.values() for side in images.shape[1:3]}
            if len(sides) != 1:
                where = f"Episode {episode.index} of {task}"
                raise DemonstrationError(f"{where} has pictures with sides of {sorted(sides)}; LIBERO's are squares.")
            if task not in writers:
                file = demonstration_file(folder, task)
                writers[task] = DemonstrationWriter(file, suite, task, episode.instruction, sides.pop(), render_profile)
            episode.index = counts.get(task, 0)
            writers[task].write(episode)
            counts[task] = episode.index + 1
        if not counts:
            raise DemonstrationError(f"There is no episode to write to {target}.", "Choose other tasks, or a source.")

    publish_folder(target, fill, _is_ours, force)
    return counts


def _is_ours(folder: Path) -> bool:
    return all(path.name.endswith(SUFFIX) for path in folder.iterdir())
