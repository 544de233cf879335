"""Writing demonstrations as a LeRobot data set, version 3.0: what ``LeRobotDataset(repo_id, root=FOLDER)`` opens.

Layout, names and types are those of LeRobot 0.4's own writer (``lerobot_dataset.py``, ``datasets/utils.py``); pictures
and states are called as in ``HuggingFaceVLA/libero``. Parquet and MP4 files hold several episodes each, up to a size.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlacoach.data.hdf5 import Demonstration, DemonstrationError
from vlacoach.data.lerobot import INFO, import_extra
from vlacoach.data.lerobot_stats import Stats, picture_histogram, picture_stats, vector_stats
from vlacoach.runs.files import publish_folder

CAMERA_FEATURES = {"agentview": "observation.images.image", "robot0_eye_in_hand": "observation.images.image2"}
"""Camera to its feature; any other is ``observation.images.<camera>``."""

Pictures = Literal["video", "image"]

_STATE_NAMES = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper", "gripper2"]
_ACTION_NAMES = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper"]
_FILES_PER_CHUNK = 1000
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES_FILE = "meta/episodes/chunk-000/file-000.parquet"
_SCALARS = (
    "next.reward",
    "next.done",
    "next.success",
    "timestamp",
    "frame_index",
    "episode_index",
    "index",
    "task_index",
)
_TYPES = {"next.reward": "float32", "next.done": "bool", "next.success": "bool", "timestamp": "float32"}
_CODEC = {"crf": "18", "g": "2", "tune": "zerolatency"}
"""A key frame every other picture, as in LeRobot's own files, so that single frames are found quickly; and packets come
at once, so that the size of a file is known."""


@dataclass(frozen=True)
class LeRobotSummary:
    """What was written.

    Attributes:
        path: The folder.
        episodes: Number of episodes.
        frames: Number of frames, over all episodes.
        tasks: Instruction to the number of its episodes, in the order of the tasks' numbers.
    """

    path: Path
    episodes: int
    frames: int
    tasks: Mapping[str, int]


def write_lerobot(
    target: Path,
    episodes: Iterable[Demonstration],
    *,
    fps: int = 20,
    pictures: Pictures = "video",
    force: bool = False,
    data_megabytes: float = 100,
    video_megabytes: float = 200,
) -> LeRobotSummary:
    """Write a LeRobot data set, as a whole or not at all.

    Episodes are numbered anew, from 0. The ``action`` of a frame is the demonstration's label: what a policy should
    imitate. ``next.success`` and ``next.reward`` are 1 at the last frame of a success, ``next.done`` at every last one.

    Args:
        target: Folder that is to hold the data set; its parents are made.
        episodes: The episodes, of equal cameras and picture sizes; one at a time is in memory.
        fps: Frames a second; LIBERO's control frequency is 20.
        pictures: ``video`` compresses them as H.264 (lossy), ``image`` keeps them as PNG in the Parquet files.
        force: Replace a LeRobot data set that is there.
        data_megabytes: Size, before compression, from which on another Parquet file is begun.
        video_megabytes: Size from which on another video is begun.

    Returns:
        What was written.

    Raises:
        ConfigError: pyarrow or PyAV is not installed, or ``target`` exists and may not be replaced.
        DemonstrationError: There is no episode, or one does not fit the others.
        RunError: The folder cannot be written; ``target`` is then as before.
    """
    found: list[LeRobotSummary] = []

    def fill(folder: Path) -> None:
        writer = _Writer(folder, fps, pictures, data_megabytes, video_megabytes)
        try:
            for episode in episodes:
                writer.add(episode)
        finally:
            writer.close()
        writer.finish(target)
        counts = Counter(row["tasks"][0] for row in writer.rows)
        found.append(LeRobotSummary(target, len(writer.rows), writer.frames, dict(counts)))

    require_packages(pictures)
    publish_folder(target, fill, lambda folder: (folder / INFO).is_file(), force)
    return found[0]


def require_packages(pictures: Pictures) -> None:
    """Refuse early, where episodes are yet to be made.

    Raises:
        ConfigError: pyarrow or PyAV is not installed; the hint says how to install them.
    """
    import_extra("pyarrow")
    if pictures == "video":
        import_extra("av")


@dataclass
class _Place:
    """The file that is being written, by its number, what it holds so far, and what is open of it."""

    number: int = 0
    frames: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        self.container: Any = None

    def numbers(self) -> dict[str, int]:
        chunk, file = divmod(self.number, _FILES_PER_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    def is_full(self, megabytes: float) -> bool:
        return self.bytes >= megabytes * 2**20

    def begin(self, folder: Path, template: str, **keys: str) -> Path:
        file = folder / template.format(**keys, **self.numbers())
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def end(self) -> None:
        if self.container is not None:
            self.container.close()
            self.number, self.frames, self.bytes = self.number + 1, 0, 0
        self.container = None


@dataclass
class _Writer:
    """Writes one episode after the other.

    Attributes:
        folder: Where to.
        rows: Lines of ``meta/episodes``.
        tasks: Instruction to its number.
        frames: Frames so far.
    """

    folder: Path
    fps: int
    pictures: Pictures
    data_megabytes: float
    video_megabytes: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _data: _Place = field(default_factory=_Place)
    _videos: dict[str, _Place] = field(default_factory=dict)
    _streams: dict[str, Any] = field(default_factory=dict)
    _numbers: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    _histograms: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def add(self, episode: Demonstration) -> None:
        images = {_feature(camera): stack for camera, stack in episode.images.items()}
        self._check(episode, images)
        columns = self._columns(episode)
        row = self._describe(episode)
        row |= self._write_rows(columns, images)
        stats: dict[str, Stats] = {name: vector_stats(_table(values)) for name, values in columns.items()}
        for name, values in columns.items():
            self._numbers.setdefault(name, []).append(values)
        for name, stack in images.items():
            if self.pictures == "video":
                row |= self._write_video(name, stack)
            histogram = picture_histogram(stack)
            self._histograms[name] = self._histograms.get(name, 0) + histogram
            stats[name] = picture_stats(histogram, len(stack))
        row |= {f"stats/{name}/{key}": value for name, known in stats.items() for key, value in known.items()}
        self.rows.append(row)
        self.frames += episode.length

    def close(self) -> None:
        """Close every file that is open; safe to call whatever happened before."""
        self._data.end()
        for name in list(self._videos):
            self._end_video(name)

    def finish(self, target: Path) -> None:
        """Write the ``meta`` folder."""
        if not self.rows:
            raise DemonstrationError(f"There is no episode to write to {target}.", "Choose other tasks, or a source.")
        stats = {name: vector_stats(_table(np.concatenate(values))) for name, values in self._numbers.items()}
        stats |= {name: picture_stats(counted, self.frames) for name, counted in self._histograms.items()}
        file = self.folder / _EPISODES_FILE
        file.parent.mkdir(parents=True)
        pyarrow, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(self.rows), file)
        parquet.write_table(self._tasks_table(pyarrow), self.folder / "meta" / "tasks.parquet")
        for path, content in ((INFO, self._info()), (Path("meta", "stats.json"), stats)):
            text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)
            (self.folder / path).write_text(text, encoding="utf-8")

    def _check(self, episode: Demonstration, images: dict[str, NDArray[np.uint8]]) -> None:
        arrays: dict[str, NDArray[Any]] = {
            "observation.state": episode.proprioception,
            "action": episode.labels,
            **images,
        }
        shapes = {name: values.shape[1:] for name, values in arrays.items()}
        where = f"Episode {episode.index} of {episode.task!r}"
        if not self._shapes:
            self._shapes = shapes
        if shapes != self._shapes:
            raise DemonstrationError(
                f"{where} has the shapes {shapes}; the first episode has {self._shapes}.",
                "A LeRobot data set has the same cameras and picture sizes throughout: convert a part of the episodes.",
            )
        lengths = {name: len(values) for name, values in arrays.items()}
        if episode.length < 1 or set(lengths.values()) != {episode.length}:
            raise DemonstrationError(f"{where} has {episode.length} actions, and of the rest: {lengths}.")
        for name in ("observation.state", "action"):
            if not np.isfinite(arrays[name]).all():
                raise DemonstrationError(f"{where} has numbers in {name!r} that are not finite.")
        odd = [name for name, values in images.items() if values.shape[1] % 2 or values.shape[2] % 2]
        if odd and self.pictures == "video":
            height, width = images[odd[0]].shape[1:3]
            raise DemonstrationError(
                f"{where} has pictures of {width} x {height} pixels; H.264 needs even sides.",
                "Keep them as they are: --pictures image.",
            )

    def _columns(self, episode: Demonstration) -> dict[str, NDArray[Any]]:
        count = episode.length
        last = np.arange(count) == count - 1
        number = self.tasks.setdefault(episode.instruction, len(self.tasks))
        return {
            "observation.state": episode.proprioception.astype(np.float32),
            "action": episode.labels.astype(np.float32),
            "next.reward": (last & episode.success).astype(np.float32),
            "next.done": last,
            "next.success": last & episode.success,
            "timestamp": (np.arange(count) / self.fps).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, len(self.rows)),
            "index": np.arange(self.frames, self.frames + count),
            "task_index": np.full(count, number),
        }

    def _describe(self, episode: Demonstration) -> dict[str, Any]:
        return {
            "episode_index": len(self.rows),
            "tasks": [episode.instruction],
            "length": episode.length,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + episode.length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }

    def _write_rows(self, columns: dict[str, NDArray[Any]], images: dict[str, NDArray[np.uint8]]) -> dict[str, Any]:
        pyarrow, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
        arrays = {name: _arrow(pyarrow, values) for name, values in columns.items()}
        if self.pictures == "image":
            arrays |= {name: _embedded(pyarrow, stack) for name, stack in images.items()}
        table = pyarrow.table(arrays)
        if self._data.is_full(self.data_megabytes):
            self._data.end()
        if self._data.container is None:
            file = self._data.begin(self.folder, _DATA_PATH)
            self._data.container = parquet.ParquetWriter(file, table.schema, compression="snappy")
        self._data.container.write_table(table)
        self._data.bytes += table.nbytes
        return {f"data/{key}": value for key, value in self._data.numbers().items()}

    def _write_video(self, name: str, images: NDArray[np.uint8]) -> dict[str, Any]:
        av = import_extra("av")
        place = self._videos.setdefault(name, _Place())
        if place.is_full(self.video_megabytes):
            self._end_video(name)
        if place.container is None:
            file = place.begin(self.folder, _VIDEO_PATH, video_key=name)
            place.container = av.open(str(file), "w")
            stream = place.container.add_stream("libx264", rate=Fraction(self.fps), options=_CODEC)
            stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
            self._streams[name] = stream
        for image in images:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            packets = self._streams[name].encode(picture)
            place.bytes += sum(packet.size for packet in packets)
            place.container.mux(packets)
        begin, place.frames = place.frames, place.frames + len(images)
        span = {"from_timestamp": begin / self.fps, "to_timestamp": place.frames / self.fps}
        return {f"videos/{name}/{key}": value for key, value in {**place.numbers(), **span}.items()}

    def _end_video(self, name: str) -> None:
        place = self._videos[name]
        if place.container is not None:
            place.container.mux(self._streams[name].encode())
        place.end()

    def _tasks_table(self, pyarrow: Any) -> Any:
        """The instructions as LeRobot reads them: the index of a table of pandas, which need not be installed."""
        texts = list(self.tasks)
        columns = [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
        ]
        description = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [{**column, "metadata": None} for column in columns],
            "creator": {"library": "pyarrow", "version": pyarrow.__version__},
            "pandas_version": "2.0.0",
        }
        table = pyarrow.table({"task_index": list(range(len(texts))), "task": texts})
        return table.replace_schema_metadata({"pandas": json.dumps(description)})

    def _info(self) -> dict[str, Any]:
        video = self.pictures == "video"
        return {
            "codebase_version": "v3.0",
            "robot_type": "panda",
            "total_episodes": len(self.rows),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": _FILES_PER_CHUNK,
            "data_files_size_in_mb": self.data_megabytes,
            "video_files_size_in_mb": self.video_megabytes,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": _DATA_PATH,
            "video_path": _VIDEO_PATH if video else None,
            "features": {name: self._describe_feature(name, shape) for name, shape in self._shapes.items()}
            | {name: {"dtype": _TYPES.get(name, "int64"), "shape": [1], "names": None} for name in _SCALARS},
        }

    def _describe_feature(self, name: str, shape: Sequence[int]) -> dict[str, Any]:
        if len(shape) == 1:
            names = _STATE_NAMES if name == "observation.state" else _ACTION_NAMES
            return {"dtype": "float32", "shape": list(shape), "names": names}
        described: dict[str, Any] = {
            "dtype": self.pictures,
            "shape": list(shape),
            "names": ["height", "width", "channels"],
        }
        if self.pictures == "video":
            sizes = {"video.height": shape[0], "video.width": shape[1], "video.channels": shape[2]}
            coding = {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
            described["info"] = {**sizes, **coding, "video.fps": self.fps, "has_audio": False}
        return described


def _feature(camera: str) -> str:
    return CAMERA_FEATURES.get(camera, f"observation.images.{camera}")


def _table(values: NDArray[Any]) -> NDArray[Any]:
    """(N, D) of (N, D) or (N,)."""
    return values if values.ndim == 2 else values[:, None]


def _arrow(pyarrow: Any, values: NDArray[Any]) -> Any:
    if values.ndim == 1:
        return pyarrow.array(values)
    return pyarrow.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])


def _embedded(pyarrow: Any, images: NDArray[np.uint8]) -> Any:
    """Pictures as PNG, in the form of the Image feature of Hugging Face's ``datasets``."""
    cells = []
    for number, image in enumerate(images):
        content = io.BytesIO()
        Image.fromarray(image).save(content, "png")
        cells.append({"bytes": content.getvalue(), "path": f"frame-{number:06d}.png"})
    return pyarrow.array(cells, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
