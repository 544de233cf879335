"""Scripted experts: solve LIBERO tasks from privileged state, with actions that are clean enough to imitate."""

from vlacoach.envs.experts.rollout import ExpertEpisode, get_expert, get_experts, run_expert

__all__ = ["ExpertEpisode", "get_expert", "get_experts", "run_expert"]
