"""Demonstrations in LeRobot's layout, version 3.0: a folder of Parquet files, and of videos if it has some.

``meta/info.json`` tells the features and where files are, ``meta/episodes`` the episodes, ``meta/tasks.parquet`` the
instructions. Parquet and MP4 files hold several episodes each. Source: LeRobot's ``dataset_writer.py``.

A folder does not say which way up its pictures are, nor how its gripper commands count. LeRobot's environment turns
LIBERO's pictures by 180 degrees to match ``HuggingFaceVLA/libero`` and executes actions as they are; so does openpi,
whose ``physical-intelligence/libero`` holds the same episodes. Hence the defaults. The sets of ``IPEC-COMMUNITY`` have
RLDS's gripper: GR00T, trained on them, converts it. Of ``lerobot/libero_*_image`` we only know that its users turn
pictures, too. All of these policies are given the hand's position, axis-angle, and fingers as the state, whatever the
names say. ``fps`` is a converter's choice (openpi's is 10; the robot ran at 20) and of use only to find video frames.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlacoach.data.hdf5 import Demonstration, DemonstrationError, DemonstrationReader, EpisodeReader
from vlacoach.errors import ConfigError
from vlacoach.profiles import RenderProfile

_Json = dict[str, Any]
INFO = Path("meta", "info.json")
_EPISODE = "episode_index"
_SUCCESS = "next.success"
_CONTENTS = {7: "hand's motion, its rotation, gripper", 8: "hand's position, its axis-angle, both fingers"}
_CONVERSION = (
    "Convert it with LeRobot's own script convert_dataset_v21_to_v30.py (a set of v2.0 to v2.1 first): "
    "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME --root={} --push-to-hub=false"
)
_AGAIN = "It was probably cut off while it was written or copied: download it again."
_JITTER = 0.25  # of a frame that one may be early or late: LeRobot adds durations up as floats
_REORDERED = 16  # frames that a key frame's place in the file may be from its time, as encoders reorder them


@dataclass(frozen=True)
class LeRobotLayout:
    """What a LeRobot folder does not say, or says in other words than LIBERO's sets.

    Attributes:
        cameras: Camera to the feature with its pictures, where the feature's name does not tell.
        state: Feature with the proprioception; None for ``observation.state`` or ``state``.
        action: Feature with the actions; None for ``action`` or ``actions``.
        turned: Whether pictures are stored as policies see them; if not, as in LIBERO's files, the reader turns them.
        gripper: ``env`` if -1 opens and +1 closes, ``rlds`` if 1 opens and 0 closes.
        render_profile: How the pictures were rendered.
    """

    cameras: Mapping[str, str] = field(default_factory=dict)
    state: str | None = None
    action: str | None = None
    turned: bool = True
    gripper: Literal["env", "rlds"] = "env"
    render_profile: RenderProfile = "reference"


@dataclass(frozen=True)
class _Episode:
    # A clip is the stretch of a feature's video: file, start and end in seconds.
    index: int
    length: int
    instruction: str
    file: Path
    clips: dict[str, tuple[Path, float, float]]

    def says(self, name: str, what: str) -> str:
        return f"{name!r} of episode {self.index} in {self.file} {what}."


def is_lerobot_folder(path: Path | str) -> bool:
    """Whether a path is a LeRobot data set, of whatever version."""
    return (Path(path) / INFO).is_file()


def open_demonstrations(
    path: Path | str, cameras: Sequence[str] | None = None, layout: LeRobotLayout | None = None
) -> EpisodeReader:
    """The reader for a path.

    Args:
        path: A LeRobot folder, an HDF5 file, or a folder of HDF5 files.
        cameras: Cameras to read; None for every camera there is.
        layout: What a LeRobot folder does not say; HDF5 files need none.

    Raises:
        ConfigError: pyarrow is not installed, and the path is a LeRobot folder.
        DemonstrationError: There is nothing to read, or it is damaged or of another kind.
    """
    return LeRobotReader(path, cameras, layout) if is_lerobot_folder(path) else DemonstrationReader(path, cameras)


class LeRobotReader(EpisodeReader):
    """Reads a LeRobot folder, one episode at a time, as :class:`DemonstrationReader` reads HDF5 files.

    The folder knows instructions, not LIBERO's names of tasks: a task is called by its instruction, with underscores
    (LIBERO's own name in all suites but ``libero_10`` and ``libero_90``, whose names begin with the scene). An
    episode's number is its ``episode_index``.

    Args:
        path: The folder with ``meta``, ``data``, and, for videos, ``videos``.
        cameras: Cameras to read; None for every camera there is.
        layout: What the folder does not say; by default, as in LeRobot's own LIBERO sets.

    Raises:
        ConfigError: pyarrow is not installed.
        DemonstrationError: The folder is not a LeRobot data set of version 3, is damaged, or lacks a feature.
    """

    def __init__(
        self, path: Path | str, cameras: Sequence[str] | None = None, layout: LeRobotLayout | None = None
    ) -> None:
        self.path = Path(path)
        self.cameras = cameras
        self.layout = layout or LeRobotLayout()
        info = _read_info(self.path)
        features: dict[str, dict[str, Any]] = info["features"]
        self._state = _vector(self.path, features, self.layout.state, ("observation.state", "state"), 8)
        self._action = _vector(self.path, features, self.layout.action, ("action", "actions"), 7)
        self._pictures = _pictures(self.path, features, cameras, self.layout.cameras)
        self._success = [name for name in (_SUCCESS,) if name in features]
        self._fps = float(info["fps"])
        videos = [name for name in self._pictures.values() if features[name]["dtype"] == "video"]
        self._episodes = _read_episodes(self.path, info, videos)
        self.instructions: dict[str, str] = {}
        self._indices: dict[str, list[int]] = {}
        for index, episode in sorted(self._episodes.items()):
            task = episode.instruction.replace(" ", "_")
            self.instructions[task] = episode.instruction
            self._indices.setdefault(task, []).append(index)
        self.render_profiles: dict[str, RenderProfile] = dict.fromkeys(self._indices, self.layout.render_profile)

    def read(self, task: str, index: int) -> Demonstration:
        """Read one episode; its labels are its actions, and simulator states are unknown.

        Raises:
            ConfigError: Its pictures are videos, and PyAV is not installed.
            DemonstrationError: The task or the episode is not there, or a file is missing, cut off, or not LIBERO's.
        """
        if index not in self._indices.get(task, ()):
            raise DemonstrationError(f"There is no episode {index} of {task!r}.", f"Tasks: {', '.join(self.tasks)}.")
        episode = self._episodes[index]
        embedded = [name for name in self._pictures.values() if name not in episode.clips]
        rows = _read_rows(episode, [self._state, self._action, *self._success, *embedded])
        actions = self._env_actions(_numbers(episode, self._action, rows[self._action], 7), episode)
        images = {}
        for camera, name in self._pictures.items():
            stored = _video(episode, name, self._fps) if name in episode.clips else _embedded(episode, name, rows[name])
            images[camera] = stored if self.layout.turned else np.ascontiguousarray(stored[:, ::-1, ::-1])
        return Demonstration(
            task=task,
            instruction=episode.instruction,
            index=index,
            actions=actions,
            labels=actions,
            proprioception=_numbers(episode, self._state, rows[self._state], 8),
            images=images,
            success=all(np.any(rows[name]) for name in self._success),
        )

    def _env_actions(self, actions: NDArray[np.float32], episode: _Episode) -> NDArray[np.float32]:
        """(T, 7) actions as the environment takes them."""
        if (highest := float(np.abs(actions).max())) > 1.001:
            raise DemonstrationError(episode.says(self._action, f"goes to {highest:g}"), "LIBERO's stay within 1.")
        # Read the wrong way, a policy would learn to close where it must open, and no loss would show it. An episode
        # whose commands are all +1 tells nothing: a hand that closes at once, or one that never does.
        lowest = float(actions[:, 6].min())
        if (found := "env" if lowest < 0 else "rlds" if lowest < 0.5 else self.layout.gripper) != self.layout.gripper:
            message = episode.says(self._action, f"has {lowest:g} as its lowest gripper command")
            raise DemonstrationError(message, f"It looks like LeRobotLayout(gripper={found!r}).")
        if found == "rlds":
            actions[:, 6] = 1 - 2 * actions[:, 6]
        return actions


def import_extra(name: str) -> Any:
    """A package of the extra ``lerobot``, or an error that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"A LeRobot data set needs {name}.", "Install it with: pip install 'vlacoach[lerobot]'"
        ) from error


@contextmanager
def _reading(file: Path, *errors: type[Exception]) -> Iterator[None]:
    expected: tuple[type[Exception], ...] = (OSError, *errors)
    if not file.is_file():
        raise DemonstrationError(f"The LeRobot data set lacks the file {file}.", "Download it again.")
    try:
        yield
    except expected as error:
        raise DemonstrationError(f"{file} cannot be read: {error}.", _AGAIN) from error


def _read_info(path: Path) -> dict[str, Any]:
    if not is_lerobot_folder(path):
        raise DemonstrationError(f"{path} is not a LeRobot data set: it has no {INFO}.")
    with _reading(path / INFO, ValueError):
        info: _Json = json.loads((path / INFO).read_text(encoding="utf-8"))
    version = str(info.get("codebase_version"))
    if not version.startswith("v3."):
        hint = _CONVERSION.format(path) if version.startswith("v2.") else None
        raise DemonstrationError(f"{path} is a LeRobot data set of version {version}; v3.0 can be read.", hint)
    if missing := [key for key in ("fps", "features", "data_path") if not info.get(key)]:
        raise DemonstrationError(f"{path / INFO} does not say: {', '.join(missing)}.")
    return info


def _vector(path: Path, features: _Json, given: str | None, known: tuple[str, ...], size: int) -> str:
    """The feature that holds the state or the action, after a look at its shape."""
    names = known if given is None else (given,)
    name = next((name for name in names if name in features), None)
    if name is None:
        stored = ", ".join(sorted(features))
        raise DemonstrationError(f"{path} has no feature {' or '.join(names)}.", f"It has: {stored}.")
    shape, axes = features[name].get("shape"), features[name].get("names")
    if list(shape or ()) != [size]:
        axes = next(iter(axes.values()), None) if isinstance(axes, dict) else axes
        named = f" ({', '.join(map(str, axes))})" if axes else ""
        raise DemonstrationError(f"{name!r} of {path} has the shape {shape}{named}, not [{size}] ({_CONTENTS[size]}).")
    return name


def _camera(feature: str) -> str:
    leaf = feature.rsplit(".", 1)[-1].removesuffix("_rgb")
    if leaf == "image2" or "wrist" in leaf or "eye_in_hand" in leaf:
        return "robot0_eye_in_hand"
    return "agentview" if leaf in ("image", "front") or "agentview" in leaf else leaf


def _pictures(path: Path, features: _Json, cameras: Sequence[str] | None, given: Mapping[str, str]) -> dict[str, str]:
    """Camera to the feature with its pictures."""
    stored = [name for name, feature in features.items() if feature.get("dtype") in ("image", "video")]
    matches = {camera: [name for name in stored if name == feature] for camera, feature in given.items()}
    for name in stored:
        depth = any("is_depth_map" in key and value for key, value in (features[name].get("info") or {}).items())
        if name not in given.values() and _camera(name) not in given and not depth:
            matches.setdefault(_camera(name), []).append(name)
    wanted = list(matches) if cameras is None else cameras
    for camera in wanted:
        if len(found := matches.get(camera, [])) != 1:
            message = f"{path} has {len(found)} features with pictures of camera {camera!r}, not one."
            hint = f"It has: {', '.join(stored) or 'none'}. Say which it is with LeRobotLayout(cameras=...)."
            raise DemonstrationError(message, hint)
    return {camera: matches[camera][0] for camera in wanted}


@contextmanager
def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    errors, parquet = import_extra("pyarrow").ArrowException, import_extra("pyarrow.parquet")
    with _reading(file, errors), parquet.ParquetFile(file, buffer_size=1 << 20) as content:
        stored = content.schema_arrow.names
        if missing := [name for name in columns if name not in stored]:
            shown = ", ".join(name for name in stored if not name.startswith("stats/"))
            raise DemonstrationError(f"{file} has no column {' or '.join(map(repr, missing))}.", f"It has: {shown}.")
        yield content


def _read_table(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Any:
    """Columns of a Parquet file, and others if they are there, as an Arrow table."""
    with _parquet(file, columns) as content:
        return content.read(columns=[*columns, *(name for name in optional if name in content.schema_arrow.names)])


def _read_episodes(path: Path, info: _Json, videos: Sequence[str]) -> dict[int, _Episode]:
    files = sorted(path.glob("meta/episodes/*/*.parquet"))
    if not files:
        raise DemonstrationError(f"{path} lacks the files meta/episodes/*/*.parquet.", _AGAIN)
    spot, span = ("chunk_index", "file_index"), ("from_timestamp", "to_timestamp")
    columns = [_EPISODE, "length", *(f"data/{key}" for key in spot)]
    columns += [f"videos/{name}/{key}" for name in videos for key in spot + span]
    rows: list[_Json] = [row for file in files for row in _read_table(file, columns, ["tasks"]).to_pylist()]
    told: dict[int, set[str]] = {row[_EPISODE]: set(row.get("tasks") or ()) for row in rows}
    # LeRobot's own lerobot/libero has no tasks in meta/episodes, only a number at each frame.
    if not all(told.values()):
        told = _told_at_frames(path, sorted({_locate(path, info, "data_path", row) for row in rows}))
    episodes = {}
    for row in rows:
        index, clips = row[_EPISODE], {}
        for name in videos:
            start, end = (float(row[f"videos/{name}/{key}"]) for key in span)
            clips[name] = (_locate(path, info, "video_path", row, name), start, end)
        if len(texts := list(told.get(index, ()))) != 1:
            raise DemonstrationError(f"Episode {index} of {path} has {len(texts)} tasks in its meta folder, not one.")
        instruction = texts[0].strip().strip('"').lower()
        episodes[index] = _Episode(index, row["length"], instruction, _locate(path, info, "data_path", row), clips)
    return episodes


def _locate(path: Path, info: _Json, template: str, row: _Json, video: str | None = None) -> Path:
    place = "data" if video is None else f"videos/{video}"
    numbers = {key: int(row[f"{place}/{key}"]) for key in ("chunk_index", "file_index")}
    try:
        return Path(path, info[template].format(video_key=video, **numbers))
    except (KeyError, IndexError, AttributeError) as error:
        raise DemonstrationError(f"The {template} {info.get(template)!r} in {path / INFO} is not v3.0's.") from error


def _told_at_frames(path: Path, files: Sequence[Path]) -> dict[int, set[str]]:
    """The instructions of each episode, by the number of the task at its frames."""
    # The text is the index of a pandas table; older versions of LeRobot gave it no name.
    table = _read_table(path / "meta" / "tasks.parquet", ["task_index"], ["task", "__index_level_0__"])
    texts = {row["task_index"]: {row.get("task") or row.get("__index_level_0__")} - {None} for row in table.to_pylist()}
    told: dict[int, set[str]] = {}
    for file in files:
        frames = _read_table(file, [_EPISODE, "task_index"])
        for row in frames.group_by([_EPISODE, "task_index"]).aggregate([]).to_pylist():
            told.setdefault(row[_EPISODE], set()).update(texts.get(row["task_index"], ()))
    return told


def _read_rows(episode: _Episode, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of an episode's rows; what other episodes have in the same file is not kept in memory."""
    found: dict[str, list[Any]] = {name: [] for name in columns}
    with _parquet(episode.file, [_EPISODE, *columns]) as content:
        rows = np.flatnonzero(content.read(columns=[_EPISODE])[_EPISODE].to_numpy() == episode.index).tolist()
        if not rows or rows != list(range(rows[0], rows[0] + episode.length)):
            wrong = f"{len(rows)} rows of episode {episode.index}, not {episode.length} one after another"
            raise DemonstrationError(f"{episode.file} has {wrong}.", _AGAIN)
        sizes = [content.metadata.row_group(group).num_rows for group in range(content.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        first, last = (np.searchsorted(starts, [rows[0], rows[-1]], side="right") - 1).tolist()
        start = int(starts[first])
        for batch in content.iter_batches(64, row_groups=list(range(first, last + 1)), columns=list(columns)):
            low, high = max(rows[0] - start, 0), min(rows[-1] + 1 - start, batch.num_rows)
            for name in columns if low < high else ():
                found[name] += batch.column(name).slice(low, high - low).to_pylist()
            start += batch.num_rows
            if start > rows[-1]:
                break
    return found


def _numbers(episode: _Episode, name: str, values: list[Any], size: int) -> NDArray[np.float32]:
    """(T, size) float32."""
    sizes = sorted({len(value) if isinstance(value, list) else 1 for value in values})
    if sizes != [size]:
        found = " or ".join(map(str, sizes))
        raise DemonstrationError(episode.says(name, f"has {found} numbers a frame, not {size} ({_CONTENTS[size]})"))
    array = np.array(values, dtype=np.float32)
    if not np.isfinite(array).all():
        raise DemonstrationError(episode.says(name, "has numbers that are not finite"))
    return array


def _embedded(episode: _Episode, name: str, values: Sequence[Any]) -> NDArray[np.uint8]:
    """(T, H, W, 3) pictures of an episode that lie in its Parquet file, as ``{"bytes": PNG, "path": ...}``."""
    if not all(isinstance(value, dict) and value.get("bytes") for value in values):
        raise DemonstrationError(episode.says(name, "names picture files and does not hold their bytes"))
    with _reading(episode.file, SyntaxError, ValueError):
        return np.stack([np.asarray(Image.open(io.BytesIO(value["bytes"])).convert("RGB")) for value in values])


def _video(episode: _Episode, name: str, fps: float) -> NDArray[np.uint8]:
    """(T, H, W, 3) pictures of an episode's stretch of a video."""
    av = import_extra("av")
    file, start, end = episode.clips[name]
    pictures: list[NDArray[np.uint8]] = []
    places: list[float] = []
    with _reading(file, av.FFmpegError), av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(int(max(0.0, start - _REORDERED / fps) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            place = (frame.time - start) * fps
            if place > (end - start) * fps - 0.5:
                break
            if place > -0.5:
                places.append(place)
                pictures.append(frame.to_ndarray(format="rgb24"))
    late = int((np.abs(np.array(places) - np.arange(len(places))) > _JITTER).sum())
    if len(places) != episode.length or late:
        shown = f"{len(places)} frames from {start:.2f} s to {end:.2f} s, {late} of them not on time"
        raise DemonstrationError(f"{file} shows {shown}; episode {episode.index} has {episode.length}.", _AGAIN)
    return np.stack(pictures)
