"""LIBERO's goal predicates, compiled against one MuJoCo model.

A goal is a conjunction of predicates such as ``On(bowl, plate)``. Definitions and constants are LIBERO's own
(``libero/envs/object_states`` and ``site_object``); names are resolved to indices once, so evaluating a goal costs
microseconds and works on any ``MjData`` of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np

from vlacoach.errors import SimulatorError

Predicate = Callable[[Any], bool]
"""Takes an ``mujoco.MjData``; whether the predicate holds in it."""


def compile_goal(env: Any, model: mujoco.MjModel, goal: Sequence[Sequence[str]]) -> Predicate:
    """Compile a goal to a function of the simulation's state.

    Args:
        env: LIBERO's inner environment (it knows the objects' geoms, sites, and joint ranges).
        model: The compiled model the goal is evaluated on.
        goal: Parsed goal, for example ``[["on", "akita_black_bowl_1", "plate_1"]]``.

    Returns:
        A function that takes an ``mujoco.MjData`` and says whether every predicate holds.

    Raises:
        SimulatorError: A predicate that LIBERO does not define.
    """
    predicates = [_compile(env, model, *state) for state in goal]
    return lambda data: all(predicate(data) for predicate in predicates)


def _compile(env: Any, model: mujoco.MjModel, name: str, *arguments: str) -> Predicate:
    states = [env.object_states_dict[argument] for argument in arguments]
    kind = name.lower()
    if kind == "on":
        return _on_site(env, model, *states) if states[1].object_state_type == "site" else _on(env, model, *states)
    if kind == "in":
        return _in(env, model, *states)
    if kind == "up":
        body = env.obj_body_id[arguments[0]]
        return lambda data: bool(data.xpos[body, 2] >= 1.0)
    if kind in {"open", "close", "turnon", "turnoff"}:
        return _joint(env, model, kind, states[0])
    raise SimulatorError(f"Goal predicate {name!r} is not one that LIBERO defines.")


def contact_between(env: Any, model: mujoco.MjModel, first: Any, second: Any) -> Predicate:
    """Whether any contact geom of one LIBERO object touches one of the other's."""
    a, b = (
        np.isin(np.arange(model.ngeom), [model.geom(name).id for name in thing.contact_geoms])
        for thing in (first, second)
    )

    def touches(data: Any) -> bool:
        pairs = data.contact.geom
        g, h = pairs[:, 0], pairs[:, 1]
        return bool(np.any((a[g] & b[h]) | (a[h] & b[g])))

    return touches


def _on(env: Any, model: mujoco.MjModel, upper: Any, lower: Any) -> Predicate:
    top, base = env.obj_body_id[upper.object_name], env.obj_body_id[lower.object_name]
    touches = contact_between(env, model, env.get_object(lower.object_name), env.get_object(upper.object_name))

    def on(data: Any) -> bool:
        low, high = data.xpos[base], data.xpos[top]
        return bool(low[2] <= high[2] and np.hypot(*(low[:2] - high[:2])) < 0.03) and touches(data)

    return on


def _on_site(env: Any, model: mujoco.MjModel, upper: Any, lower: Any) -> Predicate:
    site_object = env.object_sites_dict[lower.object_name]
    if not hasattr(site_object, "under"):
        return lambda data: True
    site, body = model.site(lower.object_name).id, env.obj_body_id[upper.object_name]
    size = np.asarray(site_object.size, dtype=np.float64)
    parent = env.get_object(lower.parent_name)
    thing = env.get_object(upper.object_name)
    touches = None if parent is None else contact_between(env, model, parent, thing)

    def on(data: Any) -> bool:
        delta = data.site_xmat[site].reshape(3, 3) @ (data.xpos[body] - data.site_xpos[site])
        above = bool(size[2] - 0.005 < delta[2] < size[2] + 0.10 and np.all(np.abs(delta[:2]) < size[:2]))
        return above and (touches is None or touches(data))

    return on


def _in(env: Any, model: mujoco.MjModel, inner: Any, outer: Any) -> Predicate:
    body = env.obj_body_id[inner.object_name]
    if outer.object_state_type != "site":
        container = env.get_object(outer.object_name)
        container_body = env.obj_body_id[outer.object_name]
        touches = contact_between(env, model, container, env.get_object(inner.object_name))
        return lambda data: touches(data) and bool(container.in_box(data.xpos[container_body], data.xpos[body]))
    site = model.site(outer.object_name).id
    size = np.asarray(env.object_sites_dict[outer.object_name].size, dtype=np.float64)

    def inside(data: Any) -> bool:
        reach = np.abs(data.site_xmat[site].reshape(3, 3) @ size)
        offset = data.xpos[body] - data.site_xpos[site]
        lowest = -reach - np.array([0.0, 0.0, 0.01])
        return bool(np.all(offset > lowest) and np.all(offset < reach))

    return inside


def _joint(env: Any, model: mujoco.MjModel, kind: str, state: Any) -> Predicate:
    if state.object_state_type == "site":
        joints = env.object_sites_dict[state.object_name].joints
        owner = env.get_object(state.parent_name)
    else:
        owner = env.get_object(state.object_name)
        joints = owner.joints
    addresses = [int(model.joint(name).qposadr[0]) for name in joints]
    test = getattr(owner, {"open": "is_open", "close": "is_close", "turnon": "turn_on", "turnoff": "turn_off"}[kind])
    # LIBERO's own asymmetry: one joint is enough to be open or on, all are needed to be closed or off.
    combine = any if kind in {"open", "turnon"} else all
    return lambda data: combine(bool(test(data.qpos[address])) for address in addresses)
