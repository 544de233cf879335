"""Experts for the ten tasks of libero_goal."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from vlacoach.envs.experts.motion import CLOSE, DOWN, OPEN, Hand, Scene, Steps, Vector, funnel, hold, reach, rise
from vlacoach.envs.experts.skills import Grip, Route, let_go, pick_and_place, touched_by_fingers

BOWL = "akita_black_bowl_1_main"
PLATE = "plate_1_main"
CHEESE = "cream_cheese_1_main"
BOTTLE = "wine_bottle_1_main"

BOWL_RIM = Grip(BOWL, offset=(0.0, 0.052, 0.025), close_below=0.03)
"""The bowl is held by its rim: 0.040 m above its body the fingers slip, below 0.015 m they tilt it."""


def at(position: Vector, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Vector:
    """``position`` (3,) moved by ``x``, ``y``, ``z`` m."""
    moved: Vector = position + np.array([x, y, z])
    return moved


def bowl_on_plate(scene: Scene) -> Steps:
    """Put the bowl on the plate."""
    target = at(scene.body_position(PLATE), z=0.004)
    return pick_and_place(Hand(scene, DOWN), BOWL_RIM, Route(target, height=target[2] + 0.045, standoff=0.14))


def bowl_on_stove(scene: Scene) -> Steps:
    """Put the bowl on the stove, on the near side of the burner."""
    target = at(scene.site_position("flat_stove_1_cook_region"), x=0.03, y=-0.035, z=0.027)
    return pick_and_place(Hand(scene, DOWN), BOWL_RIM, Route(target, height=target[2] + 0.03, standoff=0.19))


def bowl_on_cabinet(scene: Scene) -> Steps:
    """Put the bowl on top of the cabinet, near its front."""
    target = at(scene.site_position("wooden_cabinet_1_top_side"), x=-0.04, y=0.04, z=0.004)
    return pick_and_place(Hand(scene, DOWN), BOWL_RIM, Route(target, height=target[2] + 0.03, standoff=0.16))


def cheese_in_bowl(scene: Scene) -> Steps:
    """Put the cream cheese in the bowl."""
    target = at(scene.body_position(BOWL), z=0.05)
    grip = Grip(CHEESE, offset=(0.0, 0.0, 0.003), close_below=0.02)
    return pick_and_place(Hand(scene, DOWN), grip, Route(target, height=target[2] + 0.03, standoff=0.11))


BOTTLE_NECK = Grip(BOTTLE, offset=(0.0, 0.0, 0.115), clearance=0.12, close_below=0.02)


def bottle_on_cabinet(scene: Scene) -> Steps:
    """Put the wine bottle on top of the cabinet."""
    target = at(scene.site_position("wooden_cabinet_1_top_side"), x=-0.05, y=0.03, z=0.004)
    return pick_and_place(Hand(scene, DOWN), BOTTLE_NECK, Route(target, height=target[2] + 0.03, standoff=0.35))


def bottle_on_rack(scene: Scene) -> Steps:
    """Put the wine bottle on the rack."""
    target = at(scene.site_position("wine_rack_1_top_region"), z=0.01)
    return pick_and_place(Hand(scene, DOWN), BOTTLE_NECK, Route(target, height=target[2] + 0.05, standoff=0.10))


def push_plate(scene: Scene) -> Steps:
    """Push the plate to the front of the stove: closed fingertips press on it and drag it along."""
    hand = Hand(scene, DOWN)
    region = scene.site_position("main_table_stove_front_region")
    while True:
        plate = scene.body_position(PLATE)
        way = region[:2] - plate[:2]
        ahead = 0.02 * way / max(float(np.linalg.norm(way)), 1e-6)
        contact = at(plate, ahead[0], ahead[1], 0.012)
        if np.linalg.norm((contact - hand.position)[:2]) > 0.03 or hand.position[2] > plate[2] + 0.03:
            yield hand.toward(funnel(contact, hand.position, 0.08), CLOSE)
        else:
            yield hand.toward(np.array([*(hand.position[:2] + way), plate[2] + 0.002]), CLOSE)


def turn_on_stove(scene: Scene) -> Steps:
    """Turn on the stove: closed fingertips sweep the knob's bar sideways."""
    # So close to the robot's base the arm is folded, and the hand turns away unless it is held.
    hand = Hand(scene, DOWN, turning=True)
    knob = scene.body_position("flat_stove_1_button")
    before, past, through = at(knob, 0.035, -0.05, 0.03), at(knob, 0.035, 0.03, 0.03), at(knob, 0.0, 0.06, 0.03)
    while True:
        yield from reach(hand, lambda: funnel(before, hand.position, 0.08), CLOSE, tolerance=0.01)
        yield from reach(hand, lambda: past, CLOSE, tolerance=0.012, steps=25)
        yield from reach(hand, lambda: through, CLOSE, tolerance=0.012, steps=25)
        yield from rise(hand, CLOSE, 0.1)


HANDLES = {"top": "wooden_cabinet_1_g18", "middle": "wooden_cabinet_1_g29"}
"""Geom of each drawer's handle bar."""

CABINET = "wooden_cabinet_1_main"
TOWARD_CABINET: Vector = Rotation.from_euler("x", -np.pi / 2).as_matrix() @ DOWN
"""Hand rotation that points along -y, at the drawers, with the fingers above and below the handle."""


def approach(hand: Hand, target: Vector) -> Steps:
    """Reach ``target`` (3,) m over the objects on the table."""
    yield from reach(
        hand, lambda: funnel(target, hand.position, 0.12, radius=0.04, slope=1.0), OPEN, tolerance=0.025, angle=0.15
    )


def pull_drawer(hand: Hand, drawer: str, pull: float) -> Steps:
    """Take a drawer's handle and pull it open by ``pull`` m."""
    scene = hand.scene

    def handle() -> Vector:
        return scene.geom_position(HANDLES[drawer])

    hand.turn(TOWARD_CABINET)
    opened = handle()[1] + pull
    while handle()[1] < opened:
        # Come down from above: the turned hand is as wide as it is long, and would sweep the bowl off the table.
        before = at(handle(), y=0.10)
        yield from approach(hand, before)
        yield from reach(hand, handle, OPEN, tolerance=0.012, steps=40)
        for _ in range(14):
            if touched_by_fingers(scene, CABINET) and scene.gripper_opening() < 0.03:
                break
            yield hand.toward(handle(), CLOSE)
        while handle()[1] < opened and np.linalg.norm(handle() - hand.position) < 0.03:
            yield hand.toward(at(handle(), y=0.10), CLOSE)
        if handle()[1] < opened:
            yield from let_go(hand, height=0.0)


def open_middle_drawer(scene: Scene) -> Steps:
    """Open the middle drawer of the cabinet."""
    return pull_drawer(Hand(scene, DOWN), "middle", pull=0.16)


def bowl_in_top_drawer(scene: Scene) -> Steps:
    """Open the top drawer and put the bowl inside."""
    hand = Hand(scene, DOWN)
    yield from pull_drawer(hand, "top", pull=0.12)
    yield from hold(hand, OPEN, 6)
    away = hand.position + np.array([-0.02, 0.08, 0.0])
    yield from reach(hand, lambda: away, OPEN, tolerance=0.02)
    hand.turn(Rotation.from_euler("z", np.pi / 2).as_matrix() @ DOWN)
    handle = scene.geom_position(HANDLES["top"])
    above = at(scene.body_position(BOWL), x=-0.06, y=0.05, z=0.2)
    yield from reach(hand, lambda: above, OPEN, tolerance=0.03, angle=0.2)
    grip = Grip(BOWL, offset=(-0.052, 0.0, 0.025), close_below=0.03)
    target = np.array([handle[0], handle[1] - 0.085, 1.075])
    yield from pick_and_place(hand, grip, Route(target, height=1.18, standoff=0.25))


EXPERTS = {
    0: open_middle_drawer,
    1: bowl_on_stove,
    2: bottle_on_cabinet,
    3: bowl_in_top_drawer,
    4: bowl_on_cabinet,
    5: push_plate,
    6: cheese_in_bowl,
    7: turn_on_stove,
    8: bowl_on_plate,
    9: bottle_on_rack,
}
"""Task index in libero_goal to its expert."""
