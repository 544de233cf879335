"""LIBERO's goal predicates, as plain data, and compiled to functions of the simulation's state.

A goal is a conjunction of predicates such as ``On(bowl, plate)``. Definitions and constants are LIBERO's own
(``libero/envs/object_states`` and ``site_object``). ``describe_goal`` resolves names to indices of one MuJoCo model,
which needs LIBERO's environment and can be stored; ``compile_goal`` needs nothing but the result, and what it returns
costs microseconds and works on any ``MjData`` of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np

from vlacoach.errors import SimulatorError

Predicate = Callable[[Any], bool]
"""Takes an ``mujoco.MjData``; whether the predicate holds in it."""

Term = dict[str, Any]
"""One predicate as JSON values: its ``kind``, and indices and numbers by name."""

_JOINT_TESTS = {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}


def describe_goal(env: Any, model: mujoco.MjModel, goal: Sequence[Sequence[str]]) -> list[Term]:
    """A goal with its names resolved to indices.

    Args:
        env: LIBERO's inner environment (it knows the objects' geoms, sites, and joint ranges).
        model: The compiled model the goal will be evaluated on.
        goal: Parsed goal, for example ``[["on", "akita_black_bowl_1", "plate_1"]]``.

    Returns:
        What :func:`compile_goal` takes.

    Raises:
        SimulatorError: A predicate that LIBERO does not define.
    """
    return [_describe(env, model, *state) for state in goal]


def compile_goal(terms: Sequence[Term]) -> Predicate:
    """Compile a described goal to a function that says whether every predicate holds in an ``mujoco.MjData``."""
    predicates = [_KINDS[term["kind"]](term) for term in terms]
    return lambda data: all(predicate(data) for predicate in predicates)


def _describe(env: Any, model: mujoco.MjModel, name: str, *arguments: str) -> Term:
    states = [env.object_states_dict[argument] for argument in arguments]
    kind = name.lower()
    if kind == "on":
        lower_is_site = states[1].object_state_type == "site"
        return _describe_on_site(env, model, *states) if lower_is_site else _describe_on(env, model, *states)
    if kind == "in" and states[1].object_state_type == "site":
        site = env.object_sites_dict[states[1].object_name]
        return {
            "kind": "in_site",
            "site": int(model.site(states[1].object_name).id),
            "body": int(env.obj_body_id[states[0].object_name]),
            "size": [float(value) for value in site.size],
        }
    if kind == "up":
        return {"kind": "up", "body": int(env.obj_body_id[arguments[0]])}
    if kind in _JOINT_TESTS:
        return _describe_joint(env, model, kind, states[0])
    raise SimulatorError(f"Goal predicate {name} of {', '.join(arguments)} is not one that LIBERO defines.")


def _geoms(model: mujoco.MjModel, thing: Any) -> list[int]:
    return [int(model.geom(name).id) for name in thing.contact_geoms]


def _describe_on(env: Any, model: mujoco.MjModel, upper: Any, lower: Any) -> Term:
    return {
        "kind": "on",
        "top": int(env.obj_body_id[upper.object_name]),
        "base": int(env.obj_body_id[lower.object_name]),
        "touch": [_geoms(model, env.get_object(thing.object_name)) for thing in (lower, upper)],
    }


def _describe_on_site(env: Any, model: mujoco.MjModel, upper: Any, lower: Any) -> Term:
    site = env.object_sites_dict[lower.object_name]
    if not hasattr(site, "under"):
        return {"kind": "always"}
    parent = env.get_object(lower.parent_name)
    things = None if parent is None else (parent, env.get_object(upper.object_name))
    return {
        "kind": "on_site",
        "site": int(model.site(lower.object_name).id),
        "body": int(env.obj_body_id[upper.object_name]),
        "size": [float(value) for value in site.size],
        "touch": things and [_geoms(model, thing) for thing in things],
    }


def _describe_joint(env: Any, model: mujoco.MjModel, kind: str, state: Any) -> Term:
    if state.object_state_type == "site":
        joints = env.object_sites_dict[state.object_name].joints
        owner = env.get_object(state.parent_name)
    else:
        owner = env.get_object(state.object_name)
        joints = owner.joints
    step, below = _step(getattr(owner, _JOINT_TESTS[kind]))
    return {
        "kind": "joint",
        "addresses": [int(model.joint(name).qposadr[0]) for name in joints],
        "step": step,
        "below": below,
        # LIBERO's own asymmetry: one joint is enough to be open or on, all are needed to be closed or off.
        "one_is_enough": kind in {"open", "turnon"},
    }


def _step(test: Callable[[float], bool], reach: float = 100.0) -> tuple[float, bool]:
    """Where a joint's test changes: the first position at which it no longer says what it says below.

    LIBERO's tests compare the position with one end of a range, each class of object with another end and in another
    direction. Bisection down to neighboring floats finds the same step for all of them.
    """
    low, high = -reach, reach
    below = bool(test(low))
    if bool(test(high)) == below:
        raise SimulatorError("A joint of LIBERO's is open, closed, on, or off wherever it stands.")
    while np.nextafter(low, high) < high:
        middle = low + (high - low) / 2
        if middle in (low, high):
            middle = float(np.nextafter(low, high))
        low, high = (middle, high) if bool(test(middle)) == below else (low, middle)
    return high, below


def _always(term: Term) -> Predicate:
    return lambda data: True


def _up(term: Term) -> Predicate:
    body = term["body"]
    return lambda data: bool(data.xpos[body, 2] >= 1.0)


def _touching(touch: Sequence[Sequence[int]]) -> Predicate:
    """Whether any geom of one set touches one of the other."""
    size = 1 + max(max(geoms, default=0) for geoms in touch)
    a, b = (np.isin(np.arange(size + 1), geoms) for geoms in touch)

    def touches(data: Any) -> bool:
        pairs = np.minimum(data.contact.geom, size)
        g, h = pairs[:, 0], pairs[:, 1]
        return bool(np.any((a[g] & b[h]) | (a[h] & b[g])))

    return touches


def _on(term: Term) -> Predicate:
    top, base, touches = term["top"], term["base"], _touching(term["touch"])

    def on(data: Any) -> bool:
        low, high = data.xpos[base], data.xpos[top]
        return bool(low[2] <= high[2] and np.hypot(*(low[:2] - high[:2])) < 0.03) and touches(data)

    return on


def _on_site(term: Term) -> Predicate:
    site, body, size = term["site"], term["body"], np.array(term["size"])
    touches = None if term["touch"] is None else _touching(term["touch"])

    def on(data: Any) -> bool:
        delta = data.site_xmat[site].reshape(3, 3) @ (data.xpos[body] - data.site_xpos[site])
        above = bool(size[2] - 0.005 < delta[2] < size[2] + 0.10 and np.all(np.abs(delta[:2]) < size[:2]))
        return above and (touches is None or touches(data))

    return on


def _in_site(term: Term) -> Predicate:
    site, body, size = term["site"], term["body"], np.array(term["size"])

    def inside(data: Any) -> bool:
        reach = np.abs(data.site_xmat[site].reshape(3, 3) @ size)
        offset = data.xpos[body] - data.site_xpos[site]
        lowest = -reach - np.array([0.0, 0.0, 0.01])
        return bool(np.all(offset > lowest) and np.all(offset < reach))

    return inside


def _joint(term: Term) -> Predicate:
    addresses, step, below = term["addresses"], term["step"], term["below"]
    combine = any if term["one_is_enough"] else all
    return lambda data: combine((data.qpos[address] < step) == below for address in addresses)


_KINDS: dict[str, Callable[[Term], Predicate]] = {
    "always": _always,
    "up": _up,
    "on": _on,
    "on_site": _on_site,
    "in_site": _in_site,
    "joint": _joint,
}
