"""What the attributes of a LIBERO HDF5 file tell of its episodes."""

from __future__ import annotations

import json
from typing import Any

from vlacoach.profiles import RenderProfile


def instruction_of(data: Any, task: str) -> str:
    """What the robot was told, in lower case, by the group ``data``; else the name of the task in words."""
    if "problem_info" not in data.attrs:
        return task.replace("_", " ")
    instruction = json.loads(data.attrs["problem_info"])["language_instruction"]
    # LIBERO's files hold a string or a list of its parts, sometimes with quotation marks around it.
    return "".join(instruction).strip().strip('"').lower()


def render_profile_of(data: Any) -> RenderProfile:
    """How the pictures in the group ``data`` were rendered."""
    # LIBERO's own files do not say; their pictures are its environment's.
    profile: RenderProfile = data.attrs.get("render_profile", "reference")
    return profile
