"""VLAPolicy: a model together with its tokenizer, its image processing and its action statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from vlacoach.errors import ConfigError
from vlacoach.policies import action_tokens
from vlacoach.policies.configuration import VLAConfig
from vlacoach.policies.log_prob import action_log_prob
from vlacoach.policies.modeling import PrismaticVLA, verify_attention
from vlacoach.policies.preprocessing import preprocess_images
from vlacoach.policies.statistics import DatasetStatistics

if TYPE_CHECKING:
    from peft import PeftModel

Array = np.ndarray[Any, Any] | torch.Tensor
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class ActionSample:
    """What :meth:`VLAPolicy.act` decided for B rows.

    Attributes:
        tokens: (B, chunk_size * action_dim) int64 bins, 0..255: the ones to train on (invariant 1).
        log_prob: (B, chunk_size * action_dim) float32, nats, at the sampling temperature (greedy: at temperature 1).
        actions: (B, chunk_size, action_dim) float32 in the environment's convention, [-1, 1], gripper +1 closes.
    """

    tokens: torch.Tensor
    log_prob: torch.Tensor
    actions: torch.Tensor


class VLAPolicy:
    """A policy: images, instruction and proprioception in, a chunk of actions with log-probabilities out.

    Rollouts and updates both go through :meth:`logits`, so that the numbers that acted are the numbers that train.

    Args:
        model: The network; put in evaluation mode, its attention direction is verified.
        tokenizer: Of the prompts.
        statistics: What normalized actions and proprioception stand for.
        name: Shown to the user, and the base model that adapters refer to.
        precision: ``"bf16"`` computes matrix products in bfloat16 (autocast) in rollouts and updates alike.

    Attributes:
        frames_encoded: Images that went through the vision tower in :meth:`encode` so far.
        adapter: The peft wrapper of :func:`vlacoach.policies.lora.add_lora`, or None.
    """

    def __init__(
        self,
        model: PrismaticVLA,
        tokenizer: PreTrainedTokenizerFast,
        statistics: DatasetStatistics,
        name: str,
        precision: Precision = "fp32",
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.statistics = statistics
        self.name = name
        self.precision: Precision = precision
        self.frames_encoded = 0
        self.adapter: PeftModel | None = None
        verify_attention(model)

    @property
    def config(self) -> VLAConfig:
        """Configuration of the model."""
        return self.model.config

    @property
    def chunk_size(self) -> int:
        """Actions decoded at once."""
        return self.config.chunk_size

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.config.action_dim

    @property
    def image_size(self) -> int:
        """Side of the images the tower reads, pixels; others are resized."""
        return self.config.vision.image_size

    @property
    def feature_dim(self) -> int:
        """Width D of a patch feature."""
        return self.config.vision.hidden_size

    @property
    def num_patches(self) -> int:
        """Patch features P of one look."""
        return self.config.num_patches

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return cast(torch.device, self.model.language_model.get_input_embeddings().weight.device)

    def to(self, device: torch.device | str) -> VLAPolicy:
        """Move the model; returns self."""
        self.model.to(device)
        return self

    def preprocess(self, images: Array) -> torch.Tensor:
        """Pixel values of images.

        Args:
            images: (B, [I,] H, W, 3) uint8, upright.

        Returns:
            (B, [I,] 3, S, S) float32 on the policy's device, normalized.
        """
        config = self.config
        pixels = torch.as_tensor(images).to(self.device)
        return preprocess_images(pixels, config.vision.image_size, config.image_mean, config.image_std)

    def features(self, images: Array) -> torch.Tensor:
        """Patch features (B, P, D) of images (B, [I,] H, W, 3) uint8, differentiable in the tower's weights."""
        with self._computing():
            return self.model.encode_images(self.preprocess(images))

    @torch.no_grad()
    def encode(self, images: Array) -> torch.Tensor:
        """Patch features of the frozen tower, to be kept for acting, reward and update.

        Args:
            images: (B, [I,] H, W, 3) uint8, upright.

        Returns:
            (B, P, D) float32 (bfloat16 at that precision), without gradient.

        Raises:
            ConfigError: The number of images a look is not the policy's.
        """
        per_look = images.shape[1] if len(images.shape) == 5 else 1
        if per_look != self.config.num_images:
            raise ConfigError(
                f"Policy {self.name!r} reads {self.config.num_images} image(s) a look, not {per_look}.",
                hint="Choose the environment's cameras to match: agentview, then wrist.",
            )
        self.frames_encoded += int(images.shape[0]) * per_look
        return self.features(images)

    def tokenize(self, instructions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts of instructions.

        Args:
            instructions: B texts, in natural language.

        Returns:
            ``(input_ids, attention_mask)``, both (B, L) int64, padded on the right.
        """
        prompts = [self.config.prompt.format(instruction=text.strip().lower()) for text in instructions]
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        return batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)

    def normalize_proprio(self, proprio: Array) -> torch.Tensor:
        """Proprioception (B, 8) in meters and radians to [-1, 1] float32, by the stored quantiles."""
        low, high = self.statistics.proprio_low, self.statistics.proprio_high
        if low is None or high is None:
            raise ConfigError(f"Policy {self.name!r} reads no proprioception.", hint="Pass proprio=None.")
        values = torch.as_tensor(proprio).to("cpu", torch.float64)
        return action_tokens.normalize(values, low, high).float().to(self.device)

    def logits(self, features: torch.Tensor, instructions: Sequence[str], proprio: Array | None) -> torch.Tensor:
        """Logits of the action tokens, differentiable in the weights behind the tower.

        Args:
            features: (B, P, D) of :meth:`encode`.
            instructions: B texts.
            proprio: (B, 8) as the environment gives it: position (m), axis-angle (rad), finger positions (m); None
                for a policy without.

        Returns:
            (B, chunk_size * action_dim, 256) float32, the last axis by bin.

        Raises:
            ConfigError: The policy reads proprioception and none was given, or the other way round.
        """
        state: torch.Tensor | None = None
        if proprio is not None:
            state = self.normalize_proprio(proprio)
        elif self.config.proprio_dim is not None:
            raise ConfigError(f"Policy {self.name!r} needs proprioception.", hint="Pass the observation's `state`.")
        input_ids, attention_mask = self.tokenize(instructions)
        with self._computing():
            features = features.to(self.device, self.model.projector.fc1.weight.dtype)
            logits = self.model(features, input_ids, attention_mask, state)
        return cast(torch.Tensor, logits.float())

    @torch.no_grad()
    def act(
        self,
        features: torch.Tensor,
        instructions: Sequence[str],
        proprio: Array | None,
        temperature: float = 1.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> ActionSample:
        """Sample a chunk of actions a row.

        Args:
            features: (B, P, D) of :meth:`encode`.
            instructions: B texts.
            proprio: (B, 8), see :meth:`logits`.
            temperature: Of the softmax; 0 takes the most probable bin.
            generators: One CPU generator a row, so that a row's sample does not depend on who shares its batch; None
                draws from torch's global one.

        Returns:
            Tokens, their log-probabilities, and the actions, on the CPU.

        Raises:
            ConfigError: ``temperature`` is negative, or there are not B generators.
        """
        if temperature < 0:
            raise ConfigError(f"The sampling temperature must be at least 0, not {temperature}.")
        logits = self.logits(features, instructions, proprio).cpu()
        tokens = logits.argmax(dim=-1) if temperature == 0 else sample_bins(logits, temperature, generators)
        log_prob, _ = action_log_prob(logits, tokens, temperature or 1.0)
        return ActionSample(tokens, log_prob, self.actions(tokens))

    def actions(self, tokens: Array) -> torch.Tensor:
        """Actions of tokens.

        Args:
            tokens: (B, chunk_size * action_dim) bins.

        Returns:
            (B, chunk_size, action_dim) float32 in the environment's convention.
        """
        bins = torch.as_tensor(tokens).cpu().view(-1, self.chunk_size, self.action_dim)
        stats = self.statistics
        actions = action_tokens.unnormalize(
            action_tokens.decode(bins), stats.action_low, stats.action_high, stats.action_mask
        )
        if self.config.gripper == "openvla":
            actions = action_tokens.env_gripper(actions)
        return actions.float()

    def save(self, folder: Path | str, dtype: Precision = "fp32") -> Path:
        """Write the policy as a folder that :func:`~vlacoach.policies.checkpoint.load_policy` reads.

        Args:
            folder: Replaced as a whole, or left as it was if writing fails.
            dtype: Of the stored weights; ``"fp32"`` restores them bit by bit.

        Returns:
            The folder.

        Raises:
            CheckpointError: It cannot be written.
            ConfigError: A LoRA adapter is attached.
        """
        from vlacoach.policies.checkpoint import save_policy

        return save_policy(self, Path(folder), dtype)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """The precision of matrix products, and attention as they do it fastest on this device."""
        kind = self.device.type
        # On a CPU the fused attention's backward costs three times the plain products at these sequence lengths.
        kernels = sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext()
        with kernels, torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            yield


def sample_bins(logits: torch.Tensor, temperature: float, generators: Sequence[torch.Generator] | None) -> torch.Tensor:
    """Draw a bin for each token by inverting the cumulative distribution.

    Args:
        logits: (B, N, 256) on the CPU.
        temperature: > 0.
        generators: B generators, each drawn from N times, or None for the global one.

    Returns:
        (B, N) int64.

    Raises:
        ConfigError: There are not B generators.
    """
    batch, count, _ = logits.shape
    if generators is None:
        uniform = torch.rand(batch, count, 1, dtype=torch.float64)
    elif len(generators) != batch:
        raise ConfigError(f"{batch} rows need {batch} generators, not {len(generators)}.")
    else:
        rows = [torch.rand(count, 1, dtype=torch.float64, generator=source) for source in generators]
        uniform = torch.stack(rows)
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    # Strictly greater, so that a bin of probability zero is never drawn; scaled, as rounding may end below 1.
    bins = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True).squeeze(-1)
    return bins.clamp(max=logits.shape[-1] - 1)
