"""Captions of frames, the sigmoid loss, and behavior cloning."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_envs import IMAGE_SIZE, TOY_SUITE, picture, proprioception, toy_policy

from vlacoach.agents.captions import CaptionBank, CaptionHead, caption_accuracy, caption_frames, sigmoid_loss
from vlacoach.agents.cloning import (
    CloningConfig,
    Frames,
    action_chunks,
    clone,
    fit_proprio_range,
    load_frames,
    schedule,
)
from vlacoach.data.hdf5 import Demonstration, DemonstrationError, DemonstrationWriter, demonstration_file
from vlacoach.errors import ConfigError, NonFiniteError
from vlacoach.policies import VLAPolicy, action_tokens, load_policy
from vlacoach.profiles import RenderProfile

FAST = CloningConfig(
    steps=60, batch_size=16, learning_rate=1e-2, warmup_steps=5, caption_weight=0.0, validation=0.2, bf16=False
)


# The sigmoid loss


def test_the_sigmoid_loss_has_its_closed_form():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    truth = torch.tensor([[0, 2], [1, 2]])
    signs = [[1, -1, 1], [-1, 1, 1]]
    rows = [
        sum(math.log1p(math.exp(-sign * value)) for sign, value in zip(row_signs, row, strict=True))
        for row_signs, row in zip(signs, logits.tolist(), strict=True)
    ]
    assert sigmoid_loss(logits, truth).item() == pytest.approx(sum(rows) / 2 / 2, rel=1e-6)


def test_the_sigmoid_loss_vanishes_for_certain_truth_and_grows_with_errors():
    truth = torch.tensor([[0], [1]])
    right = torch.tensor([[50.0, -50.0], [-50.0, 50.0]])
    assert sigmoid_loss(right, truth).item() == pytest.approx(0.0, abs=1e-6)
    assert sigmoid_loss(-right, truth).item() == pytest.approx(100.0)
    assert sigmoid_loss(torch.zeros(2, 2), truth).item() == pytest.approx(2 * math.log(2))


def test_caption_accuracy_counts_true_sentences_among_the_likeliest():
    logits = torch.tensor([[5.0, 4.0, 3.0, 0.0], [0.0, 5.0, 4.0, 3.0]])
    assert caption_accuracy(logits, torch.tensor([[0, 1], [1, 2]])) == 1.0
    assert caption_accuracy(logits, torch.tensor([[0, 2], [0, 3]])) == 0.25


# Captions


def test_captions_say_in_which_quantile_each_coordinate_lies():
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(1600, 2, 3)).astype(np.float32)
    bank = caption_frames(("akita_black_bowl", "plate"), positions, bins=16)
    assert len(bank.sentences) == 2 * 3 * 16
    assert bank.truth.shape == (1600, 6)
    for column in range(6):
        words = bank.truth[:, column]
        assert sorted(set(words)) == list(range(16 * column, 16 * column + 16))
        # Each word is true equally often, and words are in the order of what they mean.
        assert np.bincount(words - 16 * column).tolist() == [100] * 16
        values = positions.reshape(1600, 6)[:, column]
        ends = [(values[words == word].min(), values[words == word].max()) for word in sorted(set(words))]
        assert all(low[1] <= high[0] for low, high in pairwise(ends))
    assert bank.sentences[0] == ("akita", "black", "bowl", "x", "0")
    assert bank.sentences[16 * 5 + 3] == ("plate", "z", "3")


def test_a_coordinate_that_never_varies_has_one_sentence():
    positions = np.zeros((40, 1, 3), dtype=np.float32)
    positions[:, 0, 0] = np.arange(40)
    positions[:, 0, 2] = np.arange(40) >= 30
    bank = caption_frames(("bowl",), positions, bins=4)
    assert bank.sentences == (
        *(("bowl", "x", str(word)) for word in range(4)),
        ("bowl", "y", "0"),
        ("bowl", "z", "0"),
        ("bowl", "z", "1"),
    )
    assert set(bank.truth.flatten()) == set(range(7))


def test_a_caption_head_scores_every_sentence_of_every_picture():
    bank = CaptionBank((("bowl", "x", "0"), ("bowl", "x", "1"), ("bowl", "bowl", "y")), np.zeros((1, 1), np.int64))
    head = CaptionHead(bank, feature_dim=6, width=16)
    features = torch.randn(5, 4, 6)
    logits = head(features)
    assert logits.shape == (5, 3)
    # Bounded by the temperature around the bias, as products of unit vectors are.
    assert (logits - head.bias).abs().max().item() <= 10.0 + 1e-4
    torch.testing.assert_close(head(features.flip(1)), logits)
    assert head.word_count.tolist() == [[1, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 2, 0, 1]]


# Labels


def test_chunks_stop_at_the_end_of_an_episode():
    actions = np.arange(7, dtype=np.float32)[:, None].repeat(7, axis=1)
    chunks = action_chunks(actions, np.array([0, 0, 0, 0, 3, 3, 5]), 3)
    assert chunks.shape == (7, 3, 7)
    assert chunks[:, :, 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3], [4, 5, 5], [5, 5, 5], [6, 6, 6]]


def test_the_learning_rate_rises_and_falls():
    factors = [schedule(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.505, abs=0.01)
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert 0.01 <= factors[-1] < 0.02
    assert schedule(0, 10, 0) == 1.0


# Cloning


def frames_of(episodes: int = 5, length: int = 6, positions: bool = False) -> Frames:
    """Episodes that show their frame's number, and whose actions follow from task and frame."""
    rows = [(number % 2, number, step) for number in range(episodes) for step in range(length)]
    levels = np.array([(task + 1) * (step + 1) * 20 for task, _, step in rows], dtype=np.uint8)
    images = np.zeros((len(rows), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8) + levels[:, None, None, None]
    states = np.stack([proprioception(task, number, np.zeros((step, 7))) for task, number, step in rows])
    signs = np.array([1 - 2 * task for task, _, _ in rows], dtype=np.float32)
    actions = signs[:, None] * np.linspace(-0.9, 0.9, 7, dtype=np.float32)
    where = np.stack([images[:, 0, 0], -1.0 * images[:, 0, 0]], axis=1).astype(np.float32)  # Both (N, 3).
    return Frames(
        images=images,
        proprio=states,
        actions=actions,
        episode=np.repeat(np.arange(episodes), length),
        instruction=np.array([task for task, _, _ in rows]),
        instructions=tuple(task.instruction for task in TOY_SUITE.tasks),
        object_names=("bowl", "hand") if positions else (),
        object_positions=where if positions else None,
    )


def state_of(policy: VLAPolicy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def test_cloning_learns_a_small_data_set_by_heart():
    policy = toy_policy()
    logged: list[tuple[int, dict[str, float]]] = []
    config = replace(FAST, steps=200)
    metrics = clone(policy, frames_of(), config, on_log=lambda step, numbers: logged.append((step, numbers)))
    assert metrics["accuracy"] > 0.95
    assert metrics["loss"] < 0.3
    assert metrics["entropy"] < 0.5
    assert {f"accuracy/{i}" for i in range(7)} <= metrics.keys()
    assert np.mean([metrics[f"loss/{i}"] for i in range(7)]) == pytest.approx(metrics["loss"], rel=1e-4)
    assert [step for step, _ in logged] == [100, 200]
    assert logged[1][1]["loss"] < logged[0][1]["loss"]
    frames = frames_of()
    features = policy.encode(torch.from_numpy(frames.images[:1]))
    sample = policy.act(features, [frames.instructions[0]], frames.proprio[:1], temperature=0.0)
    expected = action_tokens.decode(action_tokens.encode(np.tile(frames.actions[:1], (8, 1))))
    np.testing.assert_allclose(sample.actions[0].numpy(), expected, atol=0.03)


@pytest.mark.parametrize("captions", [0.0, 0.2])
def test_cloning_repeats_itself_whatever_was_drawn_before(captions: float):
    config = replace(FAST, steps=8, caption_weight=captions)
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        policy = toy_policy()
        runs.append((clone(policy, frames_of(positions=True), config), state_of(policy)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())
    other = toy_policy()
    clone(other, frames_of(positions=True), replace(config, seed=1))
    assert not all(torch.equal(value, runs[0][1][name]) for name, value in state_of(other).items())


def test_captions_teach_the_tower_where_things_are():
    logged: list[dict[str, float]] = []
    config = replace(FAST, steps=200, caption_weight=1.0)
    policy = toy_policy()
    before = state_of(policy)
    clone(policy, frames_of(positions=True), config, on_log=lambda step, numbers: logged.append(numbers))
    assert logged[-1]["caption_accuracy"] > 0.8
    assert logged[-1]["caption_loss"] < logged[0]["caption_loss"]
    after = state_of(policy)
    assert any("vision_tower" in name and not torch.equal(before[name], after[name]) for name in before)


def test_a_cloned_policy_is_frozen_and_in_evaluation_mode():
    policy = toy_policy()
    precision = policy.precision
    clone(policy, frames_of(), replace(FAST, steps=1, bf16=True))
    assert not policy.model.training
    assert policy.precision == precision
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())


def test_held_out_episodes_are_not_trained_on():
    frames = frames_of(episodes=5)
    poisoned = frames.actions.copy()
    # Five episodes, one held out: poison one after the other, and only the poison of that one has no effect.
    effects = []
    for number in range(5):
        actions = poisoned.copy()
        actions[frames.episode == number] = 0.987
        policy = toy_policy()
        clone(policy, replace_actions(frames, actions), replace(FAST, steps=4))
        effects.append(state_of(policy)["language_model.lm_head.weight"])
    clean = toy_policy()
    clone(clean, frames, replace(FAST, steps=4))
    unchanged = [torch.equal(effect, state_of(clean)["language_model.lm_head.weight"]) for effect in effects]
    assert unchanged.count(True) == 1


def replace_actions(frames: Frames, actions: np.ndarray) -> Frames:
    return replace(frames, actions=actions.astype(np.float32))


def test_the_range_of_proprioception_can_be_fitted():
    policy, frames = toy_policy(), frames_of()
    fit_proprio_range(policy, frames, margin=0.1)
    values = policy.normalize_proprio(frames.proprio)
    assert values.abs().max().item() == pytest.approx(1 / 1.2, rel=1e-4)
    low, high = values.min(dim=0).values, values.max(dim=0).values
    torch.testing.assert_close(low, -high, rtol=0, atol=1e-4)


def test_cloning_stops_at_what_is_not_finite():
    policy = toy_policy()
    with torch.no_grad():
        policy.model.projector.fc1.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="cloning loss"):
        clone(policy, frames_of(), FAST)


def test_missing_positions_and_too_few_episodes_are_errors():
    with pytest.raises(ConfigError, match="2 demonstrations, too few to hold 2 out"):
        clone(toy_policy(), frames_of(episodes=2), replace(FAST, validation=1.0))
    with pytest.raises(ConfigError, match="do not say where objects are"):
        clone(toy_policy(), frames_of(), replace(FAST, caption_weight=0.1))


# Reading demonstrations


def episode(task: int, index: int, length: int, positions: bool = True) -> Demonstration:
    states = np.stack([proprioception(task, index, np.zeros((step, 7))) for step in range(length)])
    actions = np.random.default_rng([task, index]).uniform(-1, 1, (length, 7)).astype(np.float32)
    images = np.stack([picture(task, index, np.zeros((step, 7))) for step in range(length)])
    where = np.random.default_rng(index).normal(size=(length, 2, 3)).astype(np.float32)
    return Demonstration(
        task=TOY_SUITE.tasks[task].name,
        instruction=TOY_SUITE.tasks[task].instruction,
        index=index,
        actions=np.clip(actions + 0.1, -1, 1),
        labels=actions,
        proprioception=states,
        images={"agentview": images},
        object_names=("bowl", "plate") if positions else (),
        object_positions=where if positions else None,
    )


def write(folder: Path, episodes: list[Demonstration], profile: RenderProfile = "reference") -> None:
    for task in TOY_SUITE.tasks:
        mine = [one for one in episodes if one.task == task.name]
        if mine:
            file = demonstration_file(folder, task.name)
            writer = DemonstrationWriter(file, "toy", task.name, task.instruction, IMAGE_SIZE, profile)
            for one in mine:
                writer.write(one)


def test_demonstrations_become_frames(tmp_path: Path):
    episodes = [episode(0, 0, 3), episode(0, 1, 5), episode(1, 0, 4)]
    write(tmp_path, episodes)
    frames = load_frames([tmp_path])
    assert len(frames) == 12
    assert frames.episode.tolist() == [0] * 3 + [1] * 5 + [2] * 4
    assert [frames.instructions[i] for i in frames.instruction] == [
        one.instruction for one in episodes for _ in one.labels
    ]
    np.testing.assert_array_equal(frames.images, np.concatenate([one.images["agentview"] for one in episodes]))
    np.testing.assert_allclose(frames.actions, np.concatenate([one.labels for one in episodes]), atol=1e-6)
    np.testing.assert_allclose(frames.proprio, np.concatenate([one.proprioception for one in episodes]), atol=1e-6)
    assert frames.object_names == ("bowl", "plate", "hand")
    np.testing.assert_allclose(frames.object_positions[:, 2], frames.proprio[:, :3])
    np.testing.assert_allclose(frames.object_positions[:3, :2], episodes[0].object_positions)


def test_a_policy_remembers_what_kind_of_pictures_it_was_cloned_on(tmp_path: Path):
    write(tmp_path / "one", [episode(0, 0, 3), episode(0, 1, 3)], "coarse")
    write(tmp_path / "two", [episode(1, 0, 4)], "fast")
    policy = toy_policy()
    assert policy.config.render_profile == "reference"
    clone(policy, load_frames([tmp_path / "one"]), CloningConfig(steps=1, batch_size=2, caption_weight=0))
    policy.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy").config.render_profile == "coarse"
    with pytest.raises(ConfigError, match="mix pictures rendered as coarse and fast"):
        load_frames([tmp_path / "one", tmp_path / "two"])


def test_tasks_can_be_chosen_and_files_and_folders_given(tmp_path: Path):
    write(tmp_path / "one", [episode(0, 0, 3)])
    write(tmp_path / "two", [episode(1, 0, 4)])
    paths = [tmp_path / "one", demonstration_file(tmp_path / "two", TOY_SUITE.tasks[1].name)]
    assert len(load_frames(paths)) == 7
    chosen = load_frames(paths, [TOY_SUITE.tasks[1].name])
    assert len(chosen) == 4
    assert chosen.instructions == (TOY_SUITE.tasks[1].instruction,)


def test_positions_are_of_use_only_where_every_episode_has_them(tmp_path: Path):
    write(tmp_path, [episode(0, 0, 3), episode(1, 0, 4, positions=False)])
    frames = load_frames([tmp_path])
    assert frames.object_names == ()
    assert frames.object_positions is None


def test_loaded_frames_can_be_cloned(tmp_path: Path):
    write(tmp_path, [episode(task, index, 9) for task in (0, 1) for index in range(3)])
    metrics = clone(toy_policy(), load_frames([tmp_path]), replace(FAST, steps=2, caption_weight=0.2))
    assert all(np.isfinite(list(metrics.values())))


def test_rollouts_that_failed_are_not_cloned(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, [episode(0, 0, 3), replace(episode(0, 1, 5), success=False)])
    assert len(load_frames([tmp_path])) == 3
    assert "Left out episode 1" in caplog.text


def test_demonstrations_that_are_not_there_are_errors(tmp_path: Path):
    with pytest.raises(DemonstrationError, match="no demonstrations"):
        load_frames([tmp_path])
    write(tmp_path, [episode(0, 0, 3)])
    with pytest.raises(ConfigError, match="no demonstrations of task 'fly'") as caught:
        load_frames([tmp_path], ["fly"])
    assert TOY_SUITE.tasks[0].name in str(caught.value)
    with pytest.raises(DemonstrationError, match="no pictures of camera 'wrist'"):
        load_frames([tmp_path], cameras=["wrist"])
