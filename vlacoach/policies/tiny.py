"""The built-in small policy: the same class as the 7 B models, sized for two CPU cores."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vlacoach.policies import tokenizer as tokenizers
from vlacoach.policies.configuration import LanguageConfig, VisionConfig, VLAConfig
from vlacoach.policies.modeling import PrismaticVLA
from vlacoach.policies.policy import Precision, VLAPolicy
from vlacoach.policies.statistics import DatasetStatistics

ASSETS = Path(__file__).parent / "assets" / "tiny"
"""Where the tokenizer and the trained weights are."""

# Reach of the LIBERO arm: end effector position (m), its axis-angle (rad), the two finger joints (m). Fixed ranges
# instead of one data set's quantiles, because the policy is cloned on several suites.
_PROPRIO_LOW = (-0.35, -0.40, 0.0, -3.6, -3.6, -1.6, 0.0, -0.042)
_PROPRIO_HIGH = (0.35, 0.40, 1.40, 3.6, 3.6, 1.6, 0.042, 0.0)


def tiny_config(vocab_size: int) -> VLAConfig:
    """Configuration of the small policy.

    Args:
        vocab_size: Entries of its tokenizer, the action ids included.

    Returns:
        4.3 M parameters with a vocabulary of 349 entries: 128-pixel images, 64 patches, 16 visual tokens.
    """
    return VLAConfig(
        vision=VisionConfig(
            image_size=128, patch_size=16, hidden_size=192, num_layers=4, num_heads=3, mlp_size=512, feature_layer=-1
        ),
        language=LanguageConfig(vocab_size=vocab_size, hidden_size=192, num_layers=4, num_heads=3, mlp_size=512),
        proprio_dim=8,
        proprio_frequencies=4,
        first_action_id=vocab_size - 256,
        placeholder="learned",
        action_context=True,
        context_size=192,
        patch_merge=2,
        projector_norm=True,
        gripper="env",
        prompt="{instruction}",
    )


def new_tiny_policy(seed: int = 0, precision: Precision = "fp32") -> VLAPolicy:
    """The small policy with fresh weights, every parameter trainable.

    Args:
        seed: Of the weights; torch's global random state is left as it was.
        precision: See :class:`VLAPolicy`.

    Returns:
        The policy, in evaluation mode.
    """
    words = tokenizers.load_tokenizer(ASSETS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PrismaticVLA(tiny_config(len(words)))
        _scale_embeddings(model)
    return VLAPolicy(model, words, tiny_statistics(), "tiny", precision)


def tiny_statistics() -> DatasetStatistics:
    """Statistics of the small policy: actions are the environment's own, already in [-1, 1]."""
    ones = torch.ones(7, dtype=torch.float64)
    return DatasetStatistics(
        name="libero",
        action_low=-ones,
        action_high=ones,
        action_mask=torch.zeros(7, dtype=torch.bool),
        proprio_low=torch.tensor(_PROPRIO_LOW, dtype=torch.float64),
        proprio_high=torch.tensor(_PROPRIO_HIGH, dtype=torch.float64),
    )


def _scale_embeddings(model: PrismaticVLA) -> None:
    # Llama's 0.02 is far below what the projector puts out, so words and action positions would be drowned at first.
    for table in (model.language_model.get_input_embeddings(), model.action_queries):
        if isinstance(table, nn.Embedding):
            nn.init.normal_(table.weight, std=0.3)
