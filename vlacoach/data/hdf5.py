"""Demonstrations in LIBERO's own HDF5 layout: one file a task, ``<task>_demo.hdf5``.

A file holds ``data/demo_<k>`` with ``actions``, ``states``, ``rewards``, ``dones``, ``robot_states``, and ``obs/``
(Liu et al., 2023; the layout goes back to robomimic). Pictures are kept as LIBERO keeps them, upside down; the
reader turns them by 180 degrees, the way published policies see them. Two data sets are ours: ``expert_actions``,
the clean labels of episodes that were executed with noise, and ``obs/object_positions``.
"""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vlacoach.data.hdf5_attributes import instruction_of, render_profile_of
from vlacoach.errors import VlacoachError
from vlacoach.profiles import RenderProfile

logger = logging.getLogger(__name__)

SUFFIX = "_demo.hdf5"
IMAGE_KEYS = {"agentview": "agentview_rgb", "robot0_eye_in_hand": "eye_in_hand_rgb"}
"""Camera to its name in ``obs/``; any other camera is stored as ``<camera>_rgb``."""

_COMPLETE = "complete"


class DemonstrationError(VlacoachError):
    """A demonstration file that is missing, damaged, or of another layout."""


@dataclass
class Demonstration:
    """One episode; row t of every array belongs to the moment before action t.

    Attributes:
        task: LIBERO's name of the task.
        instruction: What the robot was told.
        index: k of ``demo_k``.
        actions: (T, 7) float32 in [-1, 1], as executed.
        labels: (T, 7) float32 in [-1, 1], what a policy should imitate: the actions, or the expert's clean ones.
        proprioception: (T, 8) float32: position (m), axis-angle (rad), finger positions (m).
        images: Camera to (T, H, W, 3) uint8, turned as policies see them.
        states: (T, D) float64 simulator states, or None.
        joints: (T, 7) float64 arm joint positions (rad), or None.
        init_state: Index of the official initial state, or None if unknown.
        object_names: Names of the objects in ``object_positions``.
        object_positions: (T, K, 3) float32 in m, or None.
        success: Whether the goal was reached; rollouts of a policy may fail.
    """

    task: str
    instruction: str
    index: int
    actions: NDArray[np.float32]
    labels: NDArray[np.float32]
    proprioception: NDArray[np.float32]
    images: dict[str, NDArray[np.uint8]]
    states: NDArray[np.float64] | None = None
    joints: NDArray[np.float64] | None = None
    init_state: int | None = None
    object_names: tuple[str, ...] = ()
    object_positions: NDArray[np.float32] | None = None
    success: bool = True

    @property
    def length(self) -> int:
        """Number of actions."""
        return len(self.actions)


def demonstration_file(folder: Path, task: str) -> Path:
    """Path of a task's file in a folder."""
    return folder / f"{task}{SUFFIX}"


def _turned(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(T, H, W, 3) pictures turned by 180 degrees: from LIBERO's files to policies, and back."""
    return np.ascontiguousarray(images[:, ::-1, ::-1])


def _open(file: Path, mode: str) -> Any:
    if mode == "r" and not file.is_file():
        raise DemonstrationError(f"There is no demonstration file {file}.", "Make some with: vlacoach demos collect")
    try:
        return h5py.File(file, mode)
    except OSError as error:
        hint = "It was probably cut off while it was written or copied; move it away and collect or download it again."
        raise DemonstrationError(f"The demonstration file {file} cannot be read: {error}.", hint) from error


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DemonstrationError(f"{file} is damaged: {error}.", "Download or collect it again.") from error


def _index(name: str) -> int:
    return int(name.removeprefix("demo_"))


def _intact(group: Any) -> bool:
    """Whether an episode was written to its end; LIBERO's own files have no mark, so their data decides."""
    if "actions" not in group or "obs" not in group or "num_samples" not in group.attrs:
        return False
    length = len(group["actions"])
    arrays = [group[key] for key in group if key != "obs"] + [group["obs"][key] for key in group["obs"]]
    marked = bool(group.attrs.get(_COMPLETE, True))
    return marked and int(group.attrs["num_samples"]) == length and all(len(array) == length for array in arrays)


@dataclass
class DemonstrationWriter:
    """Appends episodes to one task's file; each episode is on disk before ``write`` returns.

    The file is open only while an episode is written, so an interrupted collection loses at most that episode. An
    episode that was cut off is dropped, with a message, when the file is next opened for writing.

    Args:
        file: Where to write; existing episodes are kept.
        suite: Name of the suite.
        task: LIBERO's name of the task.
        instruction: What the robot is told.
        camera_size: Height and width of the pictures in pixels.
        render_profile: How the pictures are rendered.
        problem: LIBERO's name of the problem class of the scene.

    Raises:
        DemonstrationError: The file exists and cannot be read, or its pictures are of another kind.
    """

    file: Path
    suite: str
    task: str
    instruction: str
    camera_size: int
    render_profile: RenderProfile = "reference"
    problem: str = "libero_tabletop_manipulation"
    _indices: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with _open(self.file, "a") as content:
            data = content.require_group("data")
            if len(data) and (kept := render_profile_of(data)) != self.render_profile:
                raise DemonstrationError(
                    f"The pictures in {self.file} are rendered as {kept!r}, not as {self.render_profile!r}.",
                    "Collect into another folder, or with the same profile.",
                )
            for name in list(data):
                if _intact(data[name]):
                    self._indices.add(_index(name))
                else:
                    logger.warning("Dropped %s of %s: it was cut off while it was written.", name, self.file)
                    del data[name]
            self._write_header(data)
            _sync(content)

    @property
    def indices(self) -> frozenset[int]:
        """Numbers k of every episode ``demo_k`` in the file."""
        return frozenset(self._indices)

    def _write_header(self, data: Any) -> None:
        bddl_file = f"{self.suite}/{self.task}.bddl"
        size = {"camera_heights": self.camera_size, "camera_widths": self.camera_size}
        data.attrs["render_profile"] = self.render_profile
        data.attrs["bddl_file_name"] = bddl_file
        data.attrs["env_name"] = self.problem
        data.attrs["tag"], data.attrs["macros_image_convention"] = "libero-v1", "opengl"
        data.attrs["problem_info"] = json.dumps(
            {"problem_name": self.problem, "domain_name": "robosuite", "language_instruction": self.instruction}
        )
        data.attrs["env_args"] = json.dumps(
            {
                "type": 1,
                "env_name": self.problem,
                "problem_name": self.problem,
                "bddl_file": bddl_file,
                "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "controller": "OSC_POSE", **size},
            }
        )
        data.attrs["num_demos"] = len(self._indices)
        data.attrs["total"] = sum(int(data[name].attrs["num_samples"]) for name in data)

    def write(self, episode: Demonstration, attributes: Mapping[str, Any] | None = None) -> None:
        """Append an episode as ``demo_<episode.index>``.

        Args:
            episode: The episode; its pictures are the way policies see them.
            attributes: Further attributes of the episode, such as ``model_file``.

        Raises:
            DemonstrationError: The file already has an episode of that index.
        """
        if episode.index in self._indices:
            raise DemonstrationError(f"{self.file} already has demo_{episode.index}.", "Choose another index.")
        with _open(self.file, "a") as content:
            data = content["data"]
            group = data.create_group(f"demo_{episode.index}")
            group.attrs[_COMPLETE] = False
            _write_arrays(group, episode)
            _write_observations(group.create_group("obs"), episode)
            for key, value in (attributes or {}).items():
                group.attrs[key] = value
            if episode.init_state is not None:
                group.attrs["init_state_index"] = episode.init_state
            if episode.states is not None:
                group.attrs["init_state"] = episode.states[0]
            group.attrs["num_samples"] = episode.length
            # The data must be on disk before the mark that vouches for it.
            _sync(content)
            group.attrs[_COMPLETE] = True
            self._indices.add(episode.index)
            self._write_header(data)
            _sync(content)


def _sync(content: Any) -> None:
    content.flush()
    os.fsync(content.id.get_vfd_handle())


def _write_arrays(group: Any, episode: Demonstration) -> None:
    length = episode.length
    last = np.zeros(length, dtype=np.uint8)
    last[-1:] = 1
    group["actions"] = episode.actions.astype(np.float64)
    group["expert_actions"] = episode.labels.astype(np.float64)
    group["rewards"] = last * np.uint8(episode.success)
    group["dones"] = last
    if episode.states is not None:
        group["states"] = episode.states
    position, orientation, fingers = np.split(episode.proprioception.astype(np.float64), [3, 6], axis=1)
    quaternion = Rotation.from_rotvec(orientation).as_quat()
    group["robot_states"] = np.concatenate([fingers, position, quaternion], axis=1)


def _write_observations(group: Any, episode: Demonstration) -> None:
    for camera, images in episode.images.items():
        group.create_dataset(
            IMAGE_KEYS.get(camera, f"{camera}_rgb"),
            data=_turned(images),
            chunks=(1, *images.shape[1:]),
            compression="lzf",
        )
    position, orientation, fingers = np.split(episode.proprioception.astype(np.float64), [3, 6], axis=1)
    group["ee_pos"], group["ee_ori"], group["gripper_states"] = position, orientation, fingers
    group["ee_states"] = np.concatenate([position, orientation], axis=1)
    if episode.joints is not None:
        group["joint_states"] = episode.joints
    if episode.object_positions is not None:
        group["object_positions"] = episode.object_positions
        group["object_positions"].attrs["names"] = list(episode.object_names)


class EpisodeReader(ABC):
    """Episodes by task and number, whatever they are stored as.

    Attributes:
        instructions: Task to what the robot is told.
        render_profiles: Task to how its pictures were rendered.
    """

    instructions: dict[str, str]
    render_profiles: dict[str, RenderProfile]
    _indices: dict[str, list[int]]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, sorted."""
        return sorted(self._indices)

    def indices(self, task: str) -> list[int]:
        """Numbers of a task's intact episodes, rising."""
        return list(self._indices[task])

    @abstractmethod
    def read(self, task: str, index: int) -> Demonstration:
        """Read one episode."""

    def __len__(self) -> int:
        return sum(len(indices) for indices in self._indices.values())

    def __iter__(self) -> Iterator[Demonstration]:
        for task in self.tasks:
            for index in self._indices[task]:
                yield self.read(task, index)


class DemonstrationReader(EpisodeReader):
    """Reads a file of demonstrations, or every ``*_demo.hdf5`` in a folder; LIBERO's published files included.

    Args:
        path: A file or a folder.
        cameras: Cameras to read; None for every camera in the file.

    Raises:
        DemonstrationError: There is nothing to read, or a file is damaged.
    """

    def __init__(self, path: Path | str, cameras: Sequence[str] | None = None) -> None:
        path = Path(path)
        files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not files:
            hint = "Make some with: vlacoach demos collect"
            raise DemonstrationError(f"There are no demonstrations (*{SUFFIX}) in {path}.", hint)
        self.cameras = cameras
        self.files = {file.name.removesuffix(SUFFIX): file for file in files}
        self.instructions, self.render_profiles, self._indices = {}, {}, {}
        for task, file in self.files.items():
            with _open(file, "r") as content:
                if "data" not in content:
                    raise DemonstrationError(f"{file} is not a LIBERO demonstration file: it has no group 'data'.")
                self.instructions[task] = instruction_of(content["data"], task)
                self.render_profiles[task] = render_profile_of(content["data"])
                self._indices[task] = _intact_indices(content["data"], file)

    def read(self, task: str, index: int) -> Demonstration:
        """Read one episode.

        Raises:
            DemonstrationError: The task or the episode is not there, or a required data set is missing.
        """
        if task not in self.files or index not in self._indices[task]:
            raise DemonstrationError(f"There is no demo_{index} of task {task!r}.", f"Tasks: {', '.join(self.tasks)}.")
        with _reading(self.files[task]), _open(self.files[task], "r") as content:
            group = content["data"][f"demo_{index}"]
            observations = group["obs"]
            actions = np.asarray(group["actions"], dtype=np.float32)
            if actions.shape[1:] != (7,):
                raise DemonstrationError(f"demo_{index} in {self.files[task]} has actions {actions.shape}, not (T, 7).")
            labels = np.asarray(group["expert_actions"], dtype=np.float32) if "expert_actions" in group else actions
            objects = observations.get("object_positions")
            init_state = group.attrs.get("init_state_index")
            return Demonstration(
                task=task,
                instruction=self.instructions[task],
                index=index,
                actions=actions,
                labels=labels,
                proprioception=_proprioception(observations, self.files[task]),
                images=self._images(observations, self.files[task]),
                states=np.asarray(group["states"]) if "states" in group else None,
                joints=np.asarray(observations["joint_states"]) if "joint_states" in observations else None,
                init_state=None if init_state is None else int(init_state),
                object_names=() if objects is None else tuple(str(name) for name in objects.attrs["names"]),
                object_positions=None if objects is None else np.asarray(objects, dtype=np.float32),
                success="rewards" not in group or bool(np.any(group["rewards"])),
            )

    def _images(self, observations: Any, file: Path) -> dict[str, NDArray[np.uint8]]:
        stored = {key: camera for camera, key in IMAGE_KEYS.items()}
        found = {stored.get(key, key.removesuffix("_rgb")): key for key in observations if key.endswith("_rgb")}
        for camera in self.cameras or ():
            if camera not in found:
                raise DemonstrationError(
                    f"{file} has no pictures of camera {camera!r}.", f"It has: {', '.join(sorted(found)) or 'none'}."
                )
        wanted = found if self.cameras is None else self.cameras
        return {camera: _turned(np.asarray(observations[found[camera]], dtype=np.uint8)) for camera in wanted}


def _intact_indices(data: Any, file: Path) -> list[int]:
    intact = []
    for name in data:
        if _intact(data[name]):
            intact.append(_index(name))
        else:
            logger.warning("Left out %s of %s: it was cut off while it was written.", name, file)
    return sorted(intact)


def _proprioception(observations: Any, file: Path) -> NDArray[np.float32]:
    if "ee_states" in observations:
        pose = np.asarray(observations["ee_states"])
    elif "ee_pos" in observations and "ee_ori" in observations:
        pose = np.concatenate([observations["ee_pos"], observations["ee_ori"]], axis=1)
    else:
        raise DemonstrationError(f"{file} holds no hand poses (obs/ee_states, or obs/ee_pos and obs/ee_ori).")
    if "gripper_states" not in observations:
        raise DemonstrationError(f"{file} holds no finger positions (obs/gripper_states).")
    values = np.concatenate([pose, observations["gripper_states"]], axis=1).astype(np.float32)
    if values.shape[1] != 8:
        raise DemonstrationError(f"{file} has hand poses and finger positions of {values.shape[1]} numbers, not 6 + 2.")
    return values
