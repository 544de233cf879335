"""VLAPolicy: a model together with its tokenizer, its image processing and its action statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from vlacoach.policies.modeling import PrismaticVLA, recomputed_activations, verify_attention
from vlacoach.policies.openvla import OpenVLAOptions, require_tokens
from vlacoach.policies.openvla_images import policy_pixels
from vlacoach.policies.preprocessing import preprocess_images
from vlacoach.policies.quantization import Quantization
from vlacoach.policies.sampling import ActionSample, sample_tokens
from vlacoach.policies.statistics import DatasetStatistics

if TYPE_CHECKING:
    from peft import PeftModel

CAMERAS = ("agentview", "robot0_eye_in_hand")
"""LIBERO's cameras in the order in which policies read them."""

Array = np.ndarray[Any, Any] | torch.Tensor
Precision = Literal["fp32", "bf16"]


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
        revision: Commit of the Hub repository it comes from, or None.
        options: How a folder of OpenVLA's was used, written out; None for other policies.
        remark: What its user should know of how it was loaded, or None.
        quantization: Of the language model's linear layers.
        gradient_checkpointing: Whether :meth:`logits` keeps the inputs of the language model's blocks only, and the
            backward pass computes the rest again; changes memory and time, not the numbers.
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
        self.revision: str | None = None
        self.remark: str | None = None
        self.options: OpenVLAOptions | None = None
        self.quantization: Quantization = "none"
        self.gradient_checkpointing = False
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
        """Side of the pictures to render for it, pixels; others are resized too."""
        return self.config.camera_size or self.config.vision.image_size

    @property
    def cameras(self) -> tuple[str, ...]:
        """LIBERO's cameras whose pictures it reads, in order."""
        count, most = self.config.num_images, len(CAMERAS)
        if count > most:
            raise ConfigError(f"Policy {self.name!r} reads {count} images; LIBERO has {most}.", "Lower num_images.")
        return CAMERAS[:count]

    @property
    def feature_dim(self) -> int:
        """Width D of a patch feature."""
        return self.config.feature_dim

    @property
    def siglip_dim(self) -> int:
        """Width of the SigLIP part of a patch feature: its last channels."""
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
            (B, [I,] C, S, S) float32 on the policy's device, normalized; C is 6 for a policy with DINOv2, else 3.
        """
        config = self.config
        pixels = torch.as_tensor(images)
        if config.image_processing == "openvla":
            towers = [tower for tower in (config.dino, config) if tower is not None]
            pixels = policy_pixels(
                pixels,
                size=config.vision.image_size,
                means=[tower.image_mean for tower in towers],
                stds=[tower.image_std for tower in towers],
                crop=config.center_crop,
                strategy=config.resize_strategy,
            )
            return pixels.to(self.device)
        pixels = pixels.to(self.device)
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
        rows: list[list[int]] = self.tokenizer(prompts)["input_ids"]
        end = self.config.prompt_end_id
        if end is not None:
            rows = [row if row[-1] == end else [*row, end] for row in rows]
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        ids = [row + [self.tokenizer.pad_token_id] * more for row, more in zip(rows, padding, strict=True)]
        mask = [[1] * (longest - more) + [0] * more for more in padding]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def normalize_proprio(self, proprio: Array) -> torch.Tensor:
        """Proprioception (B, 8) in meters and radians to [-1, 1] float32, by the stored quantiles."""
        low, high = self.statistics.proprio_low, self.statistics.proprio_high
        if low is None or high is None:
            raise ConfigError(f"Policy {self.name!r} reads no proprioception.", hint="Pass proprio=None.")
        values = torch.as_tensor(proprio).to("cpu", torch.float64)
        return action_tokens.normalize(values, low, high).float().to(self.device)

    def logits(
        self,
        features: torch.Tensor,
        instructions: Sequence[str],
        proprio: Array | None,
        tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the action tokens, differentiable in the weights behind the tower.

        Args:
            features: (B, P, D) of :meth:`encode`.
            instructions: B texts.
            proprio: (B, 8) as the environment gives it: position (m), axis-angle (rad), finger positions (m). May be
                given to a policy that reads none.
            tokens: (B, chunk_size * action_dim) int64, those whose probability is wanted; needed for head ``"openvla"``
                alone, whose tokens depend on those before them.

        Returns:
            (B, chunk_size * action_dim, C) float32; the last axis by bin (C = 256), or by vocabulary id for head
            ``"openvla"``.

        Raises:
            ConfigError: The policy reads proprioception and none was given, or its head decodes no tokens.
        """
        self.require_tokens()
        inputs = self._inputs(features, instructions, proprio)
        if tokens is not None:
            tokens = tokens.to(self.device)
        recomputing = (
            recomputed_activations(self.model, self._kernels) if self.gradient_checkpointing else nullcontext()
        )
        with self._computing(), recomputing:
            logits = self.model(*inputs, tokens)
        return cast(torch.Tensor, logits.float())

    def require_tokens(self) -> None:
        """Refuse a policy whose actions have no probabilities.

        Raises:
            CheckpointError: Its head is ``"oft-l1"``.
        """
        require_tokens(self.config, self.name)

    def _inputs(
        self, features: torch.Tensor, instructions: Sequence[str], proprio: Array | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What the model reads: features, prompts and their mask, and normalized proprioception."""
        state: torch.Tensor | None = None
        if self.config.proprio_dim is not None:
            if proprio is None:
                raise ConfigError(f"Policy {self.name!r} needs proprioception.", hint="Pass the observation's `state`.")
            state = self.normalize_proprio(proprio)
        input_ids, attention_mask = self.tokenize(instructions)
        features = features.to(self.device, self.model.projector.fc1.weight.dtype)
        return features, input_ids, attention_mask, state

    @torch.no_grad()
    def act(
        self,
        features: torch.Tensor,
        instructions: Sequence[str],
        proprio: Array | None,
        temperature: float = 1.0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> ActionSample:
        """Decide on a chunk of actions a row.

        Args:
            features: (B, P, D) of :meth:`encode`.
            instructions: B texts.
            proprio: (B, 8), see :meth:`logits`.
            temperature: Of the softmax; 0 takes the most probable token. Head ``"oft-l1"`` has none.
            generators: One CPU generator a row, so that a row's sample does not depend on who shares its batch; None
                draws from torch's global one.

        Returns:
            Tokens, their log-probabilities, and the actions, on the CPU.

        Raises:
            ConfigError: ``temperature`` is negative, or there are not B generators.
        """
        if temperature < 0:
            raise ConfigError(f"The sampling temperature must be at least 0, not {temperature}.")
        if self.config.head == "oft-l1":
            return self._regress(features, instructions, proprio)

        def choose(logits: torch.Tensor) -> torch.Tensor:
            if temperature == 0:
                return logits.argmax(dim=-1)
            return sample_tokens(logits[:, None].float().cpu(), temperature, generators)[:, 0]

        if self.config.head == "openvla":
            inputs = self._inputs(features, instructions, proprio)
            with self._computing():
                tokens, logits = self.model.generate(*inputs[:3], choose)
            tokens, logits = tokens.cpu(), logits.float().cpu()
        else:
            logits = self.logits(features, instructions, proprio).cpu()
            tokens = logits.argmax(dim=-1) if temperature == 0 else sample_tokens(logits, temperature, generators)
        log_prob, _ = action_log_prob(logits, tokens, temperature or 1.0)
        return ActionSample(tokens, log_prob, self.actions(tokens))

    def _regress(self, features: torch.Tensor, instructions: Sequence[str], proprio: Array | None) -> ActionSample:
        with self._computing():
            normalized = self.model.regress(*self._inputs(features, instructions, proprio))
        none = torch.zeros(len(normalized), 0)
        return ActionSample(none.long(), none, self._env_actions(normalized.double().cpu()))

    def actions(self, tokens: Array) -> torch.Tensor:
        """Actions of tokens.

        Args:
            tokens: (B, chunk_size * action_dim), as :meth:`act` gives them.

        Returns:
            (B, chunk_size, action_dim) float32 in the environment's convention.
        """
        return self._env_actions(action_tokens.decode(self._bins(tokens)))

    def dataset_actions(self, tokens: Array) -> torch.Tensor:
        """Actions of tokens (B, chunk_size, action_dim) float64, in the units of the data set the policy learned from.

        They are what OpenVLA's ``predict_action`` returns.
        """
        return self._unnormalize(action_tokens.decode(self._bins(tokens)))

    def encode_actions(self, actions: Array) -> torch.Tensor:
        """Tokens of actions: the inverse of :meth:`actions`, up to the width of a bin.

        Args:
            actions: (B, chunk_size, action_dim) in the environment's convention.

        Returns:
            (B, chunk_size * action_dim) int64.
        """
        values, stats = torch.as_tensor(actions).cpu().double(), self.statistics
        if self.config.gripper == "openvla":
            values = action_tokens.dataset_gripper(values)
        values = action_tokens.normalize(values, stats.action_low, stats.action_high, stats.action_mask)
        return action_tokens.encode(values).flatten(1) + self.config.first_choice

    def _bins(self, tokens: Array) -> torch.Tensor:
        bins = torch.as_tensor(tokens).cpu() - self.config.first_choice
        return bins.view(-1, self.chunk_size, self.action_dim)

    @property
    def _range_epsilon(self) -> float:
        return 0.0 if self.config.head == "openvla" else 1e-8  # As the code of each un-normalizes.

    def _unnormalize(self, normalized: torch.Tensor) -> torch.Tensor:
        stats = self.statistics
        return action_tokens.unnormalize(
            normalized, stats.action_low, stats.action_high, stats.action_mask, self._range_epsilon
        )

    def _env_actions(self, normalized: torch.Tensor) -> torch.Tensor:
        actions = self._unnormalize(normalized)
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
        with self._kernels(), torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def _kernels(self) -> AbstractContextManager[object]:
        # On a CPU the fused attention's backward costs three times the plain products at these sequence lengths.
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
