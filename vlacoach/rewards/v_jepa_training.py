"""Training a small V-JEPA on episodes (arXiv 2404.08471, arXiv 2506.09985).

Some tokens of a clip are hidden. From those that are left, the context, an encoder and a predictor must foresee the
features that a slowly following copy of the encoder gives the hidden ones when it sees the whole clip:

    loss = mean |predictor(encoder(context), positions of the targets) - stop_gradient(normalized(copy(clip)))|

No label and no pixel is predicted, so what cannot be foreseen, such as noise, need not be encoded. Encoder and
predictor are transformers' own modules. Only the encoder's loop over its layers is written anew here, because
``VJEPA2Model`` lets the encoder see every token and hides some afterwards.

Notation: B clips, F frames, S pixels a side, N tokens (time first, then rows, then columns), D features.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional
from transformers import VJEPA2Config, VJEPA2Model

from vlacoach.errors import CheckpointError, NonFiniteError
from vlacoach.policies.folders import replaced_folder
from vlacoach.rewards.v_jepa_data import LONG_RANGE, SHORT_RANGE, Blocks, Mask, block_masks, check_clips, draw_clip
from vlacoach.runs.checkpoints import CheckpointStore
from vlacoach.runs.state import load_tree, save_tree

Report = Callable[[int, Mapping[str, float]], None]
"""Called with the steps done, and what was measured in the last one."""

_LOWEST_RATE = 0.01


def tiny_config() -> Any:
    """The V-JEPA that comes with the package: 64 pixels, 16 frames, 512 tokens of 128 features; 1.2 M parameters."""
    return VJEPA2Config(
        crop_size=64,
        patch_size=8,
        tubelet_size=2,
        frames_per_clip=16,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=2,
        mlp_ratio=4.0,
        pred_hidden_size=96,
        pred_num_attention_heads=3,
        pred_num_hidden_layers=3,
        # transformers' predictor always takes the same one of them.
        pred_num_mask_tokens=1,
        # At zero, the first normalization would multiply its gradient by a thousand and clipping leave no other any.
        pred_zero_init_mask_tokens=False,
    )


def token_grid(config: Any) -> tuple[int, int, int]:
    """Tokens of a clip along time, rows, and columns."""
    side = config.crop_size // config.patch_size
    return config.frames_per_clip // config.tubelet_size, side, side


# ---------------------------------------------------------------- masks


def context_tokens(encoder: nn.Module, pixels: Tensor, index: Tensor) -> Tensor:
    """Encode some tokens of each clip, which see each other and nothing else.

    Args:
        encoder: The encoder of a ``VJEPA2Model``.
        pixels: (B, F, 3, S, S) float32, normalized.
        index: (B, C) int64, the tokens to encode.

    Returns:
        (B, C, D), after the last normalization. With every token it is what the model itself gives.
    """
    modules: Any = encoder
    hidden = modules.embeddings(pixels)
    hidden = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
    for layer in modules.layer:
        hidden = layer(hidden, index)[0]
    tokens: Tensor = modules.layernorm(hidden)
    return tokens


def predict_tokens(model: Any, context: Tensor, mask: Mask, tokens: int) -> Tensor:
    """Predict the features of hidden tokens from those of the context.

    Args:
        model: A ``VJEPA2Model``, for its predictor.
        context: (B, C, D) from :func:`context_tokens`.
        mask: Where context and targets are.
        tokens: Tokens of the whole clip, N.

    Returns:
        (B, P, D), in the order of ``mask.target``.
    """
    # The predictor picks the context out of a whole clip's features. It reads nothing else of them.
    whole = context.new_zeros(context.shape[0], tokens, context.shape[-1])
    whole = whole.scatter(1, mask.context[..., None].expand_as(context), context)
    predicted: Tensor = model.predictor(
        encoder_hidden_states=whole, context_mask=[mask.context], target_mask=[mask.target]
    ).last_hidden_state
    return predicted


@torch.no_grad()
def target_features(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Features to be predicted: of all tokens, each normalized over its features; no gradient.

    Args:
        encoder: The following copy of the encoder.
        pixels: (B, F, 3, S, S) float32, normalized.

    Returns:
        (B, N, D) float32; mean 0 and variance 1 over D.
    """
    hidden = encoder(pixel_values_videos=pixels).last_hidden_state.float()
    # The plainest way to a small loss is features that all shrink; without scale it is closed.
    return functional.layer_norm(hidden, hidden.shape[-1:])


def jepa_loss(model: Any, target: nn.Module, pixels: Tensor, masks: Sequence[Mask]) -> tuple[Tensor, dict[str, float]]:
    """How far the predictions are off, averaged over masks.

    Args:
        model: The ``VJEPA2Model`` that is trained.
        target: The following copy of its encoder; gets no gradient.
        pixels: (B, F, 3, S, S) float32, normalized.
        masks: Each clip is encoded and predicted once for each.

    Returns:
        The loss, a scalar, and statistics of the targets: ``feature_std``, their standard deviation over the tokens of
        all clips, and ``clip_std``, that of their means over the tokens of a clip (what the scorer compares), both
        averaged over features. Features that have collapsed have none: the first is then near 0. If only the second is,
        they tell where a token is, but nothing of what it shows.
    """
    features = target_features(target, pixels)
    losses = []
    for mask in masks:
        context = context_tokens(model.encoder, pixels, mask.context)
        predicted = predict_tokens(model, context, mask, features.shape[1])
        wanted = features.gather(1, mask.target[..., None].expand(-1, -1, features.shape[-1]))
        losses.append(functional.l1_loss(predicted.float(), wanted))
    spread = {
        "feature_std": float(features.flatten(0, 1).std(dim=0, unbiased=False).mean()),
        "clip_std": float(features.mean(dim=1).std(dim=0, unbiased=False).mean()),
    }
    return torch.stack(losses).mean(), spread


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Let a copy follow: ``target = momentum * target + (1 - momentum) * online``, in place, for every parameter.

    Args:
        target: The copy.
        online: What it follows; of the same shape.
        momentum: 0 (be the same) to 1 (stay).
    """
    for behind, ahead in zip(target.parameters(), online.parameters(), strict=True):
        behind.lerp_(ahead, 1.0 - momentum)


# ---------------------------------------------------------------- clips


def train_v_jepa(
    clips: Sequence[npt.NDArray[np.uint8]],
    config: Any = None,
    *,
    steps: int,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    warmup_steps: int = 100,
    weight_decay: float = 0.04,
    momentum: float = 0.998,
    max_grad_norm: float = 1.0,
    bf16: bool = False,
    device: str = "cpu",
    report: Report | None = None,
    checkpoint_folder: Path | None = None,
    checkpoint_every: int = 250,
    resume: bool = False,
) -> Any:
    """Train a V-JEPA from scratch. On a CPU, the same seed and as many threads give the same numbers.

    Args:
        clips: Episodes, each (T, H, W, 3) uint8 with a T of its own; held in memory by the caller.
        config: A ``VJEPA2Config``; None for :func:`tiny_config`.
        steps: Optimizer steps.
        batch_size: Clips a step. Each is encoded under a mask of small and one of large blocks.
        learning_rate: Peak; linear warm-up, then half a cosine down to 1 %.
        seed: Of the initial weights, the clips, and the masks.
        warmup_steps: Steps of warm-up.
        weight_decay: Of AdamW, on matrices; biases and normalizations have none.
        momentum: Of the copy at the first step; rises linearly to 1 at the last.
        max_grad_norm: Gradients are scaled down to this norm.
        bf16: Compute in bfloat16; weights stay float32.
        device: Where to compute.
        report: Called after each step with the steps done and ``loss``, ``feature_std`` and ``clip_std`` (see
            :func:`jepa_loss`), ``learning_rate``, ``momentum``, ``grad_norm``.
        checkpoint_folder: Where to keep checkpoints, the two newest; None for none.
        checkpoint_every: Steps between two checkpoints; one more is written at the end.
        resume: Go on from the newest checkpoint, if there is one, which must be of the same settings and clips. The
            numbers are those of not stopping.

    Returns:
        A ``VJEPA2Model`` on the CPU, in evaluation mode, with the trained predictor and the *following* encoder, which
        is the one to embed with.

    Raises:
        ConfigError: If there are no clips, or they are no pictures, or the picture is one token.
        CheckpointError: If the newest checkpoint is damaged or of another training, or there is one and ``resume``
            was not asked for.
        NonFiniteError: If the loss or the gradient is not finite; names the step.
        RunError: If a checkpoint cannot be written.
    """
    check_clips(clips)
    config = tiny_config() if config is None else config
    settings = {
        "config": _plain(config),
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "max_grad_norm": max_grad_norm,
        "bf16": bf16,
        "episodes": len(clips),
        "frames": sum(len(clip) for clip in clips),
    }
    trainer = _Trainer(config, settings, torch.device(device))
    store = None if checkpoint_folder is None else CheckpointStore(checkpoint_folder)
    done = 0
    if store is not None and store.entries():
        if not resume:
            raise CheckpointError(
                f"There are checkpoints of a V-JEPA in {store.folder} already.",
                "Go on from them with resume, or choose another folder.",
            )
        done = trainer.restore(store.last())
    for step in range(done, steps):
        metrics = trainer.step(step, clips)
        if store is not None and ((step + 1) % checkpoint_every == 0 or step + 1 == steps):
            store.save(step + 1, partial(trainer.write, done=step + 1))
        if report is not None:
            report(step + 1, metrics)
    trainer.model.encoder.load_state_dict(trainer.target.state_dict())
    return trainer.model.requires_grad_(False).eval().cpu()


class _Trainer:
    """Model, its following copy, and optimizer: everything that a checkpoint holds."""

    def __init__(self, config: Any, settings: dict[str, Any], device: torch.device) -> None:
        self.settings = settings
        self.device = device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            self.model = VJEPA2Model(copy.deepcopy(config)).to(device).train()
        self.target: nn.Module = copy.deepcopy(self.model.encoder).requires_grad_(False).eval()
        self.grid = token_grid(config)
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [one for one in parameters if one.dim() > 1], "weight_decay": settings["weight_decay"]},
                {"params": [one for one in parameters if one.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=0.0,
        )

    def step(self, step: int, clips: Sequence[npt.NDArray[np.uint8]]) -> dict[str, float]:
        """One update; step counts from 0 and is all that decides what is drawn."""
        settings, config = self.settings, self.model.config
        rng = np.random.default_rng([settings["seed"], step])
        chosen = rng.integers(len(clips), size=settings["batch_size"])
        pixels = torch.stack([draw_clip(clips[i], config.frames_per_clip, config.crop_size, rng) for i in chosen])
        masks = [self._mask(blocks, rng) for blocks in (SHORT_RANGE, LONG_RANGE)]
        rate = settings["learning_rate"] * _rate(step, settings["steps"], settings["warmup_steps"])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings["bf16"]):
            loss, spread = jepa_loss(self.model, self.target, pixels.to(self.device), masks)
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(f"The loss of the V-JEPA is {loss.item()} at step {step}.", _DIVERGED)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings["max_grad_norm"])
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(f"The gradient of the V-JEPA has norm {norm.item()} at step {step}.", _DIVERGED)
        self.optimizer.step()
        start = settings["momentum"]
        momentum = start + (1.0 - start) * step / max(1, settings["steps"] - 1)
        ema_update(self.target, self.model.encoder, momentum)
        moved = {"learning_rate": rate, "momentum": momentum, "grad_norm": float(norm)}
        return {"loss": float(loss.detach()), **spread, **moved}

    def write(self, folder: Path, done: int) -> None:
        """Fill a checkpoint's folder."""
        save_tree(
            folder,
            {
                "done": done,
                "settings": self.settings,
                "model": dict(self.model.state_dict()),
                "target": dict(self.target.state_dict()),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def restore(self, folder: Path) -> int:
        """Take over what :meth:`write` wrote; returns the steps done."""
        state = load_tree(folder)
        try:
            theirs: dict[str, Any] = state["settings"]
            other = sorted(key for key in self.settings if theirs.get(key) != self.settings[key])
            if other:
                raise CheckpointError(
                    f"The checkpoint {folder} is of another training: {', '.join(other)} differ.",
                    "Give the settings and files that it was begun with, or choose another folder.",
                )
            self.model.load_state_dict(state["model"])
            self.target.load_state_dict(state["target"])
            self.optimizer.load_state_dict(state["optimizer"])
            return int(state["done"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"The checkpoint {folder} is none of a V-JEPA: {error}.") from error

    def _mask(self, blocks: Blocks, rng: np.random.Generator) -> Mask:
        mask = block_masks(self.grid, self.settings["batch_size"], blocks, rng)
        return Mask(mask.context.to(self.device), mask.target.to(self.device))


_DIVERGED = "Lower the learning rate, or lengthen the warm-up."


def _rate(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return _LOWEST_RATE + (1.0 - _LOWEST_RATE) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON values, without the version that wrote it."""
    values: dict[str, Any] = json.loads(config.to_json_string())
    values.pop("transformers_version", None)
    return values


# ---------------------------------------------------------------- saving


def save_v_jepa(model: Any, folder: Path, dtype: Literal["fp32", "bf16"] = "bf16") -> Path:
    """Write a model's encoder as a ``VJEPA2Model`` that transformers loads without a complaint.

    Its predictor, which embedding does not need, shrinks to one without layers: a few hundred zeros that transformers
    expects to find.

    Args:
        model: A ``VJEPA2Model``, such as :func:`train_v_jepa` returns.
        folder: Replaced as a whole.
        dtype: How weights are stored.

    Returns:
        The folder.

    Raises:
        CheckpointError: If it cannot be written.
    """
    number_format = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    config = copy.deepcopy(model.config)
    config.pred_num_hidden_layers, config.pred_hidden_size, config.pred_num_mask_tokens = 0, 1, 1
    config.architectures, config.dtype = ["VJEPA2Model"], number_format
    with torch.random.fork_rng(devices=[]):
        stripped = VJEPA2Model(config)
    stripped.encoder.load_state_dict(model.encoder.state_dict())
    for parameter in stripped.predictor.parameters():
        nn.init.zeros_(parameter)
    state = {key: value.detach().to("cpu", number_format).contiguous() for key, value in stripped.state_dict().items()}
    with replaced_folder(Path(folder), "V-JEPA") as fresh:
        # Not save_file, whose files only their owner may read.
        (fresh / "model.safetensors").write_bytes(save_tensors(state, metadata={"format": "pt"}))
        config.save_pretrained(fresh)
    return Path(folder)
