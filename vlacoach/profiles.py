"""How pictures are rendered: the one word that environments, demonstrations, and policies must agree on."""

from __future__ import annotations

from typing import Literal

RenderProfile = Literal["coarse", "fast", "reference"]

RENDER_PROFILES: tuple[RenderProfile, ...] = ("coarse", "fast", "reference")
"""``reference`` is the picture of LIBERO's ``OffScreenRenderEnv``; ``fast`` has no reflections and no multisampling;
``coarse`` is ``fast`` with detail of a few millimeters left out, for policies that learn on such pictures."""
