"""How a perturbed world looks: another camera, other light, another background.

Worlds share their compiled model, so nothing of it is changed for good: what is different is put in while one picture
is drawn, and taken out again. Pictures of one process are drawn one after another, and physics does not run meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import mujoco
import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.perturbations import PerturbedEpisode

CAMERA = "agentview"
"""The camera that is moved; the wrist's is bolted to the hand."""

Change: TypeAlias = "tuple[str, Any, Any]"
"""An array of the model by its (dotted) name, an index, and what to put there."""

_PLACED = ("cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
"""Where MuJoCo keeps cameras and lights of a state, computed from the model's."""


@dataclass(frozen=True)
class Appearance:
    """What to change in a model while a picture is drawn.

    Attributes:
        changes: In the order in which to make them.
        shadows: Lights cast shadows, which LIBERO's do not.
    """

    changes: tuple[Change, ...]
    shadows: bool = False

    @contextmanager
    def shown(self, model: mujoco.MjModel, data: mujoco.MjData) -> Iterator[None]:
        """Change the model, and undo it; both model and state are bitwise as before afterwards."""
        before = [(name, index, np.copy(_array(model, name)[index])) for name, index, _ in self.changes]
        placed = [(name, getattr(data, name).copy()) for name in _PLACED]
        try:
            for name, index, value in self.changes:
                _array(model, name)[index] = value
            mujoco.mj_camlight(model, data)
            yield
        finally:
            for name, index, value in reversed(before):
                _array(model, name)[index] = value
            for name, value in placed:
                getattr(data, name)[:] = value


def _array(model: mujoco.MjModel, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), model)


def perturbed_appearance(model: mujoco.MjModel, data: mujoco.MjData, episode: PerturbedEpisode) -> Appearance | None:
    """How the worlds of an episode look.

    Args:
        model: The scene's model.
        data: The state after the reset; the camera turns about what lies on the table there.
        episode: The episode.

    Returns:
        None if neither camera, light, nor background is perturbed.
    """
    changes: list[Change] = []
    if episode.along("camera").severity:
        changes += _camera(model, episode, data)
    if episode.along("light").severity:
        changes += _light(model, episode)
    if episode.along("background").severity:
        changes += _background(model, episode)
    shadows = episode.along("light").magnitude("shadows") > 0
    return Appearance(tuple(changes), shadows) if changes else None


def _direction(generator: np.random.Generator, across: NDArray[np.float64]) -> NDArray[np.float64]:
    """A unit vector, drawn uniformly among those at right angles to a vector."""
    drawn = generator.normal(size=3)
    drawn -= across * (drawn @ across) / (across @ across)
    return np.asarray(drawn / np.linalg.norm(drawn))


def _turn(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    quaternion = np.empty(4)
    mujoco.mju_axisAngle2Quat(quaternion, axis, np.deg2rad(degrees))
    return quaternion


def _turned(vector: NDArray[np.float64], turn: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.empty(3)
    mujoco.mju_rotVecQuat(result, np.asarray(vector, dtype=np.float64), turn)
    return result


def _camera(model: mujoco.MjModel, episode: PerturbedEpisode, data: mujoco.MjData) -> Sequence[Change]:
    """The camera goes around the point that it looks at, nearer or farther, and then looks a little aside."""
    perturbation, generator = episode.along("camera"), episode.generator("camera")
    camera = model.camera(CAMERA).id
    position, orientation = model.cam_pos[camera].copy(), model.cam_quat[camera].copy()
    forward = _turned(np.array([0.0, 0.0, -1.0]), orientation)
    bodies = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    # Where the line of sight is as high as the objects are on average.
    center = position + forward * (data.xpos[bodies, 2].mean() - position[2]) / forward[2]
    turn = _turn(_direction(generator, forward), perturbation.magnitude("orbit_deg"))
    distance = 1.0 + generator.choice([-1.0, 1.0]) * perturbation.magnitude("distance")
    aside = _turn(_unit(generator), perturbation.magnitude("turn_deg"))
    turned = np.empty(4)
    mujoco.mju_mulQuat(turned, turn, orientation)
    mujoco.mju_mulQuat(turned, aside, turned.copy())
    return [
        ("cam_pos", camera, center + distance * _turned(position - center, turn)),
        ("cam_quat", camera, turned),
    ]


def _unit(generator: np.random.Generator) -> NDArray[np.float64]:
    drawn = generator.normal(size=3)
    return np.asarray(drawn / np.linalg.norm(drawn))


def _light(model: mujoco.MjModel, episode: PerturbedEpisode) -> Sequence[Change]:
    """Lights shine from another direction, brighter or darker, in a color, and from severity 3 on with shadows."""
    perturbation, generator = episode.along("light"), episode.generator("light")
    turn = _turn(_direction(generator, np.array([0.0, 0.0, 1.0])), perturbation.magnitude("turn_deg"))
    factor = 1.0 + generator.choice([-1.0, 1.0]) * perturbation.magnitude("intensity")
    color = 1.0 - perturbation.magnitude("color") * _hue(generator)
    changes: list[Change] = []
    for light in range(model.nlight):
        changes += [
            ("light_dir", light, _turned(model.light_dir[light], turn)),
            ("light_castshadow", light, perturbation.magnitude("shadows") > 0),
        ]
    for name in ("light_diffuse", "vis.headlight.diffuse"):
        changes.append((name, slice(None), _array(model, name) * (factor * color)))
    return changes


def _hue(generator: np.random.Generator) -> NDArray[np.float64]:
    """(3,) how much of red, green, and blue a color lacks: nothing of one of them, all of another."""
    return generator.permutation([0.0, generator.random(), 1.0])


def _background(model: mujoco.MjModel, episode: PerturbedEpisode) -> Sequence[Change]:
    """Table, floor, and walls get another color each, and from severity 3 on more and more of them another texture."""
    perturbation, generator = episode.along("background"), episode.generator("background")
    surfaces: dict[int, list[int]] = {}
    for geom in background_geoms(model):
        surfaces.setdefault(int(model.geom_matid[geom]), []).append(int(geom))
    # A mirror would show what is not drawn because it is out of view.
    textures = [m for m in surfaces if m >= 0 and model.mat_reflectance[m] == 0]
    count = int(np.ceil(perturbation.magnitude("surfaces_swapped") * len(surfaces)))
    swapped = generator.permutation(list(surfaces))[:count]
    changes: list[Change] = []
    for material, geoms in surfaces.items():
        tint = 1.0 - perturbation.magnitude("tint") * _hue(generator)
        color = model.mat_rgba[material, :3] if material >= 0 else model.geom_rgba[geoms[0], :3]
        changes.append(("geom_rgba", (geoms, slice(3)), tint * color))
        others = [texture for texture in textures if texture != material]
        chosen = int(generator.choice(others)) if others else material
        if material in swapped:
            changes.append(("geom_matid", geoms, chosen))
    return changes


def background_geoms(model: mujoco.MjModel) -> NDArray[np.int64]:
    """What is drawn and belongs neither to the robot nor to an object or fixture: table, floor, and walls."""
    arena = np.array([is_arena(model, body) for body in range(model.nbody)])
    return np.flatnonzero(arena[model.body_rootid[model.geom_bodyid]] & (model.geom_group == 1))


def is_arena(model: mujoco.MjModel, body: int) -> bool:
    """Whether a body that hangs on the world is table, floor, or wall; LIBERO calls objects and fixtures ``*_main``."""
    name = model.body(body).name
    return not name.endswith("_main") and not name.startswith(("robot", "gripper", "mount"))
