"""What an update computes on stored features is what it would compute from the pictures, all of it anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy_envs import ToyEnvs, jobs_for, toy_config, toy_policy

from vlacoach.agents.grpo import GRPOAgent
from vlacoach.agents.prompts import Prompt
from vlacoach.agents.rollout import collect
from vlacoach.agents.sharing import StepSizes
from vlacoach.policies import VLAPolicy
from vlacoach.rewards import Scorer, Trajectory, make_scorer
from vlacoach.rewards.scorers import SuccessScorer
from vlacoach.rewards.trajectory import RecomputedFeatures

PROMPTS = [Prompt(task, state) for task in (0, 1) for state in (0, 1, 2, 5)]
LOOK = 4 * 32 * 4
"""Bytes of a look's features: four patches, 32 numbers each, float32."""
SOME = 12 * LOOK
BUDGETS = [0, SOME]
"""No look is kept; and those of some of the episodes."""


def make_agent(**sections: Any) -> GRPOAgent:
    """An agent whose adapter is not zero, so that both of its factors have a gradient."""
    agent = GRPOAgent(toy_policy(), ToyEnvs(4), SuccessScorer(), toy_config(**sections))
    shift(agent, 0.05)
    return agent


def shift(agent: GRPOAgent, size: float) -> None:
    """Change the adapter: the policy of a later step is not the one that acted."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.parameters:
            parameter += size * torch.randn(parameter.shape, generator=generator)


def played(policy: VLAPolicy, budget: int | None) -> list[Trajectory]:
    return collect(policy, ToyEnvs(4), jobs_for(PROMPTS, 2), 1.0, feature_budget=budget)


def recomputed(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    return [t for t in trajectories if isinstance(t.features, RecomputedFeatures)]


def looks(trajectories: Sequence[Trajectory]) -> int:
    return sum(t.num_looks for t in trajectories)


def advantages(trajectories: Sequence[Trajectory]) -> np.ndarray:
    """Of either sign, none of them zero."""
    return np.random.default_rng(0).normal(size=len(trajectories)).astype(np.float32)


def loss_and_gradient(agent: GRPOAgent, trajectories: Sequence[Trajectory]) -> tuple[torch.Tensor, torch.Tensor]:
    agent.optimizer.zero_grad(set_to_none=True)
    loss, _ = agent.loss(
        trajectories, torch.from_numpy(advantages(trajectories)), agent.token_weights(StepSizes.of(trajectories))
    )
    loss.backward()
    return loss.detach(), gradient(agent)


def gradient(agent: GRPOAgent) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten().clone() for parameter in agent.parameters])


def weights(agent: GRPOAgent) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in agent.parameters])


def agree(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor], limit: float) -> None:
    """Equal losses, and gradients that differ by no more than ``limit`` of their largest element."""
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=limit)
    largest = float(one[1].abs().max())
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=limit * largest)
    assert largest > 1e-3
    assert (one[1] != 0).float().mean() > 0.99


# Features computed again


@pytest.mark.parametrize(("budget", "kl_coefficient"), [(0, 0.0), (SOME, 0.0), (SOME, 0.1)])
def test_loss_and_gradients_do_not_depend_on_what_was_kept(budget: int, kl_coefficient: float):
    agent = make_agent(grpo={"kl_coefficient": kl_coefficient})
    kept, some = played(agent.policy, None), played(agent.policy, budget)
    assert not recomputed(kept)
    assert len(recomputed(some)) == len(some) if budget == 0 else 4 <= len(recomputed(some)) <= len(some) - 4
    for a, b in zip(kept, some, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.log_prob, b.log_prob)
        torch.testing.assert_close(a.terminal_features, b.terminal_features, rtol=0, atol=0)
    shift(agent, 0.02)
    agree(loss_and_gradient(agent, kept), loss_and_gradient(agent, some), 1e-5)


def test_the_comparison_sees_features_of_another_look():
    agent = make_agent()
    some = played(agent.policy, 0)
    long = [t for t in some if t.num_looks > 1]
    turned = [replace(t, features=RecomputedFeatures(t.features.images.flip(0), agent.policy.encode)) for t in long]
    _, one = loss_and_gradient(agent, long)
    _, other = loss_and_gradient(agent, turned)
    assert (one - other).abs().max() > 1e-3


def test_the_budget_is_spent_on_the_episodes_that_begin_first(policy: VLAPolicy):
    trajectories = played(policy, SOME)
    spent = LOOK * (looks(trajectories) - looks(recomputed(trajectories)))
    # Whoever has begun within the budget ends within it or not: four worlds, three looks at most.
    assert SOME <= spent < SOME + 4 * 3 * LOOK
    kept = [t.slot for t in trajectories if not isinstance(t.features, RecomputedFeatures)]
    assert kept == list(range(len(kept)))


@pytest.mark.parametrize("budget", [None, *BUDGETS])
@pytest.mark.parametrize(("epochs", "kl_coefficient"), [(1, 0.0), (2, 0.1)])
def test_the_tower_runs_again_for_what_was_not_kept_and_for_nothing_else(
    budget: int | None, epochs: int, kl_coefficient: float
):
    agent = make_agent(grpo={"epochs": epochs, "minibatches": 2, "kl_coefficient": kl_coefficient})
    trajectories = played(agent.policy, budget)
    encoded = agent.policy.frames_encoded
    assert encoded == looks(trajectories) + len(trajectories)
    agent.improve(trajectories, advantages(trajectories))
    # The divergence from the reference takes a forward pass of its own, of the language model alone.
    assert agent.policy.frames_encoded - encoded == epochs * looks(recomputed(trajectories))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ["siglip", "siglip-t"])
def test_scorers_embed_an_episode_alike_whether_it_was_kept(policy: VLAPolicy, name: str, budget: int):
    kept, some = played(policy, None), played(policy, budget)
    scorer: Scorer = make_scorer(name, policy=policy, **({"steps": 20} if name == "siglip-t" else {}))
    scorer.fit(kept)
    encoded = policy.frames_encoded
    one = scorer.embed_all(kept)
    assert policy.frames_encoded == encoded
    np.testing.assert_allclose(one, scorer.embed_all(some), rtol=0, atol=1e-5)
    assert policy.frames_encoded - encoded == looks(recomputed(some))
    np.testing.assert_allclose(scorer.rewards(kept), scorer.rewards(some), rtol=0, atol=1e-4)
    # Episodes have embeddings of their own: equal ones would agree whatever they were computed from.
    assert np.ptp(one, axis=0).max() > 1e-3


@pytest.mark.parametrize("grid", [1, 2])
def test_what_scorers_read_is_kept_where_features_are_not(policy: VLAPolicy, grid: int):
    scorer: Scorer = make_scorer("siglip", policy=policy, grid=grid)
    kept = played(policy, None)
    jobs = jobs_for(PROMPTS, 2)
    some = collect(policy, ToyEnvs(4), jobs, 1.0, feature_budget=SOME, patch_averages=scorer.patch_averages)
    assert 4 <= len(recomputed(some)) <= len(some) - 4
    encoded = policy.frames_encoded
    np.testing.assert_allclose(scorer.embed_all(kept), scorer.embed_all(some), rtol=0, atol=1e-6)
    assert policy.frames_encoded == encoded
    # A scorer with another grid has to look again.
    other: Scorer = make_scorer("siglip", policy=policy, grid=3 - grid)
    np.testing.assert_allclose(other.embed_all(kept), other.embed_all(some), rtol=0, atol=1e-6)
    assert policy.frames_encoded - encoded == looks(recomputed(some))
    # Part of an episode has the averages of its own looks.
    whole = next(t for t in recomputed(some) if t.num_looks > 1).features
    assert torch.equal(whole[1:].averages[grid, None], whole.averages[grid, None][1:])


def test_a_whole_update_encodes_each_look_twice_and_no_more():
    sections = {"reward": {"name": "siglip-t", "reference": "bank"}, "grpo": {"feature_budget": 0.0}}
    config = toy_config(**sections)
    policy = toy_policy()
    agent = GRPOAgent(policy, ToyEnvs(4), make_scorer("siglip-t", policy=policy, steps=20), config)
    seen: list[list[Trajectory]] = []
    learned: list[int] = []
    agent.on_rollout = seen.append
    improve = agent.improve
    agent.improve = lambda rows, gain: learned.append(looks(rows)) or improve(rows, gain)
    for _ in range(3):
        before = policy.frames_encoded
        agent.learn_once()
        (trajectories,) = seen
        seen.clear()
        # In the rollout, with the frame behind the last action; and in the update what is learned from.
        assert policy.frames_encoded - before == looks(trajectories) + len(trajectories) + learned.pop()
    assert agent.scorer.fitted
    assert len(agent.bank) > 0


def test_a_budget_that_runs_out_gives_the_same_numbers_again():
    def run() -> tuple[list[dict[str, float]], torch.Tensor, int]:
        agent = make_agent(grpo={"feature_budget": SOME / 2**30, "epochs": 2, "minibatches": 2})
        again: list[int] = []
        agent.on_rollout = lambda trajectories: again.append(len(recomputed(trajectories)))
        metrics = [agent.learn_once() for _ in range(2)]
        assert all(0 < count < 24 for count in again)
        numbers = [{key: value for key, value in one.items() if not key.startswith("time/")} for one in metrics]
        return numbers, weights(agent), agent.policy.frames_encoded

    one, other = run(), run()
    assert one[0] == other[0]
    assert one[0][0]["train/steps"] > 0
    assert torch.equal(one[1], other[1])
    assert one[2] == other[2]


# Activations computed again, and micro-batches


@pytest.mark.parametrize(("budget", "kl_coefficient"), [(None, 0.1), (0, 0.0)])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(budget: int | None, kl_coefficient: float):
    agent = make_agent(grpo={"kl_coefficient": kl_coefficient})
    trajectories = played(agent.policy, budget)
    shift(agent, 0.02)
    plain = loss_and_gradient(agent, trajectories)
    runs = blocks_run(agent.policy)
    agent.policy.gradient_checkpointing = True
    agree(plain, loss_and_gradient(agent, trajectories), 1e-6)
    # The reference's pass has no gradient; nothing is to be computed again there.
    assert len(runs) == (3 if kl_coefficient else 2)
    agent.policy.gradient_checkpointing = False
    runs.clear()
    loss_and_gradient(agent, trajectories)
    assert len(runs) == (2 if kl_coefficient else 1)


def blocks_run(policy: VLAPolicy) -> list[int]:
    """Grows by one each time the language model's only block computes."""
    runs: list[int] = []
    policy.model.language_model.get_decoder().layers[0].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def test_gradient_checkpointing_leaves_the_model_in_evaluation_mode():
    agent = make_agent()
    agent.policy.gradient_checkpointing = True
    loss_and_gradient(agent, played(agent.policy, None))
    assert not any(module.training for module in agent.policy.model.modules())


@pytest.mark.parametrize(("checkpointing", "budget"), [(False, None), (True, SOME)])
def test_the_size_of_micro_batches_changes_no_step(checkpointing: bool, budget: int | None):
    steps = []
    for size in (1, 8, 64):
        agent = make_agent(grpo={"micro_batch": size})
        agent.policy.gradient_checkpointing = checkpointing
        trajectories = played(agent.policy, budget)
        before, taken = weights(agent), []
        agent.optimizer.register_step_pre_hook(lambda *_, agent=agent, taken=taken: taken.append(gradient(agent)))
        stats = agent.improve(trajectories, advantages(trajectories))
        assert stats["train/steps"] == len(taken) == 1
        steps.append((torch.tensor(stats["train/loss"]), taken[0], weights(agent) - before))
    for *slope, change in steps[1:]:
        agree((slope[0], slope[1]), steps[0][:2], 1e-5)
        torch.testing.assert_close(change, steps[0][2], rtol=0, atol=1e-5)
        # AdamW's first step is the learning rate, 0.01, whatever the size of the gradient.
        assert change.abs().median() > 5e-3


# SRPO's way


def log_prob_from_pixels(policy: VLAPolicy, trajectory: Trajectory, temperature: float) -> torch.Tensor:
    """(T, 56) from pixels, by the logits of the whole sequence and vocabulary, of which most are thrown away."""
    assert isinstance(trajectory.features, RecomputedFeatures)
    model, config = policy.model, policy.config
    features = model.encode_images(policy.preprocess(trajectory.features.images)).detach()
    prompt, mask = policy.tokenize([trajectory.instruction] * trajectory.num_looks)
    state = policy.normalize_proprio(trajectory.proprio)
    embeds, mask = model._sequence(features, prompt, mask, state)
    logits = model.language_model.get_output_embeddings()(model._decode(embeds, mask))
    assert logits.shape == (trajectory.num_looks, 1 + 1 + 1 + (prompt.shape[1] - 1) + 56 + 1, len(policy.tokenizer))
    # Action ids are the last 256 of the toy vocabulary; before the stop token stand the 56 that are read.
    logits = logits[:, -57:-1, -256:]
    assert config.first_action_id == len(policy.tokenizer) - 256
    return torch.log_softmax(logits / temperature, dim=-1).gather(-1, trajectory.tokens[..., None])[..., 0]


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_the_loss_is_that_of_pixels_and_all_logits(temperature: float):
    agent = make_agent(grpo={"temperature": temperature})
    jobs = jobs_for(PROMPTS, 2)
    pictures = collect(agent.policy, ToyEnvs(4), jobs, temperature, feature_budget=0)
    kept = collect(agent.policy, ToyEnvs(4), jobs_for(PROMPTS, 2), temperature)
    gains = advantages(kept)
    with torch.no_grad():
        # Old log-probabilities of their own, before anything has changed: SRPO keeps none.
        old = [log_prob_from_pixels(agent.policy, t, temperature) for t in pictures]
    for t, its_old in zip(kept, old, strict=True):
        torch.testing.assert_close(t.log_prob, its_old, rtol=0, atol=1e-5)
    shift(agent, 0.02)
    ours = loss_and_gradient(agent, kept)

    rows = []
    for t, its_old, gain in zip(pictures, old, gains, strict=True):
        alive = torch.arange(56)[None] < 7 * t.executed[:, None]
        ratio = (log_prob_from_pixels(agent.policy, t, temperature) - its_old)[alive].exp()
        rows.append(torch.maximum(-gain * ratio, -gain * ratio.clamp(0.8, 1.28)).mean())
    loss = torch.stack(rows).mean()
    agent.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    agree(ours, (loss.detach(), gradient(agent)), 1e-5)
