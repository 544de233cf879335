"""Experts for libero_spatial: the same bowl goes on the same plate, from ten places."""

from __future__ import annotations

from vlacoach.envs.experts.goal import BOWL, PLATE, at
from vlacoach.envs.experts.motion import DOWN, Hand, Scene, Steps
from vlacoach.envs.experts.skills import Grip, Route, pick_and_place


def bowl_on_plate(scene: Scene) -> Steps:
    """Put the bowl on the plate, over whatever stands between them."""
    bowl, plate = scene.body_position(BOWL), scene.body_position(PLATE)
    target = at(plate, z=0.004)
    grip = Grip(BOWL, offset=(0.0, 0.052, 0.025), clearance=0.15, close_below=0.03)
    height = max(bowl[2] + 0.06, target[2] + 0.09)
    return pick_and_place(Hand(scene, DOWN), grip, Route(target, height=height, standoff=0.5))


IN_DRAWER = 4
"""The task whose bowl lies in the drawer, where this grasp has no room; it has no expert."""

EXPERTS = {task: bowl_on_plate for task in range(10) if task != IN_DRAWER}
"""Task index in libero_spatial to its expert."""
