"""Experts for libero_object: one of several groceries goes into the basket."""

from __future__ import annotations

from vlacoach.envs.experts.goal import at
from vlacoach.envs.experts.motion import DOWN, Expert, Hand, Scene, Steps
from vlacoach.envs.experts.skills import Grip, Route, pick_and_place

OBJECTS = {
    "alphabet_soup": 0.005,
    "cream_cheese": 0.005,
    "salad_dressing": 0.042,
    "bbq_sauce": 0.005,
    "ketchup": 0.042,
    "tomato_sauce": 0.034,
    "butter": 0.005,
    "milk": 0.03,
    "chocolate_pudding": 0.005,
    "orange_juice": 0.028,
}
"""What each task puts into the basket, in the order of the tasks, and how far above its body it is taken (m).

The palm reaches tall objects before the fingers reach their middle.
"""


def into_basket(name: str, above: float) -> Expert:
    """Expert that takes the object ``name`` ``above`` m over its body and puts it into the basket."""

    def expert(scene: Scene) -> Steps:
        body = f"{name}_1_main"
        target = at(scene.site_position("basket_1_contain_region"), z=0.04)
        grip = Grip(body, offset=(0.0, 0.0, above), clearance=0.15, close_below=0.03, align=0.018)
        height = scene.body_position(body)[2] + 0.20
        return pick_and_place(Hand(scene, DOWN), grip, Route(target, height=height, standoff=0.5))

    expert.__doc__ = f"Put the {name.replace('_', ' ')} in the basket."
    return expert


EXPERTS = {task: into_basket(name, above) for task, (name, above) in enumerate(OBJECTS.items())}
"""Task index in libero_object to its expert."""
