"""Vision-language-action models: architecture, action tokens, image processing, loading, LoRA.

Importing this package does not load torch; the names below load what they need.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlacoach.policies.checkpoint import load_policy
    from vlacoach.policies.log_prob import action_log_prob
    from vlacoach.policies.openvla import OpenVLAOptions
    from vlacoach.policies.policy import VLAPolicy
    from vlacoach.policies.sampling import ActionSample
    from vlacoach.policies.tiny import new_tiny_policy

__all__ = ["ActionSample", "OpenVLAOptions", "VLAPolicy", "action_log_prob", "load_policy", "new_tiny_policy"]

# bitsandbytes, which peft imports where it is installed, warns of an optional kernel that is never called here, and, at
# every product, that LLM.int8() computes in float16.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# On a CPU, PyTorch and oneDNN each keep the kernels that they compiled for the last 1,024 shapes. Every update has
# mini-batches of lengths that no other had, so that these caches grow for hours, by 0.5 GB; 128 hold the shapes that do
# come again. Both are read at the first product, and whoever has set them decides.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "128")

_LAZY = {
    "ActionSample": "vlacoach.policies.sampling",
    "OpenVLAOptions": "vlacoach.policies.openvla",
    "VLAPolicy": "vlacoach.policies.policy",
    "action_log_prob": "vlacoach.policies.log_prob",
    "load_policy": "vlacoach.policies.checkpoint",
    "new_tiny_policy": "vlacoach.policies.tiny",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlacoach.policies' has no attribute {name!r}")
