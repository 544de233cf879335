"""Leaving out detail: what it may change in a picture, and what it must leave alone."""

import mujoco
import numpy as np
import pytest

from vlacoach.envs import rendering
from vlacoach.envs.rendering import find_gl_backend, geoms_in_view, merge_detail, select_gl_backend
from vlacoach.envs.simulator import Simulator

CELL = 0.004


def relief(points: int, spacing: float) -> mujoco.MjModel:
    """A square of points x points vertices with a bump, over a tip that gives it a volume."""
    x, y = np.meshgrid(np.arange(points) * spacing, np.arange(points) * spacing, indexing="ij")
    height = 0.3 * spacing * np.sin(x / spacing) * np.cos(y / spacing) + 0.05
    vertices = np.concatenate([np.stack([x, y, height], axis=-1).reshape(-1, 3), [[0.0, 0.0, 0.0]]])
    corner = np.arange(points * points).reshape(points, points)
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    faces = np.concatenate([faces, [[points * points, corner[0, 0], corner[-1, -1]]]])
    text = (" ".join(str(value) for value in values.reshape(-1)) for values in (vertices, faces))
    return mujoco.MjModel.from_xml_string(
        '<mujoco><asset><mesh name="relief" inertia="shell" vertex="{}" face="{}"/></asset>'
        '<worldbody><geom type="mesh" mesh="relief"/></worldbody></mujoco>'.format(*text)
    )


def triangles(model: mujoco.MjModel, mesh: int = 0) -> np.ndarray:
    """(F, 3, 3) corners."""
    first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    return model.mesh_vert[model.mesh_vertadr[mesh] + model.mesh_face[first : first + count]]


def test_merging_leaves_out_what_is_smaller_than_a_cell_and_nothing_else():
    model = relief(points=33, spacing=0.001)
    before = triangles(model).copy()
    drawn = merge_detail(model, CELL)
    np.testing.assert_array_equal(triangles(model), before)  # physics keeps its mesh
    after = triangles(drawn)
    # 33 mm are 8 or 9 cells: of 2,049 triangles about two a cell stay.
    assert 100 < len(after) < 300
    sides = np.linalg.norm(after - np.roll(after, 1, axis=1), axis=-1)
    assert sides.min() > 0
    moved = np.linalg.norm(drawn.mesh_vert - model.mesh_vert, axis=1)
    assert 0 < moved.max() <= CELL * np.sqrt(3)
    corners = {tuple(sorted(map(tuple, triangle.tolist()))) for triangle in after}
    assert len(corners) == len(after)


def test_a_mesh_of_large_triangles_stays_as_it_is():
    model = relief(points=5, spacing=0.02)
    drawn = merge_detail(model, CELL)
    np.testing.assert_allclose(triangles(drawn), triangles(model), atol=1e-7)


@pytest.mark.sim
def test_coarse_pictures_look_alike_and_the_world_moves_the_same():
    select_gl_backend(find_gl_backend())
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 7))
    pictures, states, counts = [], [], []
    for profile in ("fast", "coarse"):
        simulator = Simulator("libero_goal", image_size=128, render_profile=profile)
        simulator.reset(0, task=8, init_state=0)
        for action in actions:
            simulator.step(0, action)
        pictures.append(simulator.render(0)["agentview"].astype(int))
        states.append(simulator.state(0))
        model = simulator.view(0).model
        counts.append(int((merge_detail(model, CELL) if profile == "coarse" else model).mesh_facenum.sum()))
    np.testing.assert_array_equal(states[0], states[1])
    assert counts[1] < 0.5 * counts[0]
    difference = np.abs(pictures[0] - pictures[1])
    assert 0 < difference.mean() < 1.5
    assert (difference.max(axis=-1) > 8).mean() < 0.04


def test_geoms_beyond_the_pyramid_are_out_of_view_unless_a_mirror_shows_them():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody>
        <camera name="down" pos="0 0 1" xyaxes="0 -1 0 0.5 0 0.8660254" fovy="60"/>
        <geom name="mirror" type="box" size=".5 .5 .1" pos="3 0 0.1"/>
        <geom name="in" type="box" size=".1 .1 .1" pos="2 0 .2"/>
        <geom name="edge" type="box" size=".1 .1 .1" pos="2 1.3 .2"/>
        <geom name="left" type="box" size=".1 .1 .1" pos="2 1.5 .2"/>
        <geom name="turned" type="box" size=".1 .4 .1" pos="2 1.5 .2" euler="0 0 45"/>
        <geom name="behind" type="box" size=".1 .1 .1" pos="-2 0 .2"/>
        <geom name="above" type="box" size=".1 .1 .1" pos="7.1 0 1.3"/>
        <geom name="floor" type="plane" size="1 1 .1" pos="-9 0 0"/>
        </worldbody></mujoco>"""
    )
    data = mujoco.MjData(model)
    mirror = model.geom("mirror").id

    def shown(mirrors):
        mujoco.mj_forward(model, data)
        seen = geoms_in_view(model, data, model.camera("down").id, mirrors)
        return {model.geom(i).name for i in np.flatnonzero(seen)}

    # The camera looks 30 degrees down and sees 30 to each side: nothing above its own height, and near x = 2 about
    # 1.2 m to the left.
    directly = {"mirror", "in", "edge", "turned", "floor"}
    assert shown([]) == directly
    # The image of what hangs at 1.3 m is 0.9 m below the floor, and on the way from there to the eye, at 3 m, is the
    # mirror.
    assert shown([mirror]) == {*directly, "above"}
    model.geom("mirror").pos[0] = 4.0
    assert shown([mirror]) == directly
    model.geom("mirror").pos[:2] = 3.0, 0.6
    assert shown([mirror]) == directly


@pytest.mark.sim
@pytest.mark.parametrize("profile", ["reference", "fast"])
def test_leaving_out_what_is_out_of_view_changes_no_pixel(profile, monkeypatch):
    select_gl_backend(find_gl_backend())
    cameras = ("agentview", "robot0_eye_in_hand")
    simulator = Simulator("libero_goal", cameras=cameras, image_size=96, render_profile=profile)
    simulator.reset(0, task=8, init_state=0)
    rng = np.random.default_rng(0)
    hidden = []
    for _ in range(3):
        for action in rng.uniform(-1, 1, (6, 7)):
            simulator.step(0, action)
        model, data = simulator.view(0).model, simulator.view(0).data
        groups = model.geom_group.copy()
        drawn = simulator.render(0)
        np.testing.assert_array_equal(model.geom_group, groups)
        with monkeypatch.context() as patch:
            patch.setattr(rendering, "geoms_in_view", lambda model, *_: np.ones(model.ngeom, dtype=bool))
            everything = simulator.render(0)
        for camera in cameras:
            np.testing.assert_array_equal(drawn[camera], everything[camera])
            out = ~geoms_in_view(model, data, model.camera(camera).id, [])
            hidden.append(model.mesh_facenum[model.geom_dataid[out & (model.geom_type == 7)]].sum())
    assert min(hidden) > 10_000
