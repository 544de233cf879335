"""A world small enough to run in milliseconds, and a policy that fits it; everything else in these tests is real.

The rules: an episode of initial state s lasts ``1 + s % 3`` chunks. In every chunk the first ``3 + s % 5`` actions are
tested: the episode succeeds with the last of them if their mean over all components, times +1 in task 0 and -1 in task
1, exceeds 0.14. A policy that draws its actions evenly succeeds in about 10 to 40 % of the episodes.

What a world shows depends on the task, the initial state, and every action executed so far, and on nothing else. So
siblings of a group look alike at first and differ afterwards, and a test can say which picture belongs to which look.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vlacoach.agents.prompts import Prompt
from vlacoach.agents.rollout import Job, collect
from vlacoach.agents.seeding import Stream, torch_generator
from vlacoach.envs.perturbations import Perturbation, PerturbedEpisode
from vlacoach.envs.rephrasing import rephrase
from vlacoach.envs.suites import Suite, Task
from vlacoach.policies import VLAPolicy, action_tokens
from vlacoach.policies import tokenizer as tokenizers
from vlacoach.policies.configuration import LanguageConfig, VisionConfig, VLAConfig
from vlacoach.policies.modeling import PrismaticVLA
from vlacoach.policies.tiny import ASSETS, tiny_statistics
from vlacoach.rewards.trajectory import Trajectory
from vlacoach.runs.config import TrainConfig

CHUNK, ACTION_DIM, IMAGE_SIZE = 8, 7, 32
THRESHOLD = 0.14
TOY_SUITE = Suite(
    "toy",
    (
        Task(0, "push_the_plate", "push the plate to the front of the stove", ""),
        Task(1, "turn_on_the_stove", "turn on the stove", ""),
    ),
    3 * CHUNK,
)


def chunks_of(init_state: int) -> int:
    """Chunks after which an episode is cut off."""
    return 1 + init_state % 3


def decisive_actions(init_state: int) -> int:
    """How many actions, from the beginning of each chunk, decide."""
    return 3 + init_state % 5


def succeeds(task: int, tested: np.ndarray) -> bool:
    """Whether tested actions (N, 7) reach the goal."""
    return bool((1 - 2 * task) * tested.mean() > THRESHOLD)


def _world(task: int, init_state: int, executed: np.ndarray) -> np.random.Generator:
    history = zlib.crc32(np.asarray(executed, dtype=np.float32).tobytes())
    return np.random.default_rng([task, init_state, len(executed), history])


def picture(task: int, init_state: int, executed: np.ndarray) -> np.ndarray:
    """What a world shows after some actions: (32, 32, 3) uint8."""
    return _world(task, init_state, executed).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


def proprioception(task: int, init_state: int, executed: np.ndarray) -> np.ndarray:
    """(8,) float32: the task, for all who can read it, and noise."""
    state = _world(task, init_state, executed).normal(0.0, 0.1, 8)
    state[:2] = 0.3 * (1 - 2 * task)
    return state.astype(np.float32)


class ToyEnvs:
    """Worlds that stand still when done, and start anew by mask, like ``LiberoVectorEnv``.

    Args:
        num_envs: Number of worlds.
        broken: Initial states whose simulation breaks down: of their last chunk nothing is executed.
        repaired_after: Times an initial state breaks down before it works; None for ever.
    """

    def __init__(self, num_envs: int = 4, broken: tuple[int, ...] = (), repaired_after: int | None = None) -> None:
        self.num_envs = num_envs
        self.chunk_size: int | None = CHUNK
        self.suite = TOY_SUITE
        self.workers_lost = 0
        self.broken = broken
        self.repaired_after = repaired_after
        self.breakdowns: dict[tuple[int, int], int] = {}
        self.resets = 0
        self.closed = False
        self._where = [(0, 0)] * num_envs
        self._perturbations: tuple[Perturbation, ...] = ()
        self._perturbation_seed = 0
        self._perturbed = [PerturbedEpisode((), 0, 0, 0)] * num_envs
        self._executed = [np.zeros((0, ACTION_DIM), np.float32)] * num_envs
        self._chunks = [0] * num_envs
        self._done = np.ones(num_envs, dtype=np.bool_)

    def perturb(self, perturbations: Sequence[Perturbation], seed: int = 0) -> None:
        """Perturb episodes: language changes instructions, camera inverts pictures, and the rest does nothing."""
        self._perturbations, self._perturbation_seed = tuple(perturbations), seed

    def begin_reset(self, options: dict[str, Any] | None = None) -> Any:
        assert options is not None
        for world in np.flatnonzero(options["reset_mask"]):
            assert self._done[world], "a world was started anew in the middle of an episode"
            self._where[world] = where = (int(options["task"][world]), int(options["init_state"][world]))
            self._perturbed[world] = PerturbedEpisode(self._perturbations, self._perturbation_seed, *where)
            self._executed[world] = np.zeros((0, ACTION_DIM), np.float32)
            self._chunks[world] = 0
            self._done[world] = False
            self.resets += 1
        none = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observation(), none.astype(np.float64), none, none, self._info(none.astype(np.int64))

    def finish(self, pending: Any) -> tuple[Any, Any, Any, Any, Any]:
        return pending

    def begin_step(self, actions: Any, worlds: Any) -> Any:
        assert actions.shape == (self.num_envs, CHUNK, ACTION_DIM)
        success, truncated, invalid = (np.zeros(self.num_envs, dtype=np.bool_) for _ in range(3))
        executed = np.zeros(self.num_envs, dtype=np.int64)
        for world in np.flatnonzero(worlds & ~self._done):
            task, init_state = self._where[world]
            self._chunks[world] += 1
            last = self._chunks[world] == chunks_of(init_state)
            if last and self._breaks(task, init_state):
                truncated[world] = invalid[world] = True
                continue
            tested = decisive_actions(init_state)
            success[world] = succeeds(task, actions[world, :tested])
            executed[world] = tested if success[world] else CHUNK
            truncated[world] = last and not success[world]
            ran = actions[world, : executed[world]]
            self._executed[world] = np.concatenate([self._executed[world], ran])
        self._done |= success | truncated
        info = self._info(executed)
        if invalid.any():
            info["invalid"] = invalid
        return self._observation(), success.astype(np.float64), success, truncated, info

    def close(self) -> None:
        self.closed = True

    def _breaks(self, task: int, init_state: int) -> bool:
        if init_state not in self.broken:
            return False
        before = self.breakdowns.get((task, init_state), 0)
        self.breakdowns[task, init_state] = before + 1
        return self.repaired_after is None or before < self.repaired_after

    def _observation(self) -> dict[str, Any]:
        seen = [(*where, done) for where, done in zip(self._where, self._executed, strict=True)]
        return {
            "image": np.stack([self._seen(world, picture(*one)) for world, one in enumerate(seen)]),
            "state": np.stack([proprioception(*one) for one in seen]),
            "task": np.array([task for task, _ in self._where]),
        }

    def _seen(self, world: int, image: np.ndarray) -> np.ndarray:
        return 255 - image if self._perturbed[world].along("camera").severity else image

    def _info(self, executed: np.ndarray) -> dict[str, Any]:
        texts = [
            rephrase(TOY_SUITE.tasks[task].instruction, perturbed)
            for (task, _), perturbed in zip(self._where, self._perturbed, strict=True)
        ]
        return {"instruction": np.array(texts, dtype=object), "executed": executed}


def toy_policy(seed: int = 0) -> VLAPolicy:
    """The real policy class at its smallest: 32-pixel pictures, four patches, one block each, 60 000 weights."""
    words = tokenizers.load_tokenizer(ASSETS)
    config = VLAConfig(
        vision=VisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=16,
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            mlp_size=64,
            feature_layer=-1,
        ),
        language=LanguageConfig(vocab_size=len(words), hidden_size=32, num_layers=1, num_heads=2, mlp_size=64),
        proprio_dim=8,
        first_action_id=len(words) - 256,
        placeholder="learned",
        action_context=True,
        context_size=8,
        patch_merge=2,
        projector_norm=True,
        gripper="env",
        prompt="{instruction}",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PrismaticVLA(config)
        head = model.language_model.get_output_embeddings().weight
        # The published heads know that neighboring bins are alike; a fresh one must be told, or nothing is learnable.
        values = action_tokens.decode(torch.arange(256))[:, None].float()
        with torch.no_grad():
            torch.nn.init.normal_(model.action_queries.weight, std=0.3)
            torch.nn.init.normal_(model.language_model.get_input_embeddings().weight, std=0.3)
            head[config.first_action_id :] += 0.2 * values * torch.randn(1, 32)
    return VLAPolicy(model, words, tiny_statistics(), "toy")


def jobs_for(prompts: list[Prompt], samples: int = 1, seed: int = 0) -> list[Job]:
    """``samples`` episodes of each prompt, numbered through."""
    return [
        Job(group * samples + i, group, prompt, torch_generator(seed, Stream.ROLLOUT, group, i))
        for group, prompt in enumerate(prompts)
        for i in range(samples)
    ]


def play(
    policy: VLAPolicy, prompts: list[Prompt], samples: int = 1, num_envs: int = 4, temperature: float = 1.0
) -> list[Trajectory]:
    """Roll prompts out in fresh worlds."""
    return collect(policy, ToyEnvs(num_envs), jobs_for(prompts, samples), temperature)


def toy_config(**sections: Any) -> TrainConfig:
    """A configuration of the toy world; ``grpo={"updates": 3}`` and the like change it."""
    base: dict[str, Any] = {
        "env": {"tasks": [0, 1], "states": "0-14", "num_envs": 4},
        "policy": {"lora_rank": 4, "lora_alpha": 8, "precision": "fp32"},
        "reward": {"name": "success"},
        "evaluation": {"states": "30-34", "trials": 3},
        "logging": {"episodes": 1},
        "grpo": {
            "updates": 2,
            "prompts": 6,
            "group_size": 4,
            "learning_rate": 1e-2,
            "warmup_updates": 0,
            "minibatches": 1,
        },
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return TrainConfig.model_validate(base)
