"""Teach a vision tower what a picture shows, by SigLIP's sigmoid loss on captions of the simulator's state.

A SigLIP is a tower trained so that a picture's feature agrees with the text that describes it and with no other
(Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, equation 1). The published towers come that
way; the built-in one is far too small to be distilled from them and there is nothing to download, so it is trained
on rendered frames, captioned by the simulator: where each object and the hand are, in words such as
``"akita black bowl x 7"``. The bins of a coordinate are quantiles of what the demonstrations show, so that words are
fine where objects differ.

The loss acts on the mean of the patch features, which is what the reward's scorers read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

AXES = ("x", "y", "z")


@dataclass(frozen=True)
class CaptionBank:
    """Every sentence there is, and which of them are true of each frame.

    Attributes:
        sentences: S sentences, each a tuple of words.
        truth: (N, A) int64, the A sentences that are true of each of N frames, as indices into ``sentences``.
    """

    sentences: tuple[tuple[str, ...], ...]
    truth: NDArray[np.int64]


def caption_frames(names: tuple[str, ...], positions: NDArray[np.floating], bins: int = 16) -> CaptionBank:
    """Describe frames by where things are.

    Args:
        names: K names of things, for example of bodies.
        positions: (N, K, 3) positions in meters.
        bins: Words a coordinate; their borders are quantiles over the frames, so each is true equally often.

    Returns:
        The sentences, and the K x 3 of them that are true of each frame. A coordinate that never varies has one.
    """
    sentences: list[tuple[str, ...]] = []
    columns = []
    for thing, name in enumerate(names):
        for axis, letter in enumerate(AXES):
            values = positions[:, thing, axis]
            borders = np.unique(np.quantile(values, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
            borders = borders[borders > values.min()]  # Below the lowest border there must be something.
            columns.append(len(sentences) + np.digitize(values, borders))
            sentences += [(*name.lower().split("_"), letter, str(word)) for word in range(len(borders) + 1)]
    return CaptionBank(tuple(sentences), np.stack(columns, axis=1))


class CaptionHead(nn.Module):
    """The text side of the loss, and the projection of the image side; thrown away after training.

    Args:
        bank: The sentences.
        feature_dim: Width of the tower's features.
        width: Width of the common space.
    """

    def __init__(self, bank: CaptionBank, feature_dim: int, width: int = 128) -> None:
        super().__init__()
        words = sorted({word for sentence in bank.sentences for word in sentence})
        index = {word: i for i, word in enumerate(words)}
        count = np.zeros((len(bank.sentences), len(words)), dtype=np.float32)
        for row, sentence in enumerate(bank.sentences):
            for word in sentence:
                count[row, index[word]] += 1.0
        self.register_buffer("word_count", torch.from_numpy(count))
        self.words = nn.Linear(len(words), width, bias=False)
        nn.init.normal_(self.words.weight, std=1.0)
        self.text = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.image = nn.Linear(feature_dim, width)
        # Initial temperature 10 and bias -10, as in the paper: most pairs are no matches.
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of each sentence for each picture.

        Args:
            features: (B, P, D) patch features.

        Returns:
            (B, S) float32.
        """
        text = functional.normalize(self.text(self.words(cast(Tensor, self.word_count))), dim=-1)
        image = functional.normalize(self.image(features.float().mean(dim=1)), dim=-1)
        return self.log_scale.exp() * image @ text.T + self.bias


def sigmoid_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """SigLIP's loss: every (picture, sentence) pair is a binary question, summed over sentences.

    Args:
        logits: (B, S) float32.
        truth: (B, A) int64, indices of the sentences that are true of each picture.

    Returns:
        Scalar: ``-mean_b sum_s log sigmoid(z_bs * logit_bs)`` with z = 1 for a match and -1 otherwise, divided by A,
        so that its size does not depend on how much a caption says.
    """
    sign = torch.full_like(logits, -1.0).scatter(1, truth, 1.0)
    return -functional.logsigmoid(sign * logits).sum(dim=1).mean() / truth.shape[1]


def caption_accuracy(logits: Tensor, truth: Tensor) -> float:
    """Share of true sentences that are among the A likeliest of a picture, 0 to 1."""
    best = logits.topk(truth.shape[1], dim=1).indices
    return float((best[:, :, None] == truth[:, None, :]).any(dim=1).float().mean())
