"""PrismaticVLA: a vision tower, a projector and a Llama that decodes a chunk of actions in one pass.

The architecture of OpenVLA (Kim et al., 2024) with the parallel decoding of OpenVLA-OFT (Kim et al., 2025): the
language model sees ``[BOS][visual tokens][proprioception][prompt][placeholders][stop]``, every token attends to every
other, and the logits at the action positions are read off together. Built from transformers' own modules, so that
peft and bitsandbytes can wrap them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from vlacoach.errors import CheckpointError
from vlacoach.policies.action_tokens import NUM_BINS
from vlacoach.policies.configuration import LanguageConfig, VisionConfig, VLAConfig


class VisionTower(nn.Module):
    """The frozen encoder: patch features of a hidden layer, without the blocks behind it.

    Args:
        config: Sizes of the tower.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.siglip = SiglipVisionModel(
            SiglipVisionConfig(
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.mlp_size,
                hidden_act=config.hidden_act,
                layer_norm_eps=1e-6,
                vision_use_head=False,
                attn_implementation="sdpa",
            )
        )
        self.num_blocks = config.num_layers + 1 + config.feature_layer

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of normalized images.

        Args:
            pixel_values: (N, 3, S, S) floating.

        Returns:
            (N, P, D), patches in row-major order.
        """
        hidden = self.siglip.embeddings(pixel_values)
        for block in self.siglip.encoder.layers[: self.num_blocks]:
            hidden = block(hidden, attention_mask=None)
        return cast(torch.Tensor, hidden)


class Projector(nn.Module):
    """Patch features to the language model's width: merge squares of patches, then a two-layer MLP (exact GELU).

    Args:
        config: The policy's configuration.
    """

    def __init__(self, config: VLAConfig) -> None:
        super().__init__()
        self.grid, self.merge = config.vision.grid, config.patch_merge
        inputs, width = config.vision.hidden_size * config.patch_merge**2, config.language.hidden_size
        self.norm = nn.LayerNorm(config.vision.hidden_size) if config.projector_norm else nn.Identity()
        self.fc1 = nn.Linear(inputs, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Visual tokens (B, P / merge^2, hidden) of features (B, P, D)."""
        features = self.norm(features)
        if self.merge > 1:
            batch, _, width = features.shape
            side = self.grid // self.merge
            squares = features.view(batch, -1, side, self.merge, side, self.merge, width).transpose(3, 4)
            features = squares.reshape(batch, -1, self.merge**2 * width)
        return cast(torch.Tensor, self.fc2(functional.gelu(self.fc1(features))))


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them (OpenVLA-OFT's proprioception projector).

    Args:
        inputs: Width of the input.
        hidden: Width in between.
        outputs: Width of the output.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        return cast(torch.Tensor, self.fc2(functional.gelu(self.fc1(values))))


def fourier_features(values: torch.Tensor, octaves: int) -> torch.Tensor:
    """Numbers, and the sines and cosines of ``pi 2^k`` times them for k = 0 to ``octaves - 1``.

    Args:
        values: (B, n), in [-1, 1].
        octaves: Frequencies; 0 returns the numbers alone.

    Returns:
        (B, n * (1 + 2 * octaves)).
    """
    angles = [torch.pi * 2.0**octave * values for octave in range(octaves)]
    waves = [wave for angle in angles for wave in (torch.sin(angle), torch.cos(angle))]
    return torch.cat([values, *waves], dim=-1)


class PrismaticVLA(nn.Module):
    """The model of a :class:`~vlacoach.policies.policy.VLAPolicy`.

    Args:
        config: Its sizes and its decoding.
    """

    def __init__(self, config: VLAConfig) -> None:
        super().__init__()
        self.config = config
        width = config.language.hidden_size
        self.vision_tower = VisionTower(config.vision)
        self.projector = Projector(config)
        self.language_model = _llama(config.language)
        self.proprio_projector: MLP | None = None
        if config.proprio_dim is not None:
            inputs = config.proprio_dim * (1 + 2 * config.proprio_frequencies)
            self.proprio_projector = MLP(inputs, width, width)
        self.action_queries: nn.Embedding | None = None
        self.action_context: MLP | None = None
        if config.placeholder == "learned":
            self.action_queries = nn.Embedding(config.num_action_tokens, width)
        if config.action_context:
            self.action_context = MLP(config.num_visual_tokens * width, config.context_size, width)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch features, in front of the projector.

        Args:
            pixel_values: (B, 3, S, S) or (B, I, 3, S, S) floating, normalized; I images a look.

        Returns:
            (B, P, D); the patches of a look's images follow each other.
        """
        if pixel_values.dim() == 4:
            return cast(torch.Tensor, self.vision_tower(pixel_values))
        features = self.vision_tower(pixel_values.flatten(0, 1))
        return cast(torch.Tensor, features.reshape(pixel_values.shape[0], -1, features.shape[-1]))

    def action_logits(
        self,
        features: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        proprio: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the 256 bins of each action token of the chunk, differentiable.

        Args:
            features: (B, P, D) of :meth:`encode_images`.
            input_ids: (B, L) int64 prompts, each starting with BOS; padding on either side.
            attention_mask: (B, L), 1 for a token and 0 for padding. A row's result does not depend on its padding.
            proprio: (B, proprio_dim) normalized to [-1, 1]; None for a policy without.

        Returns:
            (B, chunk_size * action_dim, 256), step by step, dimensions within a step; the last axis is the bin.
        """
        embeds, mask = self._sequence(features, input_ids, attention_mask, proprio)
        hidden = self._decode(embeds, mask)
        # Zero placeholders keep the next-token shift they were trained with: the last prompt token reads action 0.
        start = embeds.shape[1] - 1 - self.config.num_action_tokens - (self.config.placeholder == "zero")
        hidden = hidden[:, start : start + self.config.num_action_tokens]
        first = self.config.first_action_id
        head = self.language_model.get_output_embeddings().weight[first : first + NUM_BINS]
        return functional.linear(hidden, head)

    def forward(
        self,
        features: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        proprio: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Same as :meth:`action_logits`, so that wrappers (DistributedDataParallel, peft) find a forward."""
        return self.action_logits(features, input_ids, attention_mask, proprio)

    def _sequence(
        self,
        features: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        proprio: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, S, hidden) and mask (B, S) of the whole sequence, padding in front of the prompt."""
        bos, prompt, prompt_mask = _split_bos(input_ids, attention_mask)
        embed = self.language_model.get_input_embeddings()
        visual = self.projector(features)
        parts = [embed(bos), visual]
        state: torch.Tensor | None = None
        if self.proprio_projector is not None and proprio is not None:
            encoded = fourier_features(proprio, self.config.proprio_frequencies)
            state = self.proprio_projector(encoded.to(visual.dtype)).unsqueeze(1)
            parts.append(state)
        prefix = sum(part.shape[1] for part in parts)
        stop = embed(torch.full_like(bos, self.config.stop_id))
        parts += [embed(prompt), self._placeholders(visual, state), stop]
        embeds = torch.cat([part.to(visual.dtype) for part in parts], dim=1)
        mask = attention_mask.new_ones(embeds.shape[:2])
        mask[:, prefix : prefix + prompt.shape[1]] = prompt_mask
        return embeds, mask

    def _placeholders(self, visual: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        batch, _, width = visual.shape
        if self.action_queries is None:
            return visual.new_zeros(batch, self.config.num_action_tokens, width)
        queries = self.action_queries.weight.expand(batch, -1, -1)
        if self.action_context is not None:
            queries = queries + self.action_context(visual.flatten(1)).unsqueeze(1)
            queries = queries if state is None else queries + state
        return queries

    def _decode(self, embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Final hidden states (B, S, hidden), after the last norm."""
        decoder = self.language_model.get_decoder()
        # Positions count tokens, not columns, so that padding in the middle leaves no gap.
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        bias = self._attention_bias(mask, embeds.dtype)
        output = decoder(inputs_embeds=embeds, attention_mask=bias, position_ids=positions, use_cache=False)
        return cast(torch.Tensor, output.last_hidden_state)

    def _attention_bias(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(B, 1, S, S) additive mask.

        Additive and four-dimensional on purpose: a two-dimensional mask makes transformers add a causal one, and a
        four-dimensional boolean one is misread by its eager attention.
        """
        length = mask.shape[1]
        visible = mask.bool()[:, None, None, :].expand(-1, 1, length, length)
        if self.config.attention == "causal":
            visible = visible & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        bias = torch.zeros(visible.shape, dtype=dtype, device=mask.device)
        return bias.masked_fill(~visible, torch.finfo(dtype).min)


@torch.no_grad()
def verify_attention(model: PrismaticVLA) -> None:
    """Check that attention runs in the direction the configuration states.

    Two short sequences that differ in their last token only are decoded: the first token's hidden state must change
    if attention is bidirectional, and must not if it is causal.

    Args:
        model: The model as built or loaded.

    Raises:
        CheckpointError: It runs in the other direction, for instance because of a changed transformers release.
    """
    weight = model.language_model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 4, weight.shape[1], generator=generator).repeat(2, 1, 1)
    embeds[1, -1] = torch.randn(weight.shape[1], generator=generator)
    embeds = embeds.to(weight.device, weight.dtype)
    hidden = model._decode(embeds, torch.ones(2, 4, dtype=torch.long, device=weight.device)).float()
    change = ((hidden[0, 0] - hidden[1, 0]).norm() / hidden[0, 0].norm()).item()
    found = "bidirectional" if change > 1e-5 else "causal"
    if found != model.config.attention:
        raise CheckpointError(
            f"The language model's attention is {found}, but the policy was trained with "
            f"{model.config.attention} attention (a later token changes the first hidden state by {change:.1e}).",
            hint="Install a transformers release that this version of vlacoach supports (see pyproject.toml).",
        )


def _llama(config: LanguageConfig) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_positions,
            initializer_range=config.initializer_range,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
    )


def _split_bos(
    input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """BOS (B, 1), and the other prompt tokens (B, L - 1) with their mask, padding moved to the front."""
    first = attention_mask.long().argmax(dim=1, keepdim=True)
    bos = input_ids.gather(1, first)
    rest = attention_mask.long().scatter(1, first, 0)
    order = rest.argsort(dim=1, stable=True)[:, 1:]
    return bos, input_ids.gather(1, order), rest.gather(1, order)
