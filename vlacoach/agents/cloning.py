"""Behavior cloning: supervised fine-tuning of a policy on demonstrations (``vlacoach sft``).

Each frame is an example: picture, instruction, and proprioception in, the next ``chunk_size`` demonstrated actions
out, by cross-entropy over the action tokens. The vision tower learns along, optionally with SigLIP's loss on captions
of the simulator's state (:mod:`vlacoach.agents.captions`).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vlacoach.agents.captions import CaptionBank, CaptionHead, caption_accuracy, caption_frames, sigmoid_loss
from vlacoach.agents.objectives import require_finite
from vlacoach.agents.seeding import Stream, derived_seed, numpy_generator, torch_generator
from vlacoach.data.hdf5 import Demonstration
from vlacoach.data.lerobot import LeRobotLayout, open_demonstrations
from vlacoach.errors import ConfigError
from vlacoach.policies import lora
from vlacoach.policies.policy import VLAPolicy
from vlacoach.policies.preprocessing import augment_images
from vlacoach.profiles import RenderProfile
from vlacoach.runs.reporting import NullReporter, Reporter

logger = logging.getLogger(__name__)

_SCENE = re.compile(r"^[A-Z_]+_SCENE\d+_")


@dataclass(frozen=True)
class CloningConfig:
    """Settings of behavior cloning.

    Attributes:
        steps: Optimizer steps.
        batch_size: Frames a step.
        learning_rate: Peak of a cosine schedule with linear warm-up.
        warmup_steps: Steps of warm-up.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm.
        caption_weight: Weight of the caption loss; 0 leaves it out.
        validation: Share of the episodes held out for validation, at least one; a single episode is trained on and
            validated on alike.
        seed: Of the batches and the augmentation.
        bf16: Compute in bfloat16; weights stay float32.
        fit_statistics: Normalize proprioception by the range it has in the demonstrations; right for a new policy,
            wrong for one that was trained with another range.
        lora_rank: Train a LoRA of this rank on the language model, and nothing else; None trains all weights.
        lora_alpha: Its scale is ``lora_alpha / lora_rank``.
    """

    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 7e-4
    warmup_steps: int = 50
    weight_decay: float = 0.02
    max_grad_norm: float = 1.0
    caption_weight: float = 0.2
    validation: float = 0.05
    seed: int = 0
    bf16: bool = True
    fit_statistics: bool = False
    lora_rank: int | None = None
    lora_alpha: float = 32.0


@dataclass(frozen=True)
class Frames:
    """Demonstrations, frame by frame.

    Attributes:
        images: (N, H, W, 3) uint8, turned as the policy sees them; (N, I, H, W, 3) for several cameras.
        proprio: (N, 8) float32.
        actions: (N, 7) float32 labels in [-1, 1].
        episode: (N,) int64, ascending; frames of an episode follow each other.
        instruction: (N,) int64, index into ``instructions``.
        instructions: The texts.
        object_names: Names of the things whose positions are known; may be empty.
        object_positions: (N, K, 3) float32, meters.
        render_profile: How the pictures were rendered.
    """

    images: NDArray[np.uint8]
    proprio: NDArray[np.float32]
    actions: NDArray[np.float32]
    episode: NDArray[np.int64]
    instruction: NDArray[np.int64]
    instructions: tuple[str, ...]
    object_names: tuple[str, ...] = ()
    object_positions: NDArray[np.float32] | None = None
    render_profile: RenderProfile = "reference"

    def __len__(self) -> int:
        return len(self.images)


def _left_out(episode: Demonstration) -> bool:
    logger.warning("Left out episode %d of %s: it failed.", episode.index, episode.task)
    return False


def load_frames(
    paths: Sequence[Path],
    tasks: Sequence[str] | None = None,
    cameras: Sequence[str] = ("agentview",),
    layout: LeRobotLayout | None = None,
) -> Frames:
    """Read demonstrations into memory; of rollouts, the successes only, and a message for each of the others.

    Args:
        paths: HDF5 files, folders of them, or folders of LeRobot data sets (v3.0).
        tasks: LIBERO's names of the tasks to read; None for all. A LeRobot data set knows no scenes, so of names that
            begin with one the rest is looked for.
        cameras: Cameras whose pictures the policy sees.
        layout: What a LeRobot data set does not say of itself.

    Raises:
        ConfigError: A task is not in the files, there is nothing to read, or pictures are of different kinds.
        DemonstrationError: A file is missing or damaged.
    """
    episodes: list[Demonstration] = []
    found: list[str] = []
    profiles: set[RenderProfile] = set()
    for path in paths:
        reader = open_demonstrations(path, cameras, layout)
        found += reader.tasks
        for task in reader.tasks:
            if tasks is None or any(task in (name, _SCENE.sub("", name)) for name in tasks):
                read = (reader.read(task, index) for index in reader.indices(task))
                episodes += [episode for episode in read if episode.success or _left_out(episode)]
                profiles.add(reader.render_profiles[task])
    for task in tasks or ():
        if task not in found and _SCENE.sub("", task) not in found:
            raise ConfigError(f"There are no demonstrations of task {task!r}.", f"There are of: {', '.join(found)}.")
    if not episodes:
        raise ConfigError("The demonstrations hold no successful episode.", "Make some with: vlacoach demos collect")
    if len(profiles) > 1:
        raise ConfigError(
            f"The demonstrations mix pictures rendered as {' and '.join(sorted(profiles))}.",
            "A policy must see one kind: collect all of them with the same --render-profile.",
        )
    instructions = tuple(sorted({episode.instruction for episode in episodes}))
    things = {episode.object_names for episode in episodes}
    # Captions need one vocabulary, so the positions are of use only where all episodes show the same things.
    captioned = len(things) == 1 and all(episode.object_positions is not None for episode in episodes)
    lengths = [episode.length for episode in episodes]
    return Frames(
        images=np.concatenate([_pictures(episode, cameras) for episode in episodes]),
        proprio=np.concatenate([episode.proprioception for episode in episodes]),
        actions=np.concatenate([episode.labels for episode in episodes]),
        episode=np.repeat(np.arange(len(episodes)), lengths),
        instruction=np.repeat([instructions.index(episode.instruction) for episode in episodes], lengths),
        instructions=instructions,
        object_names=(*next(iter(things)), "hand") if captioned else (),
        object_positions=np.concatenate([_with_hand(episode) for episode in episodes]) if captioned else None,
        render_profile=profiles.pop(),
    )


def _pictures(episode: Demonstration, cameras: Sequence[str]) -> NDArray[np.uint8]:
    pictures = [episode.images[camera] for camera in cameras]
    return pictures[0] if len(pictures) == 1 else np.stack(pictures, axis=1)


def _with_hand(episode: Demonstration) -> NDArray[np.float32]:
    """(T, K + 1, 3) positions of the objects and, last, of the hand."""
    hand = episode.proprioception[:, None, :3]
    return hand if episode.object_positions is None else np.concatenate([episode.object_positions, hand], axis=1)


def action_chunks(actions: NDArray[np.float32], episode: NDArray[np.int64], chunk_size: int) -> NDArray[np.float32]:
    """The next actions at each frame.

    Args:
        actions: (N, 7).
        episode: (N,) ascending episode numbers.
        chunk_size: K.

    Returns:
        (N, K, 7). Behind the end of an episode its last action is repeated.
    """
    last = np.searchsorted(episode, episode, side="right") - 1
    index = np.minimum(np.arange(len(actions))[:, None] + np.arange(chunk_size)[None], last[:, None])
    chunks: NDArray[np.float32] = actions[index]
    return chunks


def clone(
    policy: VLAPolicy,
    frames: Frames,
    config: CloningConfig | None = None,
    reporter: Reporter | None = None,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Train a policy on demonstrations, in place: all of its weights, or a LoRA, which is left attached.

    Args:
        policy: The policy.
        frames: The demonstrations.
        config: Settings.
        reporter: Shows progress.
        on_log: Called now and then with the step and its metrics.

    Returns:
        Validation metrics at the end: ``loss`` and ``entropy`` (nats a token), ``accuracy`` (0 to 1), each also by
        action dimension.

    Raises:
        ConfigError: There are too few episodes, or captions are wanted and the positions they need are missing.
        NonFiniteError: The loss or a gradient is not finite.
    """
    config, reporter = config or CloningConfig(), reporter or NullReporter()
    policy.model.config = policy.config.model_copy(update={"render_profile": frames.render_profile})
    if config.fit_statistics:
        fit_proprio_range(policy, frames)
    policy.require_tokens()
    targets = policy.encode_actions(action_chunks(frames.actions, frames.episode, policy.chunk_size)).to(policy.device)
    train, held_out = _split(frames, config)
    bank = _captions(frames, config)
    head = _caption_head(bank, policy.feature_dim, config.seed).to(policy.device) if bank else None
    parameters = _trained_parameters(policy, config, head)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=config.weight_decay, betas=(0.9, 0.95))
    chooser = numpy_generator(config.seed, Stream.CLONING, 0)
    jitter = torch_generator(config.seed, Stream.CLONING, 1)
    reporter.stage("cloning", config.steps)
    policy.model.train()
    precision, policy.precision = policy.precision, "bf16" if config.bf16 else policy.precision
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.steps, config.warmup_steps)
        rows = chooser.choice(train, config.batch_size)
        images = torch.from_numpy(frames.images[rows])
        images = augment_images(images.flatten(0, -4), jitter, max_shift=1).view(images.shape)
        features = policy.features(images) if config.lora_rank is None else policy.encode(images)
        logits = _logits(policy, frames, features, rows, targets)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets[rows].flatten())
        metrics = {"loss": loss.item()}
        if head is not None and bank is not None:
            truth = torch.from_numpy(bank.truth[rows]).to(policy.device)
            caption_logits = head(features)
            caption = sigmoid_loss(caption_logits, truth)
            metrics |= {"caption_loss": caption.item()}
            loss = loss + config.caption_weight * caption
        require_finite("The cloning loss", loss)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        require_finite("The gradient", torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        optimizer.step()
        reporter.advance(1, loss=metrics["loss"])
        if on_log is not None and (step + 1) % 100 == 0:
            if head is not None:
                metrics["caption_accuracy"] = caption_accuracy(caption_logits.detach(), truth)
            on_log(step + 1, metrics)
    policy.model.eval()
    policy.precision = precision
    for parameter in parameters:
        parameter.requires_grad_(False)
    return validate(policy, frames, targets, held_out)


def fit_proprio_range(policy: VLAPolicy, frames: Frames, margin: float = 0.1) -> None:
    """Let -1 and +1 stand for the range of proprioception in the demonstrations, widened by a share of it."""
    values = torch.from_numpy(frames.proprio).double()
    low, high = values.min(dim=0).values, values.max(dim=0).values
    slack = margin * (high - low).clamp(min=1e-3)
    policy.statistics = replace(policy.statistics, proprio_low=low - slack, proprio_high=high + slack)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))


@torch.no_grad()
def validate(policy: VLAPolicy, frames: Frames, targets: Tensor, rows: NDArray[np.int64]) -> dict[str, float]:
    """Loss, entropy and accuracy on frames that were not trained on; see :func:`clone`."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), 512)).astype(int)]
    parts = []
    for part in np.array_split(chosen, max(1, len(chosen) // 64)):
        parts.append(_logits(policy, frames, policy.encode(torch.from_numpy(frames.images[part])), part, targets))
    log_prob = torch.cat(parts).log_softmax(dim=-1)
    target = targets[chosen]
    nll = -log_prob.gather(-1, target[..., None])[..., 0]
    entropy = -(log_prob.exp() * log_prob).sum(dim=-1)
    hit = (log_prob.argmax(dim=-1) == target).float()
    metrics = {}
    for name, values in (("loss", nll), ("entropy", entropy), ("accuracy", hit)):
        metrics[name] = float(values.mean())
        by_dimension = values.view(len(chosen), policy.chunk_size, policy.action_dim).mean(dim=(0, 1))
        metrics |= {f"{name}/{i}": float(value) for i, value in enumerate(by_dimension)}
    return metrics


def _logits(policy: VLAPolicy, frames: Frames, features: Tensor, rows: NDArray[np.int64], targets: Tensor) -> Tensor:
    instructions = [frames.instructions[frames.instruction[row]] for row in rows]
    return policy.logits(features, instructions, torch.from_numpy(frames.proprio[rows]), targets[rows])


def _trained_parameters(policy: VLAPolicy, config: CloningConfig, head: CaptionHead | None) -> list[torch.nn.Parameter]:
    """What the optimizer may change, made trainable."""
    if config.lora_rank is not None:
        if head is not None:
            raise ConfigError(
                "Captions train the vision tower, which a LoRA leaves as it is.", "Set caption_weight to 0."
            )
        lora.add_lora(policy, config.lora_rank, config.lora_alpha, seed=derived_seed(config.seed, Stream.ADAPTER))
        return list(lora.trainable_parameters(policy).values())
    if policy.quantization != "none":
        raise ConfigError(
            f"The weights of policy {policy.name!r} are quantized and cannot be trained.",
            "Train a LoRA: --lora-rank 16.",
        )
    parameters = [*policy.model.parameters(), *(head.parameters() if head else ())]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _split(frames: Frames, config: CloningConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    episodes = np.unique(frames.episode)
    if len(episodes) == 1:
        every = np.arange(len(frames))
        return every, every
    count = max(1, round(config.validation * len(episodes)))
    if len(episodes) <= count:
        raise ConfigError(
            f"There are {len(episodes)} demonstrations, too few to hold {count} out for validation.",
            "Collect more with `vlacoach demos collect`.",
        )
    chosen = numpy_generator(config.seed, Stream.CLONING, 2).choice(episodes, count, replace=False)
    held_out = np.isin(frames.episode, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _caption_head(bank: CaptionBank, feature_dim: int, seed: int) -> CaptionHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, Stream.CLONING, 3))
        return CaptionHead(bank, feature_dim)


def _captions(frames: Frames, config: CloningConfig) -> CaptionBank | None:
    if config.caption_weight == 0:
        return None
    if frames.object_positions is None or not frames.object_names:
        raise ConfigError(
            "These demonstrations do not say where objects are, so their frames cannot be captioned.",
            "Set caption_weight to 0, or collect demonstrations with `vlacoach demos collect`.",
        )
    return caption_frames(frames.object_names, frames.object_positions)
