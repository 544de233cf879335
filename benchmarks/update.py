"""What an update costs with the rollout's features and log-probabilities kept, and with them computed again.

Run on an idle machine; about ten minutes on one core with --trajectories 16 --repetitions 3:

    python benchmarks/update.py
    python benchmarks/update.py --policy FOLDER --head oft-discrete --micro-batch 16 --repetitions 3

"kept" is :meth:`GRPOAgent.improve` as it stands. "recomputed" is the same update as SRPO's implementation does it: for
each forward pass pixels go through the vision tower; old log-probabilities come from a forward pass before the update;
so do those of a reference policy, a second copy of the weights, which nothing reads as long as the KL coefficient is 0,
SRPO's default; the output layer computes all logits of all positions, and those of the action ids at the action
positions are cut out. The tower is frozen in both, and both end with the same weights: the script compares them, and
the gradients, before it measures anything. Left out, though SRPO does it too: chunks after the end of an episode.

Rows in between switch one of the four on. "feature budget 0" is this project's own way to do without stored features.
Variants take turns; ratios are of one turn each, their median and range over the repetitions. Memory is the largest
sum of the tensors alive at once beyond those that were there before the update; it and the operations of the matrix
products (FLOP) are counted in runs of their own. One thread by default: two that wait for each other suffer from
whatever else runs.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vlacoach.agents.batching import cut, look_batches
from vlacoach.agents.grpo import GRPOAgent, group_advantage
from vlacoach.policies import OpenVLAOptions, VLAPolicy, action_log_prob, load_policy, lora
from vlacoach.policies.action_tokens import NUM_BINS
from vlacoach.policies.modeling import recomputed_activations
from vlacoach.rewards.scorers import SuccessScorer
from vlacoach.rewards.trajectory import RecomputedFeatures, Trajectory
from vlacoach.runs.config import TrainConfig

INSTRUCTIONS = ("put the bowl on the plate", "turn on the stove", "push the plate to the front of the stove")
GROUP_SIZE = 8
MIB = 2**20
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2}
"""How far loss and gradient may be from those of the kept update, relative to the largest gradient."""


@dataclass(frozen=True)
class Variant:
    """What an update computes again.

    Attributes:
        against: The variant it is compared with.
        looks: What is stored of them: features; pixel values, prepared for the tower; or pictures, as
            ``grpo.feature_budget`` keeps them. From the last two each forward pass computes the features.
        old: Log-probabilities of the tokens before the first step.
        reference: Those of a copy of the policy without its adapter.
        logits: All logits of all positions, where those of the action ids at the action positions are enough.
        checkpointing: Activations of the language model's blocks, in the backward pass.
    """

    against: str = "kept"
    looks: Literal["features", "pixels", "pictures"] = "features"
    old: bool = False
    reference: bool = False
    logits: bool = False
    checkpointing: bool = False


RECOMPUTED = Variant(looks="pixels", old=True, reference=True, logits=True)
VARIANTS = {
    "kept": Variant(),
    "recomputed": RECOMPUTED,
    "pixels": Variant(looks="pixels"),
    "old log-probs": Variant(old=True),
    "reference": Variant(reference=True),
    "all logits": Variant(logits=True),
    "feature budget 0": Variant(looks="pictures"),
    "kept, checkpointing": Variant(checkpointing=True),
    "recomputed, checkpointing": replace(RECOMPUTED, checkpointing=True, against="kept, checkpointing"),
}


class RecomputingAgent(GRPOAgent):
    """The agent, with the parts of a variant computed again.

    Args:
        policy: Shared by the variants; has an adapter.
        reference: A second copy of its weights, without the adapter.
        variant: What to compute again.
        config: As for :class:`GRPOAgent`.
    """

    def __init__(self, policy: VLAPolicy, reference: VLAPolicy, variant: Variant, config: TrainConfig) -> None:
        super().__init__(policy, None, SuccessScorer(), config)  # type: ignore[arg-type]
        self.reference, self.variant = reference, variant

    def improve(self, trajectories: Sequence[Trajectory], advantage: np.ndarray) -> dict[str, float]:
        """The update, after the forward passes that come before it."""
        if self.variant.old:
            old = self._before(self.policy, trajectories)
            trajectories = [replace(t, log_prob=row) for t, row in zip(trajectories, old, strict=True)]
        if self.variant.reference:
            unread = self._before(self.reference, trajectories)
            assert len(unread) == len(trajectories)
        return super().improve(trajectories, advantage)

    @torch.no_grad()
    def _before(self, policy: VLAPolicy, trajectories: Sequence[Trajectory]) -> tuple[Tensor, ...]:
        """Log-probabilities (T, tokens a chunk) of each trajectory's tokens."""
        looks = [t.num_looks for t in trajectories]
        rows = []
        for pieces in look_batches(looks, self.micro_batch):
            log_prob, _ = self._log_prob(policy, [cut(trajectories[row], first, last) for row, first, last in pieces])
            rows.append(log_prob)
        return torch.cat(rows).split(looks)

    def log_prob(self, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
        """See :meth:`GRPOAgent.log_prob`."""
        return self._log_prob(self.policy, trajectories)

    def _log_prob(self, policy: VLAPolicy, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
        features = torch.cat([t.patch_features() for t in trajectories])
        instructions = [t.instruction for t in trajectories for _ in range(t.num_looks)]
        proprio = torch.cat([t.proprio for t in trajectories])
        logits = (all_logits if self.variant.logits else VLAPolicy.logits)(policy, features, instructions, proprio)
        return action_log_prob(logits, torch.cat([t.tokens for t in trajectories]), self.config.grpo.temperature)


@torch.no_grad()
def encode_pixels(policy: VLAPolicy, pixels: Tensor) -> Tensor:
    """Features of pixel values; SRPO's rollout stores those, so preparing the pictures is no part of its update."""
    with policy._computing():
        return policy.model.encode_images(pixels)


def all_logits(policy: VLAPolicy, features: Tensor, instructions: Sequence[str], proprio: Tensor) -> Tensor:
    """What :meth:`VLAPolicy.logits` returns, cut out of the logits (B, S, V) of the whole sequence and vocabulary."""
    config, model = policy.config, policy.model
    recomputing = recomputed_activations(model, policy._kernels) if policy.gradient_checkpointing else nullcontext()
    with policy._computing(), recomputing:
        embeds, mask = model._sequence(*policy._inputs(features, instructions, proprio))
        logits = model.language_model.get_output_embeddings()(model._decode(embeds, mask))
    start = embeds.shape[1] - 1 - config.num_action_tokens - (config.placeholder == "zero")
    places = slice(start, start + config.num_action_tokens)
    return logits[:, places, config.first_action_id : config.first_action_id + NUM_BINS].float()


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that come into being in its context.

    What an operation uses inside itself, and what the allocator rounds up, is not counted.

    Attributes:
        live: Bytes alive now.
        peak: Most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An operand that no operation here has made was there before: neither it nor its views are new.
        self._meet((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._meet(result, new=True)
        return result

    def _meet(self, tree: Any, new: bool) -> None:
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, Tensor) or (storage := tensor.untyped_storage())._cdata in self._known:
                continue
            size = storage.nbytes() if new else 0
            self._known.add(storage._cdata)
            weakref.finalize(storage, self._forget, storage._cdata, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.live -= size


def make_trajectories(policy: VLAPolicy, count: int, looks: int, temperature: float, seed: int) -> list[Trajectory]:
    """Episodes of noise, of sizes as a rollout has them: ``looks`` each on average; tokens are the policy's own."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    size, chunk, cameras = policy.image_size, policy.chunk_size, policy.config.num_images
    trajectories = []
    for slot in range(count):
        length, success = int(rng.integers(looks - looks // 5, looks + looks // 5 + 1)), bool(rng.random() < 0.5)
        shape = (length, size, size, 3) if cameras == 1 else (length, cameras, size, size, 3)
        pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        again = RecomputedFeatures(pictures, policy.encode)
        features, proprio = again(), 0.1 * torch.randn(length, 8, generator=generator)
        instruction = INSTRUCTIONS[slot // GROUP_SIZE % len(INSTRUCTIONS)]
        sample = policy.act(features, [instruction] * length, proprio, temperature, [generator] * length)
        executed = torch.full((length,), chunk)
        executed[-1] = int(rng.integers(1, chunk + 1)) if success else chunk
        trajectories.append(
            Trajectory(
                task=slot // GROUP_SIZE,
                init_state=0,
                group=slot // GROUP_SIZE,
                slot=slot,
                instruction=instruction,
                features=features,
                terminal_features=None,
                proprio=proprio,
                tokens=sample.tokens,
                log_prob=sample.log_prob,
                executed=executed,
                success=success,
                length=int(executed.sum()),
                frames=torch.cat([pictures, pictures[-1:]]),
            )
        )
    return trajectories


class Comparison:
    """The variants of one update, on one policy and one batch of trajectories.

    Args:
        arguments: Of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        options = OpenVLAOptions(head=arguments.head, tokens_only=True)
        self.policy = load_policy(arguments.policy, precision=arguments.precision, options=options)
        if self.policy.config.head != "oft-discrete":
            raise SystemExit(f"The head is {self.policy.config.head}; this benchmark wants --head oft-discrete.")
        reference = copy.deepcopy(self.policy)
        settings = {"policy": {"precision": arguments.precision}, "grpo": {"group_size": GROUP_SIZE}}
        if arguments.micro_batch is not None:
            settings["grpo"]["micro_batch"] = arguments.micro_batch
        self.config = config = TrainConfig.model_validate(settings)
        lora.add_lora(self.policy, config.policy.lora_rank, config.policy.lora_alpha)
        self._move_adapter()
        made = make_trajectories(self.policy, arguments.trajectories, arguments.looks, config.grpo.temperature, 0)
        self.advantage = group_advantage([float(t.success) for t in made], [t.group for t in made]).numpy()
        pictures = [t.frames[:-1] for t in made]
        pixels, encode = [self.policy.preprocess(images) for images in pictures], partial(encode_pixels, self.policy)
        self.stored: dict[str, list[Tensor]] = {
            "features": [t.features for t in made],
            "pixels": pixels,
            "pictures": pictures,
        }
        self.given = {
            "features": [replace(t, frames=None) for t in made],
            "pixels": with_features(made, [RecomputedFeatures(one, encode) for one in pixels]),
            "pictures": with_features(made, [RecomputedFeatures(one, self.policy.encode) for one in pictures]),
        }
        self.agents = {
            name: RecomputingAgent(self.policy, reference, variant, config) for name, variant in VARIANTS.items()
        }
        self.start = [parameter.detach().clone() for parameter in self.agents["kept"].parameters]

    def _move_adapter(self) -> None:
        # A fresh adapter is zero, and so is half of its gradient.
        generator = torch.Generator().manual_seed(0)
        for name, parameter in lora.trainable_parameters(self.policy).items():
            if "lora_B" in name:
                parameter.data.normal_(0.0, 0.02, generator=generator)

    @contextmanager
    def turn(self, name: str) -> Iterator[tuple[RecomputingAgent, list[Trajectory]]]:
        """A variant's agent and trajectories, at the weights and the optimizer state that all start from."""
        agent = self.agents[name]
        self.policy.gradient_checkpointing = agent.variant.checkpointing
        agent._take_parameters()
        with torch.no_grad():
            for parameter, value in zip(agent.parameters, self.start, strict=True):
                parameter.copy_(value)
        gc.collect()
        yield agent, self.given[agent.variant.looks]

    def gradient(self, name: str) -> Tensor:
        """Gradient of the whole batch: that of an update of one step."""
        with self.turn(name) as (agent, trajectories):
            agent.config = agent.config.model_copy(
                update={"grpo": agent.config.grpo.model_copy(update={"minibatches": 1})}
            )
            taken: list[Tensor] = []
            agent.optimizer.register_step_pre_hook(
                lambda *_: taken.append(torch.cat([parameter.grad.flatten() for parameter in agent.parameters]))
            )
            agent.improve(trajectories, self.advantage)
            agent.config = self.config
            return taken[0]

    def update(self, name: str) -> tuple[float, dict[str, float], Tensor]:
        """Seconds of one update, its statistics, and what it changed the adapter by."""
        with self.turn(name) as (agent, trajectories):
            start = time.perf_counter()
            stats = agent.improve(trajectories, self.advantage)
            seconds = time.perf_counter() - start
            moved = [parameter.detach() - value for parameter, value in zip(agent.parameters, self.start, strict=True)]
            return seconds, stats, torch.cat([one.flatten() for one in moved])

    def peak(self, name: str) -> int:
        """Bytes that one update adds, at its peak, to what was there before."""
        with self.turn(name) as (agent, trajectories), TensorMemory() as memory:
            agent.improve(trajectories, self.advantage)
            return memory.peak

    def flop(self, name: str) -> int:
        """Operations of one update's matrix products."""
        with self.turn(name) as (agent, trajectories), FlopCounterMode(display=False) as counter:
            agent.improve(trajectories, self.advantage)
            return counter.get_total_flops()

    def resident(self, name: str) -> tuple[int, int]:
        """Bytes of weights, the reference's included, and of what is stored of the looks."""
        agent = self.agents[name]
        weights = size_of(self.policy.model.state_dict().values())
        if agent.variant.reference:
            weights += size_of(agent.reference.model.state_dict().values())
        return weights, size_of(self.stored[agent.variant.looks])

    def disagreements(self) -> dict[str, dict[str, float]]:
        """How far each variant is from the kept update: gradient, mean loss of the steps, and weights after the last.

        The gradient's is relative to its largest element. AdamW divides each element by its own size, so that rounding
        of the smallest ones shows in the weights: theirs is relative to the length of the whole change.

        Raises:
            SystemExit: A variant computes something else, and comparing its cost would mean nothing.
        """
        found: dict[str, dict[str, float]] = {}
        gradient, (_, stats, moved) = self.gradient("kept"), self.update("kept")
        for name in VARIANTS:
            its_gradient, (_, its_stats, its_moved) = self.gradient(name), self.update(name)
            found[name] = {
                "gradient": float((gradient - its_gradient).abs().max() / gradient.abs().max()),
                "loss": abs(stats["train/loss"] - its_stats["train/loss"]),
                "weights": float((moved - its_moved).norm() / moved.norm()),
            }
            off = max(found[name]["loss"], found[name]["gradient"])
            if off > TOLERANCE[self.policy.precision] or stats["train/steps"] != its_stats["train/steps"]:
                raise SystemExit(f"The update {name!r} computes something else: {found[name]}")
        return found


def with_features(trajectories: Sequence[Trajectory], features: Sequence[RecomputedFeatures]) -> list[Trajectory]:
    return [replace(t, features=one, frames=None) for t, one in zip(trajectories, features, strict=True)]


def size_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(comparison: Comparison, repetitions: int) -> dict[str, dict[str, float]]:
    """One row of figures for each variant."""
    rows = {
        name: {f"off_{what}": off for what, off in found.items()} for name, found in comparison.disagreements().items()
    }
    for name, row in rows.items():
        weights, stored = comparison.resident(name)
        peak = comparison.peak(name)
        row |= {"peak_mib": peak / MIB, "weights_mib": weights / MIB, "stored_mib": stored / MIB}
        row |= {"all_mib": (peak + weights + stored) / MIB, "gflop": comparison.flop(name) / 1e9}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for repetition in range(repetitions):
        # Forth and back, so that no variant always runs after the same one.
        for name in list(VARIANTS)[:: 1 - 2 * (repetition % 2)]:
            seconds[name].append(comparison.update(name)[0])
    for name, row in rows.items():
        against = VARIANTS[name].against
        ratios = [a / b for a, b in zip(seconds[name], seconds[against], strict=True)]
        row |= {"seconds": statistics.median(seconds[name]), "time_ratio": statistics.median(ratios)}
        row |= {"time_ratio_min": min(ratios), "time_ratio_max": max(ratios)}
        row |= {f"{what}_ratio": row[what] / rows[against][what] for what in ("gflop", "peak_mib", "all_mib")}
    return rows


def show(rows: dict[str, dict[str, float]]) -> None:
    print(
        "| update | seconds | times as long (range) | GFLOP (times) | peak MiB | weights | stored | all MiB (times) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        long = f"{row['time_ratio']:.2f} ({row['time_ratio_min']:.2f}-{row['time_ratio_max']:.2f})"
        print(
            f"| {name} | {row['seconds']:.2f} | {long} | {row['gflop']:.0f} ({row['gflop_ratio']:.2f}) "
            f"| {row['peak_mib']:.0f} | {row['weights_mib']:.1f} | {row['stored_mib']:.1f} "
            f"| {row['all_mib']:.0f} ({row['all_mib_ratio']:.2f}) |"
        )
    for what in ("loss", "gradient", "weights"):
        print(f"farthest from kept, {what}: {max(row[f'off_{what}'] for row in rows.values()):.1e}")
    for what, figure, target in (("time", "time_ratio", 3), ("memory", "all_mib_ratio", 2)):
        ratio = rows["recomputed"][figure]
        print(f"{what}: recomputed / kept = {ratio:.2f}, target {target}: {'met' if ratio >= target else 'missed'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="tiny", help="tiny, or a folder")
    parser.add_argument("--head", default="auto", help="how an OpenVLA folder decodes actions")
    parser.add_argument("--trajectories", type=int, default=32)
    parser.add_argument("--looks", type=int, default=15, help="of a trajectory, on average")
    parser.add_argument("--micro-batch", type=int, help="looks in one forward pass; the configuration's if left out")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(Comparison(arguments), arguments.repetitions)
    if arguments.json:
        print(json.dumps({"arguments": vars(arguments), "rows": rows}, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
