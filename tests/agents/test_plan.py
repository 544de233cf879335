"""The plan's formulas against what torch allocates and multiplies on a CPU."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import pytest
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vlacoach.agents.plan_activations import (
    adapter_parameters,
    deciding_activations,
    numerics_of,
    sequence_length,
    update_activations,
    vision_activations,
)
from vlacoach.agents.plan_devices import DEVICES
from vlacoach.agents.plan_flops import look_flops
from vlacoach.agents.plan_measure import build_policy, instruction_of, measure_on_gpu, run_stages
from vlacoach.agents.plan_memory import Memory
from vlacoach.agents.plan_settings import PlanSettings
from vlacoach.agents.plan_sizes import find_config, parameters, quantization_for, quantized_bytes
from vlacoach.agents.plan_time import POLICY, UPDATE, plan_time, plan_turns
from vlacoach.errors import CheckpointError, ConfigError, UnknownNameError
from vlacoach.policies import VLAPolicy
from vlacoach.policies.configuration import DinoConfig, LanguageConfig, VisionConfig, VLAConfig
from vlacoach.policies.log_prob import action_log_prob
from vlacoach.policies.modeling import PrismaticVLA
from vlacoach.policies.openvla import OpenVLAOptions
from vlacoach.policies.quantization import LANGUAGE_LINEAR
from vlacoach.policies.tiny import ASSETS

RANK, PROMPT = 8, 9


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations make, from when they are made until they are gone.

    Args:
        known: Tensors that were there before, and do not count.
    """

    def __init__(self, known=()):
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: set[int] = set()
        self._now = self._most = 0

    def reset(self):
        self._most = self._now

    def peak(self):
        return self._most

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._alive:
            return
        self._alive.add(key)
        self._now += size
        self._most = max(self._most, self._now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self._alive.discard(key)
        self._now -= size


def sizes(width, layers, heads, mlp, image, head="oft-discrete", vocab=349, key_heads=None, images=1):
    """A small policy of the published form: two towers, a projector of three layers, a Llama."""
    plain = head == "openvla"
    return VLAConfig(
        vision=VisionConfig(image_size=image, patch_size=14, hidden_size=96, num_layers=3, num_heads=2, mlp_size=200),
        dino=DinoConfig(hidden_size=64, num_layers=3, num_heads=2),
        language=LanguageConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_layers=layers,
            num_heads=heads,
            num_key_value_heads=key_heads,
            mlp_size=mlp,
        ),
        head=head,
        num_images=images,
        chunk_size=1 if plain else 8,
        attention="causal" if plain else "bidirectional",
        first_action_id=vocab - 256,
        projector_size=256,
        prompt="{instruction}",
    )


# Sequences of 82, 130 and 322 positions: the MLP, the last norm, and attention make the peak.
SMALL = sizes(128, 4, 4, 344, image=56)
WIDE = sizes(192, 2, 2, 192, image=112)
LONG = sizes(64, 2, 4, 160, image=224)
PLAIN = sizes(128, 3, 4, 344, image=112, head="openvla", vocab=2004)
GROUPED = sizes(128, 3, 8, 352, image=56, key_heads=2, images=2)
# Every size at both precisions with and without checkpointing is more of the same; these differ.
CASES = [
    *(
        (name, precision, again)
        for name in ("small", "wide", "long")
        for precision in ("fp32", "bf16")
        for again in (0, 1)
    ),
    *(("plain", "fp32", 0), ("plain", "bf16", 1), ("grouped", "bf16", 0), ("grouped", "fp32", 1)),
]
SIZES = {"small": (SMALL, 4), "wide": (WIDE, 4), "long": (LONG, 2), "plain": (PLAIN, 4), "grouped": (GROUPED, 3)}


def planned(config=SMALL, **changes) -> PlanSettings:
    given = {"max_steps": 40, "mean_steps": 40.0, "prompts": 2, "group_size": 2, "num_envs": 4, "micro_batch": 5}
    given |= {"rank": RANK, "prompt_tokens": PROMPT, **changes}
    return PlanSettings("small", config, DEVICES["a10g"], **given)


def policy_of(config, precision="fp32", quantization="none", checkpointing=False, rank=RANK) -> VLAPolicy:
    settings = planned(config, precision=precision, quantization=quantization, checkpointing=checkpointing, rank=rank)
    numerics = numerics_of("cpu", precision, quantization)
    cpu = replace(settings, precision="bf16" if numerics.weights == 2 else "fp32")
    policy = build_policy(cpu, torch.device("cpu"))
    policy.precision = precision
    return policy


def micro_batch(policy, rows):
    """A function that computes what the agent computes for a micro-batch: logits are gone before the backward pass."""
    config, instruction = policy.config, instruction_of(policy, PROMPT)
    features = torch.randn(rows, config.num_patches, config.feature_dim)
    tokens = torch.randint(0, config.num_choices, (rows, config.num_action_tokens))

    def loss():
        log_prob, _ = action_log_prob(policy.logits(features, [instruction] * rows, None, tokens), tokens)
        return log_prob.mean()

    def step():
        torch.autograd.backward(loss())

    return step, [features, tokens]


def peak_of(policy, work, known):
    """Most bytes beside what is there once gradients are."""
    work()
    gradients = [value.grad for value in policy.model.parameters() if value.grad is not None]
    with LiveBytes([*known, *gradients, *policy.model.parameters(), *policy.model.buffers()]) as live:
        work()
    return live.peak()


# Memory


@pytest.mark.parametrize(("name", "precision", "checkpointing"), CASES)
def test_an_updates_activations_are_what_torch_allocates(name, precision, checkpointing):
    config, rows = SIZES[name]
    policy = policy_of(config, precision, checkpointing=bool(checkpointing))
    step, known = micro_batch(policy, rows)
    measured = peak_of(policy, step, known)
    numerics = numerics_of("cpu", precision, rank=RANK, checkpointing=bool(checkpointing))
    found = update_activations(config, rows, sequence_length(config, PROMPT), numerics).peak
    print(f"{name} {precision} {checkpointing}: computed {found}, measured {measured}, {found / measured:.3f}")
    assert found == pytest.approx(measured, rel=0.05)


NARROW = sizes(256, 3, 4, 704, image=56)
AS_PUBLISHED = sizes(4096, 2, 32, 11008, image=224)
"""Two blocks of OpenVLA's own width, behind its 256 visual tokens."""


@pytest.fixture(
    scope="module",
    params=[("nf4", NARROW, 4), ("int8", NARROW, 4), pytest.param(("nf4", AS_PUBLISHED, 2), marks=pytest.mark.slow)],
    ids=["nf4", "int8", "as published"],
)
def quantized(request):
    """A kind of quantization, rows, and a policy, which takes longer to quantize than to run."""
    pytest.importorskip("bitsandbytes")
    quantization, config, rows = request.param
    return quantization, rows, policy_of(config, "bf16", quantization)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_activations_behind_quantized_layers_are_what_torch_allocates(quantized, checkpointing):
    """As on a CUDA device: there peft sees autocast, and leaves the layers' inputs in bfloat16."""
    quantization, rows, policy = quantized
    config, policy.gradient_checkpointing = policy.config, checkpointing
    step, known = micro_batch(policy, rows)
    torch.set_autocast_enabled("cuda", True)
    try:
        measured = peak_of(policy, step, known)
    finally:
        torch.set_autocast_enabled("cuda", False)
    numerics = numerics_of("cuda", "bf16", quantization, RANK, checkpointing)
    numerics = replace(numerics, attention="math")
    found = update_activations(config, rows, sequence_length(config, PROMPT), numerics).peak
    assert found == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_training_all_weights_takes_what_torch_allocates(checkpointing):
    policy = policy_of(SMALL, checkpointing=checkpointing, rank=None)
    step, known = micro_batch(policy, 4)
    numerics = numerics_of("cpu", "fp32", rank=None, checkpointing=checkpointing)
    found = update_activations(SMALL, 4, sequence_length(SMALL, PROMPT), numerics).peak
    assert found == pytest.approx(peak_of(policy, step, known), rel=0.05)


def test_the_allocator_itself_agrees_with_the_count_of_storages():
    policy = policy_of(SMALL)
    step, known = micro_batch(policy, 4)
    counted = peak_of(policy, step, known)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    now = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert counted == pytest.approx(most, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["wide", "plain", "grouped"])
def test_a_rollouts_round_takes_what_torch_allocates(name, precision):
    config, rows = SIZES[name]
    policy = policy_of(config, precision)
    numerics, instruction = numerics_of("cpu", precision, rank=RANK), instruction_of(policy, PROMPT)
    pixels = torch.randn(rows, config.num_images, 6, config.vision.image_size, config.vision.image_size)
    weights = [*policy.model.parameters(), *policy.model.buffers()]
    with LiveBytes([pixels, *weights]) as towers, torch.no_grad(), policy._computing():
        features = policy.model.encode_images(pixels)
    computed = vision_activations(config, rows, numerics) - pixels.nbytes
    assert computed == pytest.approx(towers.peak(), rel=0.05)
    with LiveBytes([features, *weights]) as model:
        policy.act(features, [instruction] * rows, None)
    length = sequence_length(config, PROMPT, deciding=True)
    assert sum(deciding_activations(config, rows, length, numerics).values()) == pytest.approx(model.peak(), rel=0.1)


def test_one_turn_of_each_stage_runs_and_is_measured():
    """What ``--measure`` does on a GPU, on a CPU: the same policy, the same stages, another meter."""
    settings = planned(SMALL, precision="fp32", checkpointing=True)
    policy = build_policy(settings, torch.device("cpu"))
    with LiveBytes([*policy.model.parameters(), *policy.model.buffers()]) as live:
        measured = run_stages(policy, settings, live)
    numerics = numerics_of("cpu", "fp32", rank=RANK, checkpointing=True)
    activations = update_activations(SMALL, settings.looks_at_once, settings.length, numerics).peak
    # Features and tokens are in the host's memory, which here is where everything is; so are gradients and moments.
    states = 3 * 4 * adapter_parameters(SMALL.language, RANK)
    inputs = settings.looks_at_once * settings.feature_bytes
    assert measured["update"].peak == pytest.approx(activations + states + inputs, rel=0.05)
    # Moments stay, gradients do not.
    assert states * 2 / 3 < measured["rollout"].peak < measured["update"].peak
    assert all(turn.seconds > 0 for turn in measured.values())


def test_the_turns_of_an_update_add_up_to_it():
    settings = planned(SMALL, minibatches=1, micro_batch=4, epochs=2, prompts=1, group_size=4, num_envs=8)
    turns, whole = plan_turns(settings), plan_time(settings)
    looks = settings.episodes * settings.mean_looks
    assert settings.lane == settings.looks_at_once == 4
    assert turns["rollout"].flops * looks / 4 == pytest.approx(whole.flops[POLICY])
    assert turns["rollout"].seconds * looks / 4 == pytest.approx(whole.seconds[POLICY])
    assert turns["update"].flops * 2 * looks / 4 == pytest.approx(whole.flops[UPDATE])
    assert turns["update"].seconds * 2 * looks / 4 == pytest.approx(whole.seconds[UPDATE])


def test_measuring_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA device"):
        measure_on_gpu(planned(), Memory(()))


@pytest.mark.parametrize("shape", [(128, 96), (4096, 64), (70, 50)])
def test_a_quantized_layer_takes_the_bytes_that_bitsandbytes_stores(shape):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    inputs, outputs = shape
    weight = torch.randn(outputs, inputs)
    four = bitsandbytes.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4").to("cpu")
    state = four.quant_state
    tensors = [four.data, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert sum(tensor.nbytes for tensor in tensors) == quantized_bytes(inputs, outputs, "nf4")
    eight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
    assert eight.CB.nbytes + eight.SCB.nbytes == quantized_bytes(inputs, outputs, "int8")


# Operations


@pytest.mark.parametrize("rank", [RANK, None], ids=["lora", "full"])
@pytest.mark.parametrize("name", ["small", "plain", "grouped"])
def test_operations_are_those_that_torch_counts(name, rank):
    config, rows = SIZES[name]
    policy = policy_of(config, rank=rank, checkpointing=True)
    instruction = instruction_of(policy, PROMPT)
    prompt, length = sequence_length(config, PROMPT, deciding=True), sequence_length(config, PROMPT)
    expected = look_flops(config, prompt, length, rank)
    pixels = torch.randn(rows, config.num_images, 6, config.vision.image_size, config.vision.image_size)
    with counted() as vision, torch.no_grad(), policy._computing():
        features = policy.model.encode_images(pixels)
    with counted() as deciding:
        tokens = policy.act(features, [instruction] * rows, None).tokens
    with counted() as forward:
        logits = policy.logits(features, [instruction] * rows, None, tokens)
    with counted() as backward:
        logits.sum().backward()
    found = [flops.get_total_flops() / rows for flops in (vision, deciding, forward, backward)]
    assert found == pytest.approx(
        [expected.vision, expected.deciding, expected.forward, expected.backward + expected.repeated], rel=1e-9
    )


def counted():
    return FlopCounterMode(display=False)


# Sizes


def test_the_published_sizes_are_those_of_the_published_files():
    """7,541,237,184 numbers in the files; 15,236,304 of them, SigLIP's attention pool, are never loaded."""
    counts = parameters(find_config("openvla-oft-7b"))
    assert sum(counts.values()) == 7_541_237_184 - 15_236_304
    assert counts["language model's linear layers"] == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert counts == parameters(find_config("openvla-7b"))


def test_a_published_folder_is_read_without_its_weights(tmp_path):
    means = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"tvf_normalize_params": [means, means]}))
    config = {
        "model_type": "openvla",
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "use_fused_vision_backbone": True,
        "image_sizes": [224, 224],
        "pad_to_multiple_of": 64,
        "text_config": {"model_type": "llama", "vocab_size": 32064},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert parameters(find_config(str(tmp_path))) == parameters(find_config("openvla-7b"))
    assert find_config(str(ASSETS)) == find_config("tiny")


def test_a_published_policy_is_planned_as_it_is_to_be_used():
    two = find_config("openvla-oft-7b", options=OpenVLAOptions(num_images=2, proprio=True))
    assert (two.num_images, two.num_visual_tokens, two.proprio_dim) == (2, 512, 8)
    with pytest.raises(ConfigError, match="has head 'openvla', not 'oft-discrete'"):
        find_config("openvla-7b", options=OpenVLAOptions("oft-discrete"))
    with pytest.raises(ConfigError, match="reads no proprioception"):
        find_config("openvla-7b", options=OpenVLAOptions(proprio=True))
    with pytest.raises(ConfigError, match="says itself"):
        find_config("tiny", options=OpenVLAOptions(num_images=2))


def test_a_policy_that_is_not_here_is_refused():
    with pytest.raises(UnknownNameError, match="openvla-oft") as error:
        find_config("openvla-oft")
    assert "Did you mean 'openvla-oft-7b'" in str(error.value)
    with pytest.raises(CheckpointError, match="has not been downloaded"):
        find_config("nobody/nothing-of-this-name")


@pytest.mark.parametrize("config", [SMALL, GROUPED], ids=["small", "grouped"])
def test_an_adapter_has_as_many_weights_as_peft_makes(config):
    with init_empty_weights(include_buffers=False):
        model = PrismaticVLA(config)
        adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=LANGUAGE_LINEAR))
    made = sum(value.numel() for name, value in adapted.named_parameters() if "lora_" in name)
    assert adapter_parameters(config.language, RANK) == made


def test_large_policies_are_quantized_where_nobody_says_how():
    assert quantization_for("auto", find_config("openvla-7b")) == "nf4"
    assert quantization_for("auto", SMALL) == "none"
    assert quantization_for("int8", SMALL) == "int8"
