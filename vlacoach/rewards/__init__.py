"""Trajectory scorers: the self-referential rule, SigLIP and SigLIP-T embeddings, and the registry of scorers.

Importing this package loads no torch; the names below load what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlacoach.rewards.bank import ReferenceBank
    from vlacoach.rewards.metrics import auroc, spearman
    from vlacoach.rewards.registry import available_scorers, load_scorer, make_scorer, register_scorer
    from vlacoach.rewards.scorers import Scorer, SuccessScorer
    from vlacoach.rewards.self_referential import (
        RewardRule,
        SelfReferentialDetails,
        self_referential_details,
        self_referential_reward,
    )
    from vlacoach.rewards.siglip import SiglipScorer
    from vlacoach.rewards.siglip_t import SiglipTScorer
    from vlacoach.rewards.temporal import TemporalFusion, sinusoidal
    from vlacoach.rewards.trajectory import Trajectory
    from vlacoach.rewards.v_jepa import VJepaScorer
    from vlacoach.rewards.wrapper import SelfReferentialReward

__all__ = [
    "ReferenceBank",
    "RewardRule",
    "Scorer",
    "SelfReferentialDetails",
    "SelfReferentialReward",
    "SiglipScorer",
    "SiglipTScorer",
    "SuccessScorer",
    "TemporalFusion",
    "Trajectory",
    "VJepaScorer",
    "auroc",
    "available_scorers",
    "load_scorer",
    "make_scorer",
    "register_scorer",
    "self_referential_details",
    "self_referential_reward",
    "sinusoidal",
    "spearman",
]

_MODULES = {
    "bank": ("ReferenceBank",),
    "metrics": ("auroc", "spearman"),
    "registry": ("available_scorers", "load_scorer", "make_scorer", "register_scorer"),
    "scorers": ("Scorer", "SuccessScorer"),
    "siglip": ("SiglipScorer",),
    "self_referential": (
        "RewardRule",
        "SelfReferentialDetails",
        "self_referential_details",
        "self_referential_reward",
    ),
    "siglip_t": ("SiglipTScorer",),
    "temporal": ("TemporalFusion", "sinusoidal"),
    "trajectory": ("Trajectory",),
    "v_jepa": ("VJepaScorer",),
    "wrapper": ("SelfReferentialReward",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
