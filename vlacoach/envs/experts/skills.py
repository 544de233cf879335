"""Skills that scripted experts are made of: grasp an object, carry it to a place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlacoach.envs.experts.motion import CLOSE, OPEN, Hand, Scene, Steps, Vector, funnel, hold, rise

SQUEEZE_STEPS = 2
"""Steps for which a closed grip is tightened before the object is lifted; a thin rim slips without them."""

FINGERS = (
    ("gripper0_leftfinger", "gripper0_finger_joint1_tip"),
    ("gripper0_rightfinger", "gripper0_finger_joint2_tip"),
)
"""Bodies of each finger: its link and its tip."""

LOST_BEYOND = 0.03
"""Shift (m) of an object in the hand after which it counts as dropped. Contacts flicker, so they do not tell."""


def touched_by_fingers(scene: Scene, body: str) -> bool:
    """Whether both fingers touch the free body ``body`` (or a part of it)."""
    model, data = scene.model, scene.data
    pairs = model.geom_bodyid[data.contact.geom[: data.ncon]]  # (contacts, 2) bodies
    roots = model.body_rootid[pairs]
    touched = np.any(roots == model.body_rootid[model.body(body).id], axis=1)
    bodies = set(pairs[touched].ravel().tolist())
    return all(any(model.body(name).id in bodies for name in finger) for finger in FINGERS)


@dataclass(frozen=True)
class Grip:
    """How an object is taken.

    Args:
        body: MuJoCo body of the object.
        offset: Grip site relative to the body at the grasp (3,), m.
        clearance: Height (m) above the grasp from which the hand comes down.
        close_below: Height (m) above the grasp at which the fingers start to close; they need five steps to arrive.
        align: Horizontal error (m) above which they do not start to.
    """

    body: str
    offset: tuple[float, float, float]
    clearance: float = 0.10
    close_below: float = 0.0
    align: float = 0.01


def grasp(hand: Hand, grip: Grip, steps: int = 80) -> Steps:
    """Come down on the object, close, and end when both fingers hold it (or give up after ``steps`` steps)."""
    scene = hand.scene
    squeezed = 0
    closing = False
    for _ in range(steps):
        goal = scene.body_position(grip.body) + np.array(grip.offset)
        error = goal - hand.position
        away = float(np.linalg.norm(error[:2]))
        if away > 0.03:
            closing = False
        elif away < grip.align and -error[2] < max(grip.close_below, 0.006):
            closing = True
        if touched_by_fingers(scene, grip.body):
            squeezed += 1
            if squeezed > SQUEEZE_STEPS:
                return
        else:
            squeezed = 0
        yield hand.toward(funnel(goal, hand.position, grip.clearance), CLOSE if closing else OPEN)
        if closing and scene.gripper_opening() < 0.003:
            return


@dataclass(frozen=True)
class Route:
    """How a held object travels.

    Args:
        target: Where the object's body is to end (3,), m.
        height: Lowest height (m, world) of the body while it is on its way.
        standoff: Horizontal distance (m) from the target that the object may not enter below ``height``.
        release_height: Height (m) above the target at which it is let go.
    """

    target: Vector
    height: float
    standoff: float
    release_height: float = 0.006


def carry(hand: Hand, body: str, route: Route, steps: int = 120) -> Steps:
    """Bring the held object ``body`` over its target and lower it there; ends on arrival or when it was lost."""
    scene = hand.scene
    grip = scene.body_position(body) - hand.position
    for _ in range(steps):
        position = scene.body_position(body)
        if np.linalg.norm(position - hand.position - grip) > LOST_BEYOND:
            return
        goal = route.target.copy()
        away = position[:2] - goal[:2]
        distance = float(np.linalg.norm(away))
        if distance > 0.02:
            if position[2] < route.height - 0.02:
                goal[:2] += away * min(max(route.standoff / distance, 0.0), 1.0)
            goal[2] = max(route.height, goal[2])
        elif position[2] - goal[2] < route.release_height and distance < 0.015:
            return
        yield hand.toward(hand.position + goal - position, CLOSE)


def let_go(hand: Hand, height: float = 0.08) -> Steps:
    """Open the fingers, then raise the hand by ``height`` m."""
    yield from hold(hand, OPEN, 8)
    yield from rise(hand, OPEN, height)


def pick_and_place(hand: Hand, grip: Grip, route: Route) -> Steps:
    """Grasp, carry, and release for as long as the caller asks; an object that is dropped is picked up again."""
    while True:
        yield from grasp(hand, grip)
        if touched_by_fingers(hand.scene, grip.body):
            yield from carry(hand, grip.body, route)
        yield from let_go(hand)
