"""Episodes that a policy plays, recorded step by step as demonstrations are.

A rollout of training sees one picture a chunk, and keeps no actions. Whoever wants episodes as data plays them again:
here, one world, every control step recorded. The same prompts and seed give the episodes of ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vlacoach.agents.evaluation_settings import render_profile
from vlacoach.agents.prompts import Prompt
from vlacoach.agents.rollout import one_thread
from vlacoach.agents.seeding import Stream, torch_generator
from vlacoach.data.hdf5 import Demonstration
from vlacoach.envs.recording import EpisodeRecorder
from vlacoach.envs.simulator import Simulator, UnstableSimulationError
from vlacoach.errors import SimulatorError
from vlacoach.policies.policy import VLAPolicy
from vlacoach.runs.config import TrainConfig

ATTEMPTS = 3


def play_episodes(
    policy: VLAPolicy,
    config: TrainConfig,
    plan: Sequence[Prompt],
    progress: Callable[[bool], None] = lambda success: None,
) -> Iterator[Demonstration]:
    """Play a plan, and record what happens.

    Args:
        policy: The policy.
        config: Says how the suite is simulated and drawn, the temperature of the evaluation, and the seed.
        plan: Task and initial state of each episode.
        progress: Called with the success of each episode.

    Yields:
        Successes and failures alike, in the order of the plan and with its numbers; one at a time is in memory.

    Raises:
        SimulatorError: A simulation broke down in every attempt.
    """
    env = config.env
    simulator = Simulator(
        env.suite,
        cameras=policy.cameras if env.cameras == "policy" else env.cameras,
        image_size=policy.image_size if env.image_size == "policy" else env.image_size,
        render_profile=render_profile(config, policy),
        exact=env.exact,
    )
    for number, prompt in enumerate(plan):
        for attempt in range(ATTEMPTS):
            generator = torch_generator(config.seed, Stream.EVALUATION, number, attempt)
            try:
                with one_thread():
                    episode = _play(policy, simulator, config, number, prompt, generator)
            except UnstableSimulationError:
                continue
            break
        else:
            raise SimulatorError(
                f"The episode of task {prompt.task}, initial state {prompt.init_state}, broke down in {ATTEMPTS} "
                "attempts: the simulation became unstable.",
                "Leave this state out.",
            )
        progress(episode.success)
        yield episode


def _play(
    policy: VLAPolicy,
    simulator: Simulator,
    config: TrainConfig,
    number: int,
    prompt: Prompt,
    generator: torch.Generator,
) -> Demonstration:
    task = simulator.suite.task(prompt.task)
    limit = config.env.max_steps or simulator.suite.max_steps
    simulator.reset(0, prompt.task, prompt.init_state, config.env.settle_steps)
    recorder = EpisodeRecorder(simulator, 0)
    actions: list[NDArray[np.float32]] = []
    chunk: list[NDArray[np.float32]] = []
    success = False
    while not success and len(actions) < limit:
        pictures = recorder.observe()
        if not chunk:
            stack = np.stack([picture[None] for picture in pictures.values()], axis=1)
            features = policy.encode(torch.from_numpy(stack if len(pictures) > 1 else stack[:, 0]))
            proprio = torch.from_numpy(simulator.proprioception(0)[None])
            temperature = config.evaluation.temperature
            sample = policy.act(features, [task.instruction], proprio, temperature, [generator])
            chunk = list(sample.actions[0].numpy())
        actions.append(chunk.pop(0))
        success = simulator.step(0, actions[-1])
    executed = np.stack(actions).astype(np.float32)
    return Demonstration(
        task=task.name,
        instruction=task.instruction,
        index=number,
        actions=executed,
        labels=executed,
        init_state=prompt.init_state,
        success=success,
        **recorder.arrays(),
    )
