"""What a rollout records: what acted, what was seen, in its own slot (invariants 1 and 6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_envs import ToyEnvs, chunks_of, decisive_actions, jobs_for, picture, play, proprioception, succeeds

from vlacoach.agents.prompts import Prompt
from vlacoach.agents.rollout import collect
from vlacoach.errors import ConfigError, NonFiniteError
from vlacoach.policies import VLAPolicy
from vlacoach.policies.log_prob import action_log_prob
from vlacoach.rewards.trajectory import Trajectory

PROMPTS = [Prompt(task, state) for task in (0, 1) for state in range(6)]


def chunks(policy: VLAPolicy, trajectory: Trajectory) -> list[np.ndarray]:
    """The actions that were executed, look by look, decoded from the stored tokens."""
    actions = policy.actions(trajectory.tokens).numpy()
    return [chunk[:count] for chunk, count in zip(actions, trajectory.executed.tolist(), strict=True)]


def seen(policy: VLAPolicy, trajectory: Trajectory) -> list[tuple[int, int, np.ndarray]]:
    """What the world looked like at each look, and at the end, worked out from the stored tokens."""
    ran = chunks(policy, trajectory)
    histories = [np.concatenate([np.zeros((0, 7), np.float32), *ran[:look]]) for look in range(len(ran) + 1)]
    return [(trajectory.task, trajectory.init_state, history) for history in histories]


def same(one: list[Trajectory], other: list[Trajectory]) -> None:
    """Equal episodes; sums over a batch of another size may round differently."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.task, a.init_state, a.group, a.slot, a.instruction) == (
            b.task,
            b.init_state,
            b.group,
            b.slot,
            b.instruction,
        )
        assert (a.success, a.length, a.valid) == (b.success, b.length, b.valid)
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.executed, b.executed)
        assert torch.equal(a.proprio, b.proprio)
        torch.testing.assert_close(a.log_prob, b.log_prob, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.features, b.features, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.terminal_features, b.terminal_features, rtol=0, atol=1e-5)


def test_the_stored_tokens_are_the_ones_that_acted(policy: VLAPolicy):
    trajectories = play(policy, PROMPTS, samples=3)
    assert {t.success for t in trajectories} == {True, False}
    for t in trajectories:
        outcomes = [
            succeeds(t.task, chunk) for chunk in policy.actions(t.tokens).numpy()[:, : decisive_actions(t.init_state)]
        ]
        # The world judged other actions than these if one of its decisions does not follow from them.
        assert outcomes == [False] * (t.num_looks - 1) + [t.success]


def test_recorded_log_probabilities_are_those_of_the_stored_tokens(policy: VLAPolicy):
    for temperature in (1.0, 0.7):
        for t in play(policy, PROMPTS, temperature=temperature):
            logits = policy.logits(t.features, [t.instruction] * t.num_looks, t.proprio)
            expected, _ = action_log_prob(logits, t.tokens, temperature)
            torch.testing.assert_close(t.log_prob, expected.detach(), rtol=0, atol=1e-5)


def test_features_are_those_of_each_look_in_its_own_slot(policy: VLAPolicy):
    trajectories = play(policy, PROMPTS, samples=3)
    for slot, t in enumerate(trajectories):
        assert t.slot == slot
        views = seen(policy, t)
        expected = policy.encode(np.stack([picture(*view) for view in views]))
        torch.testing.assert_close(t.features, expected[:-1], rtol=0, atol=1e-5)
        torch.testing.assert_close(t.terminal_features, expected[-1], rtol=0, atol=1e-5)
        states = np.stack([proprioception(*view) for view in views[:-1]])
        assert torch.equal(t.proprio, torch.from_numpy(states))


def test_siblings_have_frames_of_their_own(policy: VLAPolicy):
    siblings = play(policy, [Prompt(0, 2)], samples=6)
    assert len({t.group for t in siblings}) == 1
    for i, one in enumerate(siblings):
        for other in siblings[:i]:
            assert not torch.equal(one.tokens[0], other.tokens[0])
            torch.testing.assert_close(one.features[0], other.features[0], rtol=0, atol=1e-5)
            assert (one.terminal_features - other.terminal_features).abs().max() > 1e-3


def test_each_frame_is_encoded_once_and_the_last_too(policy: VLAPolicy):
    trajectories = play(policy, PROMPTS, samples=2)
    assert policy.frames_encoded == sum(t.num_looks + 1 for t in trajectories)


def test_without_features_the_last_frame_is_not_encoded(policy: VLAPolicy):
    trajectories = collect(policy, ToyEnvs(4), jobs_for(PROMPTS), 1.0, keep_features=False)
    assert policy.frames_encoded == sum(t.num_looks for t in trajectories)
    assert all(t.features.shape[:2] == (t.num_looks, 0) and t.terminal_features is None for t in trajectories)
    same_tokens = [torch.equal(a.tokens, b.tokens) for a, b in zip(trajectories, play(policy, PROMPTS), strict=True)]
    assert all(same_tokens)


@pytest.mark.parametrize("num_envs", [1, 3, 12, 40])
def test_episodes_do_not_depend_on_the_number_of_worlds(policy: VLAPolicy, num_envs: int):
    same(play(policy, PROMPTS, samples=2, num_envs=4), play(policy, PROMPTS, samples=2, num_envs=num_envs))


def test_episodes_do_not_depend_on_their_neighbors(policy: VLAPolicy):
    jobs = jobs_for(PROMPTS, samples=2)
    together = {t.slot: t for t in collect(policy, ToyEnvs(5), jobs, 1.0)}
    some = [job for job in jobs_for(PROMPTS, samples=2) if job.slot % 5 == 0][::-1]
    apart = collect(policy, ToyEnvs(2), some, 1.0)
    assert [t.slot for t in apart] == [job.slot for job in some]
    same(apart, [together[t.slot] for t in apart])


def test_the_global_random_state_plays_no_part(policy: VLAPolicy):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = play(policy, PROMPTS)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    same(one, play(policy, PROMPTS))


def test_executed_actions_are_counted_to_the_end_of_the_episode(policy: VLAPolicy):
    trajectories = play(policy, PROMPTS, samples=4)
    for t in trajectories:
        assert t.executed[:-1].tolist() == [8] * (t.num_looks - 1)
        assert t.length == int(t.executed.sum())
        if t.success:
            assert int(t.executed[-1]) == decisive_actions(t.init_state)
        else:
            assert t.length == 8 * chunks_of(t.init_state)
    assert {t.num_looks for t in trajectories} == {1, 2, 3}
    assert any(t.success and int(t.executed[-1]) < 8 for t in trajectories)


def test_greedy_siblings_are_equal_and_carry_the_likeliest_tokens(policy: VLAPolicy):
    first, second = play(policy, [Prompt(1, 2)], samples=2, temperature=0.0)
    assert torch.equal(first.tokens, second.tokens)
    logits = policy.logits(first.features, [first.instruction] * first.num_looks, first.proprio)
    assert torch.equal(first.tokens, logits.argmax(-1))


def test_an_episode_that_broke_down_is_marked_and_its_empty_chunk_dropped(policy: VLAPolicy):
    prompts = [Prompt(0, 3), Prompt(0, 2)]  # One chunk, and three.
    envs = ToyEnvs(4, broken=(3, 2))
    jobs = jobs_for(prompts, samples=8)
    trajectories = collect(policy, envs, jobs, 1.0)
    for t in trajectories[:8]:
        assert (t.valid, t.success, t.length, t.num_looks) == (False, False, 0, 0)
        assert t.features.shape == (0, policy.num_patches, policy.feature_dim)
        assert t.tokens.shape == (0, 56)
    long = [t for t in trajectories[8:] if not t.valid]
    assert long
    assert all(t.num_looks == 2 and t.executed.tolist() == [8, 8] for t in long)
    assert all(t.success for t in trajectories[8:] if t.valid)


def test_fewer_episodes_than_worlds_leave_worlds_idle(policy: VLAPolicy):
    envs = ToyEnvs(8)
    assert len(collect(policy, envs, jobs_for(PROMPTS[:3]), 1.0)) == 3
    assert envs.resets == 3
    assert collect(policy, envs, [], 1.0) == []


def test_whoever_watches_is_told(policy: VLAPolicy):
    finished: list[Trajectory] = []
    looks: list[int] = []
    pictures: dict[int, list[np.ndarray]] = {}
    trajectories = collect(
        policy,
        ToyEnvs(3),
        jobs_for(PROMPTS),
        1.0,
        on_episode=finished.append,
        on_look=lambda: looks.append(1),
        on_pictures=lambda slot, image: pictures.setdefault(slot, []).append(image),
    )
    assert sorted(t.slot for t in finished) == list(range(len(PROMPTS)))
    assert len(looks) >= max(t.num_looks for t in trajectories)
    for t in trajectories:
        expected = np.stack([picture(*view) for view in seen(policy, t)])
        np.testing.assert_array_equal(np.stack(pictures[t.slot]), expected)


def test_chunks_of_another_size_are_refused(policy: VLAPolicy):
    envs = ToyEnvs(2)
    envs.chunk_size = 5
    with pytest.raises(ConfigError, match="chunks of 8, the environment takes 5"):
        collect(policy, envs, jobs_for(PROMPTS), 1.0)


@pytest.mark.parametrize(("part", "named"), [("tower", "vision feature"), ("head", "log-probability")])
def test_a_policy_that_is_not_finite_stops_the_rollout(policy: VLAPolicy, part: str, named: str):
    tower, head = policy.model.vision_tower, policy.model.language_model.get_output_embeddings()
    with torch.no_grad():
        next((tower if part == "tower" else head).parameters())[-1] = float("nan")
    with pytest.raises(NonFiniteError, match=named):
        play(policy, PROMPTS)


def test_frames_are_those_of_each_look_and_the_end_in_their_own_slot(policy: VLAPolicy):
    jobs = jobs_for(PROMPTS, 3)
    for t in collect(policy, ToyEnvs(4), jobs, 1.0, keep_frames=True):
        expected = np.stack([picture(*view) for view in seen(policy, t)])
        np.testing.assert_array_equal(t.frames, expected)
    assert all(t.frames is None for t in collect(policy, ToyEnvs(4), jobs[:2], 1.0))
