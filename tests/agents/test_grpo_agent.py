"""The training loop on a toy world: the invariants of an update, its options, and that it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy_envs import ToyEnvs, toy_config, toy_policy

from vlacoach.agents.batching import cut, look_batches, pad_tokens
from vlacoach.agents.grpo import GRPOAgent
from vlacoach.agents.objectives import clipped_loss, kl_penalty
from vlacoach.agents.sharing import StepSizes
from vlacoach.errors import CheckpointError, NonFiniteError, VlacoachError
from vlacoach.policies import lora
from vlacoach.policies.log_prob import action_log_prob
from vlacoach.rewards import ReferenceBank, Trajectory, make_scorer
from vlacoach.rewards.scorers import SuccessScorer
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.state import load_tree

REDUCTIONS = ["seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


def make_agent(num_envs: int = 4, folder: RunFolder | None = None, **sections: Any) -> GRPOAgent:
    config = toy_config(**sections)
    policy = toy_policy()
    params = {"steps": 20} if config.reward.name == "siglip-t" else {}
    scorer = make_scorer(config.reward.name, policy=policy, **params)
    return GRPOAgent(policy, ToyEnvs(num_envs), scorer, config, folder)


def trained_once(**sections: Any) -> GRPOAgent:
    """An agent whose adapter is no longer zero."""
    agent = make_agent(**sections)
    agent.learn_once()
    return agent


def batch(agent: GRPOAgent) -> tuple[list[Trajectory], np.ndarray]:
    """Informative trajectories of a fresh rollout, and their advantages."""
    trajectories = agent.rollout()
    reward = agent.reward(trajectories)
    kept = agent.informative(trajectories, reward)
    return [trajectories[i] for i in kept], agent.advantage(trajectories, reward)[kept]


def weights(agent: GRPOAgent) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in agent.policy.model.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def whole_loss(
    agent: GRPOAgent, trajectories: Sequence[Trajectory], advantage: np.ndarray
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of an optimizer step whose only micro-batch these are."""
    return agent.loss(trajectories, torch.from_numpy(advantage), agent.token_weights(StepSizes.of(trajectories)))


def gradient(agent: GRPOAgent, trajectories: Sequence[Trajectory], advantage: np.ndarray) -> torch.Tensor:
    agent.optimizer.zero_grad(set_to_none=True)
    loss, _ = whole_loss(agent, trajectories, np.asarray(advantage, dtype=np.float32))
    loss.backward()
    return torch.cat([parameter.grad.flatten().clone() for parameter in agent.parameters])


def stepped(agent: GRPOAgent) -> list[torch.Tensor]:
    """Grows by the gradient, as the optimizer takes it, with each of its steps: afterwards none is left."""
    taken: list[torch.Tensor] = []

    def take(*_: Any) -> None:
        taken.append(torch.cat([parameter.grad.flatten().clone() for parameter in agent.parameters]))

    agent.optimizer.register_step_pre_hook(take)
    return taken


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    """What a run must repeat: everything but the clock."""
    return {key: value for key, value in metrics.items() if not key.startswith("time/")}


def learn(agent: GRPOAgent, updates: int) -> list[dict[str, float]]:
    return [numbers(agent.learn_once()) for _ in range(updates)]


# Invariant 2: the first ratio is 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_ratio_is_one(full: bool, temperature: float):
    agent = trained_once(policy={"full": full}, grpo={"temperature": temperature})
    trajectories, advantage = batch(agent)
    _, stats = whole_loss(agent, trajectories, advantage)
    assert stats["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert stats["ratio_max"] == pytest.approx(1.0, abs=1e-3)
    assert stats["kl"] == pytest.approx(0.0, abs=1e-4)
    assert agent.learn_once()["train/ratio_first"] == pytest.approx(1.0, abs=1e-4)


def test_half_precision_rounds_but_is_no_other_policy():
    agent = make_agent()
    agent.policy.precision = "bf16"
    for metrics in learn(agent, 3):
        assert metrics["train/ratio_deviation"] < 0.02
        assert metrics["train/ratio_first"] == pytest.approx(1.0, abs=0.02)


def test_a_policy_changed_between_rollout_and_update_is_refused():
    agent = trained_once()
    trajectories, advantage = batch(agent)
    with torch.no_grad():
        for parameter in agent.parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    before = weights(agent)
    with pytest.raises(VlacoachError, match="first probability ratio"):
        agent.improve(trajectories, advantage)
    assert not differing(before, weights(agent))


def test_dropout_in_the_update_is_refused():
    agent = trained_once(grpo={"learning_rate": 3e-2, "epochs": 4})
    trajectories, advantage = batch(agent)
    for module in agent.policy.model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(0.5)
    agent.policy.model.train()
    before = weights(agent)
    with pytest.raises(VlacoachError, match="dropout"):
        agent.improve(trajectories, advantage)
    assert not differing(before, weights(agent))
    agent.policy.model.eval()
    agent.improve(trajectories, advantage)
    assert differing(before, weights(agent))


def test_tokens_that_did_not_act_are_refused():
    agent = make_agent()
    trajectories, advantage = batch(agent)
    other = [replace(t, tokens=(t.tokens + 128) % 256) for t in trajectories]
    with pytest.raises(VlacoachError, match="What is being trained is not what acted"):
        agent.improve(other, advantage)


# Invariant 3: groups


@pytest.mark.parametrize("normalize_std", [True, False])
def test_advantages_of_a_group_sum_to_zero(normalize_std: bool):
    agent = make_agent(grpo={"normalize_std": normalize_std})
    trajectories = agent.rollout()
    advantage = agent.advantage(trajectories, agent.reward(trajectories))
    group = np.array([t.group for t in trajectories])
    success = np.array([t.success for t in trajectories])
    for number in range(6):
        rows = group == number
        assert {(t.task, t.init_state) for t, row in zip(trajectories, rows, strict=True) if row} == {
            (prompt.task, prompt.init_state) for prompt in [agent.prompts.draw(number, 1)[0]]
        }
        assert advantage[rows].sum() == pytest.approx(0.0, abs=1e-5)
        if success[rows].all() or not success[rows].any():
            assert (advantage[rows] == 0.0).all()
        else:
            assert (advantage[rows & success] > 0).all()
            assert (advantage[rows & ~success] < 0).all()
    # Both kinds of group were there to be looked at.
    assert (advantage == 0).any()
    assert (advantage != 0).any()


def test_a_group_without_variance_does_not_enter():
    agent = make_agent()
    trajectories = agent.rollout()
    kept = agent.informative(trajectories, agent.reward(trajectories))
    outcomes: dict[int, set[bool]] = {}
    for t in trajectories:
        outcomes.setdefault(t.group, set()).add(t.success)
    mixed = [i for i, t in enumerate(trajectories) if len(outcomes[t.group]) == 2]
    assert kept == mixed
    assert 0 < len(kept) < len(trajectories)


def test_an_update_without_an_informative_group_changes_nothing():
    agent = make_agent(grpo={"filter_low": 0.0, "filter_high": 0.0})
    before = weights(agent)
    trajectories = [t for t in agent.rollout() if not t.success]
    assert agent.improve([], np.zeros(0, np.float32))["train/steps"] == 0
    advantage = agent.advantage(trajectories, np.zeros(len(trajectories)))
    assert (advantage == 0).all()
    agent.improve(trajectories, advantage)
    assert not differing(before, weights(agent))


def test_groups_that_failed_stay_where_their_rewards_differ():
    for keep_graded in (False, True):
        agent = make_agent(grpo={"keep_graded": keep_graded})
        failed = [replace(t, success=False, group=0) for t in agent.rollout()[:4]]
        flat = [replace(t, success=False, group=1) for t in failed]
        solved = [replace(t, success=True, group=2) for t in failed]
        reward = np.array([0.1, 0.2, 0.3, 0.4, 0.2, 0.2, 0.2, 0.2, 1.0, 1.0, 1.0, 1.0])
        assert agent.informative([*failed, *flat, *solved], reward) == ([0, 1, 2, 3] if keep_graded else [])


def test_the_filter_keeps_groups_between_its_bounds():
    agent = make_agent(grpo={"filter_low": 0.3, "filter_high": 0.6})
    some = agent.rollout()[0]
    trajectories = [
        replace(some, group=wins, success=sample < wins, slot=4 * wins + sample)
        for wins in range(5)
        for sample in range(4)
    ]
    kept = agent.informative(trajectories, agent.reward(trajectories))
    assert {trajectories[i].group for i in kept} == {2}


# Invariant 4: what enters the gradient


def after_the_end(trajectory: Trajectory, seed: int) -> Trajectory:
    """The same episode with other tokens and log-probabilities where nothing was executed any more."""
    generator = torch.Generator().manual_seed(seed)
    dead = torch.arange(56)[None] >= 7 * trajectory.executed[:, None]
    tokens = torch.randint(0, 256, trajectory.tokens.shape, generator=generator)
    log_prob = -20.0 * torch.rand(trajectory.log_prob.shape, generator=generator)
    return replace(
        trajectory,
        tokens=torch.where(dead, tokens, trajectory.tokens),
        log_prob=torch.where(dead, log_prob, trajectory.log_prob),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tokens_after_the_end_change_nothing(reduction: str):
    agent = trained_once(grpo={"reduction": reduction, "kl_coefficient": 0.1})
    trajectories, advantage = batch(agent)
    changed = [after_the_end(t, seed) for seed, t in enumerate(trajectories)]
    assert sum(int((a.tokens != b.tokens).sum()) for a, b in zip(trajectories, changed, strict=True)) > 50
    assert torch.equal(gradient(agent, trajectories, advantage), gradient(agent, changed, advantage))
    assert whole_loss(agent, trajectories, advantage)[1] == whole_loss(agent, changed, advantage)[1]


def test_a_token_before_the_end_does_change_the_gradient():
    agent = make_agent()
    trajectories, advantage = batch(agent)
    first = trajectories[0]
    last = 7 * int(first.executed[-1]) - 1
    tokens = first.tokens.clone()
    tokens[-1, last] = (tokens[-1, last] + 100) % 256
    changed = [replace(first, tokens=tokens), *trajectories[1:]]
    assert not torch.equal(gradient(agent, trajectories, advantage), gradient(agent, changed, advantage))


def test_successes_and_failures_both_have_a_gradient():
    agent = make_agent()
    trajectories, advantage = batch(agent)
    success = np.array([t.success for t in trajectories])
    of_successes = gradient(agent, trajectories, np.where(success, advantage, 0))
    of_failures = gradient(agent, trajectories, np.where(success, 0, advantage))
    assert of_successes.abs().max() > 1e-5
    assert of_failures.abs().max() > 1e-5
    both = gradient(agent, trajectories, advantage)
    torch.testing.assert_close(of_successes + of_failures, both, rtol=1e-3, atol=1e-7)


def test_the_update_makes_successes_likelier_and_failures_less_likely():
    agent = make_agent(grpo={"learning_rate": 1e-3})
    trajectories, advantage = batch(agent)
    agent.improve(trajectories, advantage)
    log_prob, _ = agent.log_prob(trajectories)
    padded = pad_tokens(trajectories, 8, 7)
    change = log_prob.detach() - torch.cat([t.log_prob for t in trajectories])
    gain = (padded.scatter(change) * padded.mask).sum(-1) / padded.mask.sum(-1)
    assert float((gain * torch.from_numpy(advantage)).mean()) > 0


def test_the_loss_is_that_of_the_papers():
    agent = trained_once(grpo={"reduction": "seq-mean-token-mean"})
    trajectories, advantage = batch(agent)
    with torch.no_grad():
        for parameter in agent.parameters:
            parameter *= 1.3
    rows = []
    for t, gain in zip(trajectories, advantage, strict=True):
        logits = agent.policy.logits(t.features, [t.instruction] * t.num_looks, t.proprio)
        log_prob, _ = action_log_prob(logits, t.tokens, 1.0)
        alive = torch.arange(56)[None] < 7 * t.executed[:, None]
        ratio = (log_prob - t.log_prob).exp()[alive]
        rows.append(torch.maximum(-gain * ratio, -gain * ratio.clamp(0.8, 1.28)).mean())
    loss, _ = whole_loss(agent, trajectories, advantage)
    assert loss.item() == pytest.approx(torch.stack(rows).mean().item(), abs=1e-6)


# Invariant 5: nothing that is not finite gets through


class BrokenScorer(SuccessScorer):
    def rewards(self, trajectories: Sequence[Trajectory], bank: ReferenceBank | None = None) -> np.ndarray:
        reward = super().rewards(trajectories, bank)
        reward[3] = np.nan
        return reward


def break_weight(agent: GRPOAgent) -> None:
    with torch.no_grad():
        agent.parameters[1][0, 0] = float("nan")


def break_tower(agent: GRPOAgent) -> None:
    with torch.no_grad():
        next(agent.policy.model.vision_tower.parameters())[0] = float("inf")


def break_reward(agent: GRPOAgent) -> None:
    agent.scorer = BrokenScorer()


def break_gradient(agent: GRPOAgent) -> None:
    agent.parameters[2].register_hook(lambda grad: torch.full_like(grad, float("inf")))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (break_weight, "log-probability of the rollout"),
        (break_tower, "vision feature of the rollout"),
        (break_reward, "reward is not finite: 1 of 24"),
        (break_gradient, "gradient's norm"),
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_what_is_not_finite_stops_the_update(damage: Callable[[GRPOAgent], None], named: str, full: bool):
    agent = trained_once(policy={"full": full})
    damage(agent)
    before, state, update = weights(agent), str(agent.optimizer.state_dict()), agent.update
    with pytest.raises(NonFiniteError, match=named):
        agent.learn_once()
    after = weights(agent)
    assert all(torch.equal(before[name].nan_to_num(7.0), after[name].nan_to_num(7.0)) for name in before)
    assert str(agent.optimizer.state_dict()) == state
    assert agent.update == update


@pytest.mark.parametrize("field", ["features", "log_prob", "proprio"])
def test_a_trajectory_that_is_not_finite_stops_the_update(field: str):
    agent = trained_once()
    trajectories, advantage = batch(agent)
    broken = getattr(trajectories[2], field).clone()
    broken.view(-1)[0] = float("nan")
    trajectories[2] = replace(trajectories[2], **{field: broken})
    before, state = weights(agent), str(agent.optimizer.state_dict())
    with pytest.raises(NonFiniteError, match="loss is not finite"):
        agent.improve(trajectories, advantage)
    assert not differing(before, weights(agent))
    assert str(agent.optimizer.state_dict()) == state


def test_a_feature_that_is_not_finite_stops_the_scorer_and_names_the_slot():
    agent = make_agent(reward={"name": "siglip"})
    trajectories = agent.rollout()
    broken = trajectories[5].features.clone()
    broken[0, 0, 0] = float("nan")
    trajectories[5] = replace(trajectories[5], features=broken)
    with pytest.raises(NonFiniteError, match="slot 5"):
        agent.reward(trajectories)


# Micro-batches, mini-batches, epochs


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_size_of_micro_batches_changes_nothing(reduction: str, kl_coefficient: float):
    gradients, stats = [], []
    for micro_batch in (1000, 7, 1):
        agent = trained_once(grpo={"epochs": 2, "max_grad_norm": 1e9})
        grpo = {"reduction": reduction, "kl_coefficient": kl_coefficient}
        agent.config, agent.micro_batch = toy_config(grpo={"max_grad_norm": 1e9, **grpo}), micro_batch
        trajectories, advantage = batch(agent)
        assert len({t.num_looks for t in trajectories}) == 3
        taken = stepped(agent)
        stats.append(agent.improve(trajectories, advantage))
        gradients += taken
    for other, numbers in zip(gradients[1:], stats[1:], strict=True):
        assert (gradients[0] - other).norm() <= 1e-5 * gradients[0].norm()
        assert numbers == pytest.approx(stats[0], rel=1e-4, abs=1e-5)


def test_passes_are_full_and_hold_every_look_once():
    assert look_batches([3, 1, 6], 4) == [[(0, 0, 3), (1, 0, 1)], [(2, 0, 4)], [(2, 4, 6)]]
    assert look_batches([2, 2], 3) == [[(0, 0, 2), (1, 0, 1)], [(1, 1, 2)]]
    assert look_batches([2, 1], 1) == [[(0, 0, 1)], [(0, 1, 2)], [(1, 0, 1)]]
    assert look_batches([], 4) == []
    assert look_batches([1, 1, 1], 1000) == [[(0, 0, 1), (1, 0, 1), (2, 0, 1)]]


def test_a_piece_of_a_trajectory_is_some_of_its_looks():
    whole = max(make_agent().rollout(), key=lambda one: one.num_looks)
    assert cut(whole, 0, whole.num_looks) is whole
    pieces = [cut(whole, 0, 1), cut(whole, 1, whole.num_looks)]
    for name in ("features", "proprio", "tokens", "log_prob", "executed"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
    assert sum(piece.length for piece in pieces) == whole.length


def test_tokens_are_laid_out_by_trajectory():
    trajectories = make_agent().rollout()[:8]
    padded = pad_tokens(trajectories, 8, 7)
    rows = padded.scatter(torch.cat([t.log_prob for t in trajectories]))
    longest = max(t.num_looks for t in trajectories)
    assert rows.shape == padded.mask.shape == (8, 56 * longest)
    for row, mask, t in zip(rows, padded.mask, trajectories, strict=True):
        assert torch.equal(row[: 56 * t.num_looks], t.log_prob.flatten())
        assert not row[56 * t.num_looks :].any()
        assert int(mask.sum()) == 7 * t.length


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_each_epoch_uses_every_trajectory_once(epochs: int, minibatches: int, monkeypatch: pytest.MonkeyPatch):
    agent = make_agent(grpo={"epochs": epochs, "minibatches": minibatches, "micro_batch": 1000})
    trajectories, advantage = batch(agent)
    used: list[list[int]] = []
    compute = agent.loss

    def record(part: Sequence[Trajectory], gain: torch.Tensor, weight: torch.Tensor) -> Any:
        used.append([t.slot for t in part])
        by_slot = {t.slot: float(a) for t, a in zip(trajectories, advantage, strict=True)}
        assert gain.tolist() == [by_slot[t.slot] for t in part]
        return compute(part, gain, weight)

    monkeypatch.setattr(agent, "loss", record)
    stats = agent.improve(trajectories, advantage)
    assert stats["train/steps"] == epochs * minibatches == len(used)
    everyone = sorted(t.slot for t in trajectories)
    passes = [[slot for step in used[i * minibatches :][:minibatches] for slot in step] for i in range(epochs)]
    assert all(sorted(one) == everyone for one in passes)
    if epochs > 1:
        assert passes[0] != passes[1]


def test_fewer_trajectories_than_minibatches_make_fewer_steps():
    agent = make_agent(grpo={"minibatches": 50})
    trajectories, advantage = batch(agent)
    assert agent.improve(trajectories[:3], advantage[:3])["train/steps"] == 3


def test_target_kl_ends_the_passes_early():
    grpo = {"epochs": 6, "learning_rate": 3e-2}
    free = make_agent(grpo=grpo)
    assert free.learn_once()["train/steps"] == 6
    bounded = make_agent(grpo={**grpo, "target_kl": 1e-4})
    # The first pass begins at a divergence of 0, so it takes a second one to notice.
    assert 2 <= bounded.learn_once()["train/steps"] < 6
    patient = make_agent(grpo={**grpo, "target_kl": 1e3})
    assert patient.learn_once()["train/steps"] == 6


def test_no_gradient_is_left_when_the_rollout_begins():
    agent = make_agent(grpo={"minibatches": 2})
    trajectories, advantage = batch(agent)
    taken = stepped(agent)
    agent.improve(trajectories, advantage)
    assert len(taken) == 2
    assert all(one.any() for one in taken)
    assert all(parameter.grad is None for parameter in agent.policy.model.parameters())


def test_the_learning_rate_warms_up():
    agent = make_agent(grpo={"warmup_updates": 3, "learning_rate": 1e-3})
    rates = [metrics["train/learning_rate"] for metrics in learn(agent, 5)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_the_gradient_is_scaled_down_to_its_limit():
    agent = make_agent(grpo={"max_grad_norm": 1e-3})
    trajectories, advantage = batch(agent)
    taken = stepped(agent)
    assert agent.improve(trajectories, advantage)["train/gradient_norm"] > 1e-3
    (clipped,) = taken
    assert clipped.norm().item() == pytest.approx(1e-3, rel=1e-2)


# The reference policy


def test_the_reference_is_the_policy_without_its_adapter():
    agent = make_agent(grpo={"kl_coefficient": 0.5})
    trajectories, advantage = batch(agent)
    _, stats = whole_loss(agent, trajectories, advantage)
    assert stats["reference_kl"] == pytest.approx(0.0, abs=1e-8)  # The adapter is still zero.
    agent = trained_once(grpo={"kl_coefficient": 0.5, "epochs": 3, "learning_rate": 3e-2})
    trajectories, advantage = batch(agent)
    loss, stats = whole_loss(agent, trajectories, advantage)
    padded = pad_tokens(trajectories, 8, 7)
    untrained = toy_policy()
    instructions = [t.instruction for t in trajectories for _ in range(t.num_looks)]
    features, proprio = (torch.cat([getattr(t, name) for t in trajectories]) for name in ("features", "proprio"))
    tokens = torch.cat([t.tokens for t in trajectories])
    reference, _ = action_log_prob(untrained.logits(features, instructions, proprio), tokens)
    now, _ = agent.log_prob(trajectories)
    rows = [padded.scatter(values) for values in (now, torch.cat([t.log_prob for t in trajectories]), reference)]
    plain, _ = clipped_loss(rows[0], rows[1], torch.from_numpy(advantage), padded.mask)
    divergence = kl_penalty(rows[0], rows[2], padded.mask)
    assert stats["reference_kl"] == pytest.approx(divergence.item(), rel=1e-3)
    assert stats["reference_kl"] > 1e-4
    assert loss.item() == pytest.approx((plain + 0.5 * divergence).item(), abs=1e-5)


def test_the_kl_term_pulls_back_to_the_reference():
    agent = trained_once(grpo={"kl_coefficient": 1.0, "epochs": 3, "learning_rate": 3e-2})
    agent.config = toy_config(grpo={"kl_coefficient": 1.0, "epochs": 8, "learning_rate": 3e-3})
    trajectories, advantage = batch(agent)
    nothing = np.zeros_like(advantage)
    _, before = whole_loss(agent, trajectories, nothing)
    agent.improve(trajectories, nothing)
    _, after = whole_loss(agent, trajectories, nothing)
    assert after["reference_kl"] < 0.8 * before["reference_kl"]


# Which weights are trained


@pytest.mark.parametrize("full", [False, True])
def test_only_the_language_model_is_trained(full: bool):
    agent = make_agent(policy={"full": full})
    before = weights(agent)
    agent.learn_once()
    changed = differing(before, weights(agent))
    assert changed
    assert all("language_model" in name for name in changed)
    assert all(("lora_" in name) != full for name in changed)


def test_an_adapter_that_is_there_is_trained_on():
    policy = lora.add_lora(toy_policy(), rank=2, alpha=4, seed=5)
    agent = GRPOAgent(policy, ToyEnvs(4), make_scorer("success"), toy_config())
    assert {len(parameter) for parameter in agent.parameters[::2]} == {2}


def test_the_tower_runs_once_a_frame():
    agent = make_agent(reward={"name": "siglip"}, grpo={"epochs": 3, "kl_coefficient": 0.1})
    frames: list[int] = []
    rollout = agent.rollout

    def counted() -> list[Trajectory]:
        trajectories = rollout()
        frames.append(sum(t.num_looks + 1 for t in trajectories))
        return trajectories

    agent.rollout = counted  # type: ignore[method-assign]
    learn(agent, 2)
    assert agent.policy.frames_encoded == sum(frames)


# Invariant 8: the same numbers


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("reward", ["success", "siglip-t"])
def test_the_same_seed_gives_the_same_numbers(full: bool, reward: str):
    sections: dict[str, Any] = {"policy": {"full": full}, "reward": {"name": reward, "refit_every": 2}}
    torch.manual_seed(1)
    np.random.seed(1)
    one = make_agent(**sections)
    history = learn(one, 3)
    torch.manual_seed(2)
    two = make_agent(**sections)
    assert learn(two, 3) == history
    assert not differing(weights(one), weights(two))
    other = make_agent(**sections, seed=1)
    assert learn(other, 3) != history


def test_the_number_of_worlds_changes_only_rounding():
    one, two = make_agent(num_envs=3), make_agent(num_envs=11)
    first, second = learn(one, 1)[0], learn(two, 1)[0]
    assert first == pytest.approx(second, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("reward", ["success", "siglip", "siglip-t"])
def test_stopping_and_resuming_gives_the_numbers_of_not_stopping(full: bool, reward: str, tmp_path):
    sections: dict[str, Any] = {
        "policy": {"full": full},
        "reward": {"name": reward, "refit_every": 3},
        "grpo": {"epochs": 2, "minibatches": 2, "warmup_updates": 3},
    }
    whole = make_agent(**sections)
    history = learn(whole, 4)
    first = make_agent(**sections)
    assert learn(first, 2) == history[:2]
    first.save(tmp_path)
    second = make_agent(**sections)
    second.load(tmp_path)
    assert second.update == 2
    assert learn(second, 2) == history[2:]
    assert not differing(weights(whole), weights(second))
    second.save(tmp_path / "second")
    whole.save(tmp_path / "whole")
    states = [load_tree(tmp_path / name / "training_state") for name in ("second", "whole")]
    assert str(states[0]) == str(states[1])


@pytest.mark.parametrize("reward", ["siglip", "siglip-t"])
def test_stopping_and_resuming_keeps_the_bank(reward: str, tmp_path):
    sections: dict[str, Any] = {
        "reward": {"name": reward, "reference": "bank", "bank_size": 5, "refit_every": 3},
        "grpo": {"keep_graded": True},
    }
    whole = make_agent(**sections)
    history = learn(whole, 4)
    first = make_agent(**sections)
    assert learn(first, 2) == history[:2]
    first.save(tmp_path)
    second = make_agent(**sections)
    second.load(tmp_path)
    assert learn(second, 2) == history[2:]
    assert not differing(weights(whole), weights(second))
    for one, other in zip(*(agent.bank.embeddings(agent.scorer) for agent in (whole, second)), strict=True):
        np.testing.assert_array_equal(one, other)
    # What was in the bank did decide rewards: without it, other numbers follow.
    third = make_agent(**sections)
    third.load(tmp_path)
    third.bank = ReferenceBank(5)
    assert learn(third, 2) != history[2:]


def test_loading_goes_back_as_well_as_on(tmp_path):
    agent = make_agent()
    agent.learn_once()
    agent.save(tmp_path)
    history = learn(agent, 2)
    agent.load(tmp_path)
    assert agent.update == 1
    assert learn(agent, 2) == history


# Learning


@pytest.mark.parametrize("full", [False, True])
def test_it_learns(full: bool):
    policy = {"full": full, "lora_rank": 16, "lora_alpha": 16}
    grpo = {"prompts": 16, "group_size": 8, "learning_rate": 1e-2 if full else 2e-2, "minibatches": 2}
    agent = make_agent(num_envs=64, policy=policy, grpo=grpo)
    success = [metrics["rollout/success"] for metrics in learn(agent, 12)]
    assert success[0] < 0.6
    assert np.mean(success[-3:]) > 0.9


@pytest.mark.parametrize("reward", ["success", "siglip", "siglip-t"])
@pytest.mark.parametrize("keep_graded", [False, True])
def test_every_scorer_runs_an_update(reward: str, keep_graded: bool):
    agent = make_agent(reward={"name": reward}, grpo={"keep_graded": keep_graded})
    metrics = agent.learn_once()
    assert 0 < metrics["rollout/success"] < 1
    assert metrics["train/steps"] == 1
    assert all(np.isfinite(list(metrics.values())))
    assert (metrics["reward/failure_mean"] > 0) == (reward != "success")
    assert ("scorer/loss_after" in metrics) == (reward == "siglip-t")


def test_a_scorer_that_saw_no_success_leaves_the_outcomes():
    agent = make_agent(reward={"name": "siglip-t"})
    failures = [t for t in agent.rollout() if not t.success]
    assert agent.fit_scorer(failures) == {}
    assert not agent.reward(failures).any()


def test_a_scorer_is_fitted_at_its_intervals():
    agent = make_agent(reward={"name": "siglip-t", "refit_every": 2})
    fitted = ["scorer/loss_after" in metrics for metrics in learn(agent, 5)]
    assert fitted == [True, False, True, False, True]
    agent = make_agent(reward={"name": "siglip-t", "refit_every": 0})
    assert ["scorer/loss_after" in metrics for metrics in learn(agent, 3)] == [True, False, False]


# References that outlive a batch


@pytest.mark.parametrize("reward", ["siglip", "siglip-t"])
def test_groups_that_all_failed_are_graded_once_a_success_is_known(reward: str):
    for reference in ("batch", "bank"):
        agent = make_agent(reward={"name": reward, "reference": reference}, grpo={"keep_graded": True})
        agent.learn_once()
        failures = [replace(t, success=False) for t in agent.rollout()]
        score = agent.reward(failures)
        kept = agent.informative(failures, score)
        advantage = agent.advantage(failures, score)
        if reference == "batch":
            assert not score.any()
            assert kept == []
            assert not advantage.any()
        else:
            np.testing.assert_array_equal(score, agent.scorer.rewards(failures, agent.bank))
            assert score.max() > 0.5
            assert kept == list(range(len(failures)))
            assert (advantage != 0).all()
            agent.config = toy_config(grpo={"keep_graded": False})
            assert agent.informative(failures, score) == []


def test_successes_enter_the_bank_after_they_were_scored():
    agent = make_agent(reward={"name": "siglip", "reference": "bank"})
    plain = make_agent(reward={"name": "siglip"})
    # Were they there already, the first update's successes would count twice.
    assert learn(agent, 1) == learn(plain, 1)
    assert plain.bank is None
    before, trajectories = len(agent.bank), agent.rollout()
    agent.remember(trajectories)
    assert len(agent.bank) == before + sum(t.success for t in trajectories) > before


def test_the_bank_is_bounded():
    agent = make_agent(reward={"name": "siglip", "reference": "bank", "bank_size": 3})
    learn(agent, 3)
    _, tasks = agent.bank.embeddings(agent.scorer)
    assert tasks.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_checkpoint_without_a_bank_is_refused_where_one_is_needed(tmp_path):
    make_agent(reward={"name": "siglip"}).save(tmp_path)
    with pytest.raises(CheckpointError, match="No bank of references"):
        make_agent(reward={"name": "siglip", "reference": "bank"}).load(tmp_path)


def test_the_plain_outcome_keeps_no_bank():
    agent = make_agent(reward={"name": "success", "reference": "bank"})
    agent.learn_once()
    assert agent.bank is None


# Broken episodes, counting, and what is written down


def test_broken_episodes_are_neither_scored_nor_trained_on():
    agent = make_agent(reward={"name": "siglip-t"})
    agent.envs = ToyEnvs(4, broken=(2, 3, 5, 8, 9, 11))
    trajectories = agent.rollout()
    assert any(not t.valid for t in trajectories)
    agent.fit_scorer(trajectories)
    reward = agent.reward(trajectories)
    kept = agent.informative(trajectories, reward)
    advantage = agent.advantage(trajectories, reward)
    for i, t in enumerate(trajectories):
        if not t.valid:
            assert i not in kept
            assert reward[i] == advantage[i] == 0.0
    for group in {t.group for t in trajectories}:
        assert sum(advantage[i] for i, t in enumerate(trajectories) if t.group == group) == pytest.approx(0, abs=1e-5)
    agent.envs = ToyEnvs(4, broken=tuple(range(15)))
    metrics = agent.learn_once()
    assert metrics["rollout/invalid"] > 0
    assert metrics["rollout/episodes"] + metrics["rollout/invalid"] == 24


def test_an_update_in_which_everything_broke_changes_no_weight():
    agent = make_agent()
    agent.envs = ToyEnvs(4, broken=tuple(range(0, 15)))
    agent.config = toy_config(env={"states": [0, 3, 6]})
    agent.prompts = type(agent.prompts)((0, 1), (0, 3, 6), 0)
    before = weights(agent)
    metrics = agent.learn_once()
    assert metrics["rollout/episodes"] == 0
    assert metrics["train/steps"] == 0
    assert agent.update == 1
    assert not differing(before, weights(agent))


def test_learn_counts_updates_in_all():
    agent = make_agent(grpo={"updates": 2})
    agent.learn(0)
    assert agent.update == 0
    agent.learn(1)
    assert agent.update == 1
    agent.learn()
    assert agent.update == 2
    agent.learn()
    assert agent.update == 2


def test_prompts_go_on_where_the_last_update_ended():
    agent = make_agent()
    dealt = []
    for _ in range(3):
        dealt += [(t.task, t.init_state) for t in agent.rollout()[::4]]
        agent.update += 1
    assert dealt == [(prompt.task, prompt.init_state) for prompt in agent.prompts.draw(0, 18)]
    assert len(set(dealt)) == 18


def test_metrics_and_episodes_are_written_down(tmp_path):
    with RunFolder.create(tmp_path, "toy", toy_config()) as folder:
        agent = make_agent(folder=folder, reward={"name": "siglip"})
        metrics = [agent.learn_once() for _ in range(2)]
        lines = folder.metrics()
        assert [line["step"] for line in lines] == [1, 2]
        assert {key: lines[1][key] for key in metrics[1]} == metrics[1]
        episodes = folder.episodes()
    assert len(episodes) == 48
    last = [line for line in episodes if line["step"] == 2]
    assert np.mean([line["success"] for line in last]) == pytest.approx(metrics[1]["rollout/success"])
    assert np.mean([line["reward"] for line in last]) == pytest.approx(metrics[1]["reward/mean"], abs=1e-5)
    assert sum(line["length"] for line in last) == metrics[1]["rollout/env_steps"]
    assert [line["slot"] for line in last] == list(range(24))
    groups = {group: [line["success"] for line in last if line["group"] == group] for group in range(6)}
    assert metrics[1]["rollout/groups"] == 6
    assert metrics[1]["rollout/groups_all_failed"] == sum(not any(group) for group in groups.values())
    assert metrics[1]["rollout/groups_all_succeeded"] == sum(all(group) for group in groups.values())
    assert metrics[1]["rollout/groups_kept"] == sum(any(group) and not all(group) for group in groups.values())
