"""Behavior cloning as it is done to a policy that exists: a LoRA, one demonstration, several cameras, other formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from openvla_folders import OFT, PLAIN, load
from toy_envs import toy_policy

from vlacoach.agents.cloning import CloningConfig, Frames, clone, load_frames
from vlacoach.errors import CheckpointError, ConfigError
from vlacoach.policies import OpenVLAOptions, VLAPolicy, load_policy, lora

LORA = CloningConfig(
    steps=15, batch_size=4, learning_rate=1e-2, warmup_steps=2, caption_weight=0.0, bf16=False, lora_rank=8
)


def frames_of(episodes: int = 1, length: int = 6, images: int = 1, size: int = 64) -> Frames:
    """Pictures whose brightness tells the frame, and actions that follow from it; the gripper opens and closes."""
    rng = np.random.default_rng(0)
    count = episodes * length
    shape = (count, size, size, 3) if images == 1 else (count, images, size, size, 3)
    levels = np.tile(np.arange(length), episodes).reshape(-1, *[1] * (len(shape) - 1))
    actions = rng.uniform(-0.5, 0.5, (length, 7)).astype(np.float32)
    actions[:, 6] = np.where(np.arange(length) % 2, 1, -1)
    return Frames(
        images=np.broadcast_to(20 + 30 * levels, shape).astype(np.uint8),
        proprio=np.zeros((count, 8), dtype=np.float32),
        actions=np.tile(actions, (episodes, 1)),
        episode=np.repeat(np.arange(episodes), length),
        instruction=np.zeros(count, dtype=np.int64),
        instructions=("turn on the stove",),
    )


def nll(policy: VLAPolicy, frames: Frames) -> float:
    """Mean negative log-probability of the demonstrated tokens, by hand."""
    from vlacoach.agents.cloning import action_chunks
    from vlacoach.policies import action_log_prob

    tokens = policy.encode_actions(action_chunks(frames.actions, frames.episode, policy.chunk_size))
    features = policy.encode(frames.images)
    with torch.no_grad():
        logits = policy.logits(features, ["turn on the stove"] * len(frames), torch.from_numpy(frames.proprio), tokens)
    return -float(action_log_prob(logits, tokens)[0].mean())


def test_a_lora_learns_and_the_rest_stays(tmp_path: Path):
    policy = toy_policy()
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    frames = frames_of(episodes=5, size=32)
    worse = nll(policy, frames)
    metrics = clone(policy, frames, replace(LORA, steps=60, batch_size=16))
    after = {name.replace(".base_layer", ""): value for name, value in policy.model.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert policy.adapter is not None
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())
    assert metrics["loss"] < worse - 0.3
    trained = nll(policy, frames)
    merged = load_policy(lora.merge_lora(policy).save(tmp_path / "cloned"))
    assert nll(merged, frames) == pytest.approx(trained, abs=1e-4)


@pytest.mark.parametrize(("name", "head"), [(PLAIN, "openvla"), (OFT, "oft-discrete")])
def test_one_demonstration_is_enough_for_a_published_policy(name: str, head: str):
    policy = load(name, unnorm_key=None if name == OFT else "fake_dataset", options=OpenVLAOptions(head=head))
    frames = frames_of()
    before = nll(policy, frames)
    metrics = clone(policy, frames, LORA)
    assert metrics["loss"] == pytest.approx(nll(policy, frames), abs=1e-3)
    assert metrics["loss"] < 0.5 * before


def test_what_was_cloned_acts_as_demonstrated():
    """Through normalization, bins, and the gripper's turn, and back."""
    policy = load(OFT, options=OpenVLAOptions(head="oft-discrete", num_images=2))
    frames = frames_of(images=2)
    stats = policy.statistics
    low, high = stats.action_low[:6].numpy(), stats.action_high[:6].numpy()
    actions = frames.actions.copy()
    actions[:, :6] = low + (actions[:, :6] + 0.5) * (high - low)  # Within what the policy can say.
    frames = replace(frames, actions=actions.astype(np.float32))
    tokens = policy.encode_actions(frames.actions[:, None].repeat(8, axis=1))
    found = policy.actions(tokens)[:, 0].numpy()
    np.testing.assert_allclose(found[:, :6], frames.actions[:, :6], atol=float((high - low).max()) / 250)
    np.testing.assert_array_equal(found[:, 6], frames.actions[:, 6])


def test_quantized_weights_take_a_lora_and_nothing_else():
    policy = load(OFT, precision="bf16", quantize="nf4", options=OpenVLAOptions(head="oft-discrete"))
    with pytest.raises(ConfigError, match="quantized"):
        clone(policy, frames_of(), replace(LORA, lora_rank=None))
    before = nll(policy, frames_of())
    assert clone(policy, frames_of(), LORA)["loss"] < before - 1


def test_what_cannot_be_cloned_is_refused():
    with pytest.raises(CheckpointError, match="no probability"):
        clone(load(OFT), frames_of(images=2), LORA)
    frames = frames_of(episodes=2, size=32)
    positions = np.random.default_rng(0).normal(size=(len(frames), 1, 3)).astype(np.float32)
    captioned = replace(frames, object_names=("bowl",), object_positions=positions)
    with pytest.raises(ConfigError, match="Captions train the vision tower"):
        clone(toy_policy(), captioned, replace(LORA, caption_weight=0.1))


def test_lerobot_data_sets_are_demonstrations_too(tmp_path: Path):
    from lerobot_folders import BOWL, FRONT, WRIST, make_episodes, write

    episodes = make_episodes()
    frames = load_frames([write(tmp_path, episodes)], cameras=("agentview", "robot0_eye_in_hand"))
    assert frames.images.shape == (15, 2, 32, 48, 3)
    assert set(frames.instructions) == {"put the bowl on the plate", "open the drawer"}
    first = np.flatnonzero(frames.instruction == frames.instructions.index("put the bowl on the plate"))[:5]
    np.testing.assert_array_equal(frames.images[first, 0], episodes[0][FRONT])
    np.testing.assert_array_equal(frames.images[first, 1], episodes[0][WRIST])
    np.testing.assert_array_equal(frames.actions[first], episodes[0]["action"])
    alone = load_frames([tmp_path], tasks=[BOWL])
    assert len(alone) == 11
    assert alone.images.shape == (11, 32, 48, 3)
    assert len(load_frames([tmp_path], tasks=[f"KITCHEN_SCENE3_{BOWL}"])) == 11
    with pytest.raises(ConfigError, match="no demonstrations of task 'on_the_plate'"):
        load_frames([tmp_path], tasks=["on_the_plate"])
    clone(toy_policy(), alone, replace(LORA, steps=2))
