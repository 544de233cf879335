"""Off-screen rendering: find a GL back end that works, and draw cameras of any world of a scene."""

from __future__ import annotations

import copy
import functools
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from vlacoach.envs.appearance import Appearance
from vlacoach.envs.scene import Scene
from vlacoach.errors import SimulatorError, UnknownNameError
from vlacoach.profiles import RENDER_PROFILES, RenderProfile

_COARSE_CELL = 0.004
"""Meters. A pixel of a 128-pixel agent view covers 7 mm of the table, so what is smaller than this hardly shows."""

_OUT_OF_VIEW = 5
"""Group of geoms that are not drawn because they are out of view; LIBERO's are in groups 0 and 1."""
_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])

GL_HINT = (
    "Install a software renderer: `apt-get install libegl1 libgl1 libosmesa6` on Debian and Ubuntu, "
    "`dnf install mesa-libEGL mesa-libGL mesa-libOSMesa` on Fedora."
)

logger = logging.getLogger(__name__)

PROBE_SECONDS = 120

# Draws a red ball on black and counts red pixels: a context that opens and draws nothing does not pass. Leaves
# without clean-up, because robosuite's and MuJoCo's GL contexts complain in their destructors.
_PROBE = """
import os, sys
os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = sys.argv[1]
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 -2 2" dir="0 1 -1"/>'
    '<geom type="sphere" size=".3" rgba="1 0 0 1"/>'
    '<camera name="c" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data, "c")
picture = renderer.render().astype(int)
red = int(((picture[..., 0] > 60) & (picture[..., 1] < picture[..., 0] // 3)).sum())
sys.stdout.write(str(red))
sys.stdout.flush()
os._exit(0 if red > 50 else 1)
"""


def probe_backend(backend: str) -> str | None:
    """Draw a picture with a GL back end in a process of its own.

    Returns:
        None if the picture is right, else what went wrong.
    """
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, backend],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no picture within {PROBE_SECONDS} s"
    if probe.returncode == 0:
        return None
    if probe.returncode < 0:
        return f"crashed with signal {-probe.returncode}"
    lines = [line.strip() for line in probe.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"drew a wrong picture ({probe.stdout} red pixels)"


@functools.cache
def find_gl_backend() -> str:
    """The first GL back end that draws here: ``MUJOCO_GL`` if set, else EGL, else OSMesa.

    Each is tried in a process of its own, because PyOpenGL cannot change its platform once it is imported.

    Raises:
        SimulatorError: None works; names the packages to install.
    """
    backend, failures = try_gl_backends()
    if backend is None:
        raise SimulatorError("No OpenGL back end works here (" + "; ".join(failures) + ").", GL_HINT)
    logger.info("Pictures are drawn with %s.", backend)
    return backend


def try_gl_backends() -> tuple[str | None, list[str]]:
    """The first back end that draws, or None; and what was wrong with those that were tried before it."""
    wanted = os.environ.get("MUJOCO_GL")
    failures: list[str] = []
    for backend in [wanted] if wanted else ["egl", "osmesa"]:
        problem = probe_backend(backend)
        if problem is None:
            return backend, failures
        failures.append(f"{backend}: {problem}")
    return None, failures


def select_gl_backend(backend: str) -> None:
    """Point MuJoCo and PyOpenGL at a back end; call it before either is asked for a context."""
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = backend
    # One renderer a core: llvmpipe's own threads only get in the way of the neighbors.
    os.environ.setdefault("LP_NUM_THREADS", "0")


def _open_gl(size: int) -> Any:
    # By name, since `mujoco.gl_context` made its choice when mujoco was imported.
    backend = os.environ.get("MUJOCO_GL") or find_gl_backend()
    select_gl_backend(backend)
    try:
        if backend == "osmesa":
            from mujoco.osmesa import GLContext
        elif backend == "glfw":
            from mujoco.glfw import GLContext
        else:
            from mujoco.egl import GLContext
        return GLContext(size, size)
    except Exception as error:  # PyOpenGL raises a different class for each thing that can be missing.
        raise SimulatorError(f"The OpenGL back end {backend!r} cannot be used: {error}.", GL_HINT) from error


def merge_detail(model: mujoco.MjModel, cell: float) -> mujoco.MjModel:
    """A copy of a model with fewer triangles, to draw from; software GL takes time in proportion to them.

    The vertices of a mesh that lie in one cube of a grid move to their mean, and triangles that collapse or coincide
    go (vertex clustering: Rossignac and Borrel, 1993). Remaining corners keep their normals and texture coordinates.
    Of a sheet so thin that its two sides fall together, one side stays. LIBERO's bowl alone has 42,522 triangles.

    Args:
        model: The model; it is left as it is, and physics must go on using it.
        cell: Side of a cube in meters.
    """
    drawn = copy.copy(model)
    for mesh in range(model.nmesh):
        first, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
        start = int(model.mesh_vertadr[mesh])
        vertices = slice(start, start + int(model.mesh_vertnum[mesh]))
        positions = model.mesh_vert[vertices].astype(np.float64)
        cube = np.floor((positions - positions.min(axis=0)) / cell).astype(np.int64)
        cluster = np.unique(np.ravel_multi_index(cube.T, cube.max(axis=0) + 1), return_inverse=True)[1].reshape(-1)
        size = np.bincount(cluster)
        mean = np.stack([np.bincount(cluster, column) / size for column in positions.T], axis=1)
        drawn.mesh_vert[vertices] = mean[cluster]
        corners = np.sort(cluster[model.mesh_face[first : first + count]], axis=1)
        collapsed = (corners[:, 0] == corners[:, 1]) | (corners[:, 1] == corners[:, 2])
        kept = np.sort(np.unique(np.ravel_multi_index(corners.T, (len(size),) * 3), return_index=True)[1])
        kept = kept[~collapsed[kept]]
        for table in ("mesh_face", "mesh_facenormal", "mesh_facetexcoord"):
            getattr(drawn, table)[first : first + len(kept)] = getattr(model, table)[first + kept]
        drawn.mesh_facenum[mesh] = len(kept)
    return drawn


def geoms_in_view(model: mujoco.MjModel, data: mujoco.MjData, camera: int, mirrors: Sequence[int]) -> NDArray[np.bool_]:
    """Which geoms a square picture may show, directly or in a mirror; software GL takes time for the others too.

    A geom is out of view if all corners of its bounding box lie beyond one side of the camera's pyramid, and so do
    their images in every mirror, seen through the mirror's surface.

    Args:
        model: The model.
        data: The state.
        camera: Index of a camera.
        mirrors: Indices of reflecting planes and boxes, which MuJoCo lets reflect with their upper side.

    Returns:
        (ngeom,) bool; True for planes, which are infinite.
    """
    center, half = model.geom_aabb[:, :3], model.geom_aabb[:, 3:]
    corners = center[:, None] + half[:, None] * _CORNERS
    axes = data.geom_xmat.reshape(-1, 3, 3)
    corners = data.geom_xpos[:, None] + np.einsum("gij,gcj->gci", axes, corners)
    origin, turn = data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3)
    reach = float(np.tan(np.deg2rad(model.cam_fovy[camera]) / 2.0))
    whole = np.array([[-reach, -reach], [reach, reach]])
    seen = _in_pyramid((corners - origin) @ turn, whole)
    for mirror in mirrors:
        normal, size = axes[mirror, :, 2], model.geom_size[mirror]
        box = model.geom_type[mirror] == mujoco.mjtGeom.mjGEOM_BOX
        surface = data.geom_xpos[mirror] + (size[2] if box else 0.0) * normal
        window = whole
        if box:
            rim = surface + (_CORNERS[::2] * [size[0], size[1], 0.0]) @ axes[mirror].T
            window = _window((rim - origin) @ turn, whole)
        depth = (corners - surface) @ normal
        seen |= _in_pyramid((corners - 2.0 * depth[..., None] * normal - origin) @ turn, window)
    return np.asarray(seen | (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE))


def _in_pyramid(corners: NDArray[np.float64], window: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which boxes, (n, 8, 3) in a camera's frame, may show in a window ((x, y) low, (x, y) high) at depth 1."""
    # A camera looks along -z.
    depth = -corners[..., 2:]
    low, high = window
    below = (corners[..., :2] < low * depth).all(axis=1).any(axis=-1)
    above = (corners[..., :2] > high * depth).all(axis=1).any(axis=-1)
    outside: NDArray[np.bool_] = below | above | (depth[..., 0] < 0).all(axis=1)
    return ~outside


def _window(rim: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a picture's window in which a surface with these corners, (n, 3) in the camera's frame, may show."""
    depth = -rim[:, 2:]
    if (depth <= 0).any():
        return whole
    points = rim[:, :2] / depth
    part: NDArray[np.float64] = np.clip([points.min(axis=0), points.max(axis=0)], whole[0], whole[1])
    return part


class Renderer:
    """Draws cameras of one scene. The GL context is made on first use, in the process that uses it.

    Args:
        scene: The compiled scene.
        size: Height and width of the pictures in pixels.
        profile: One of ``RENDER_PROFILES``.
    """

    _gl: Any = None  # One GL context a process: a second one silently breaks the first.

    def __init__(self, scene: Scene, size: int, profile: RenderProfile = "fast") -> None:
        if profile not in RENDER_PROFILES:
            raise UnknownNameError("render profile", profile, RENDER_PROFILES)
        self._scene = scene
        self._size = size
        self._profile = profile
        self._context: Any = None

    def _open(self) -> None:
        model = self._scene.model
        if Renderer._gl is None:
            Renderer._gl = _open_gl(self._size)
        Renderer._gl.make_current()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self._size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self._size)
        drawn = merge_detail(model, _COARSE_CELL) if self._profile == "coarse" else model
        samples = drawn.vis.quality.offsamples
        if self._profile != "reference":
            drawn.vis.quality.offsamples = 0
        self._context = mujoco.MjrContext(drawn, mujoco.mjtFontScale.mjFONTSCALE_150)
        # The model is shared; another renderer may want its samples.
        drawn.vis.quality.offsamples = samples
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._visual = mujoco.MjvScene(model, maxgeom=10_000)
        if self._profile != "reference":
            self._visual.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._options.geomgroup[_OUT_OF_VIEW] = 0
        material = model.geom_matid
        reflects = (material >= 0) & (model.mat_reflectance[material] > 0) & (model.geom_group != 0)
        flat = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
        self._mirrors = np.flatnonzero(reflects & flat).tolist() if self._profile == "reference" else []
        # What throws a shadow may be out of view. LIBERO's lights throw none.
        self._can_hide = self._profile != "reference" or not model.light_castshadow.any()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, self._size, self._size)

    def camera_id(self, name: str) -> int:
        """Index of a camera.

        Raises:
            UnknownNameError: The scene has no such camera.
        """
        model = self._scene.model
        found = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if found < 0:
            raise UnknownNameError("camera", name, [model.camera(i).name for i in range(model.ncam)])
        return int(found)

    def render(self, data: mujoco.MjData, camera: str, appearance: Appearance | None = None) -> NDArray[np.uint8]:
        """Picture of one camera, upright.

        Args:
            data: State of one world of the scene.
            camera: Name of a camera of the model, for example ``"agentview"``.
            appearance: What this picture shows otherwise than the model has it.

        Returns:
            (size, size, 3) uint8 RGB; equal to ``obs["agentview_image"][::-1]`` of LIBERO for the reference profile.
        """
        identifier = self.camera_id(camera)
        if self._context is None:
            self._open()
        Renderer._gl.make_current()
        self._scene.show_burners(data)
        self._camera.fixedcamid = identifier
        if appearance is None:
            self._draw(data, shadows=False)
        else:
            with appearance.shown(self._scene.model, data):
                self._draw(data, appearance.shadows)
        picture = np.empty((self._size, self._size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._context)
        return picture[::-1]

    def _draw(self, data: mujoco.MjData, shadows: bool) -> None:
        model = self._scene.model
        groups = model.geom_group.copy()
        try:
            if self._can_hide and not shadows:
                model.geom_group[~geoms_in_view(model, data, self._camera.fixedcamid, self._mirrors)] = _OUT_OF_VIEW
            everything = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(model, data, self._options, None, self._camera, everything, self._visual)
        finally:
            model.geom_group[:] = groups
        if self._profile != "reference":
            # No light of LIBERO's scenes casts a shadow; this only skips the empty pass.
            self._visual.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjr_render(self._viewport, self._visual, self._context)
