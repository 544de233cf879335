"""``vlacoach plan``: what it computes, in closed form, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from vlacoach.agents.plan_devices import CONTEXT_BYTES, DEVICES, find_device
from vlacoach.agents.plan_memory import RENDER_BYTES
from vlacoach.agents.plan_srpo import V_JEPA_FLOPS, V_JEPA_PARAMETERS
from vlacoach.agents.plan_time import PREPROCESSING
from vlacoach.errors import UnknownNameError

A10G = ("--policy", "openvla-oft-7b", "--gpu", "a10g", "--group", 8, "--envs", 16, "--workers", 4)
PARAMETERS = 7_526_000_880  # Of the published policies, without what is never loaded.
ADAPTER = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))


@pytest.fixture
def plan(invoke):
    """The document of ``vlacoach plan --json``, and its exit status."""

    def run(*args):
        result = invoke("plan", *args, "--json")
        assert result.exit_code in (0, 1), result.stderr
        return json.loads(result.stdout) | {"status": result.exit_code}

    return run


# Memory


def test_the_published_policy_fits_an_a10g_in_20_gigabytes(plan):
    found = plan(*A10G)
    assert (found["fits"], found["status"], found["remedies"]) == (True, 0, [])
    assert found["peak"]["bytes"] <= 20e9
    assert found["settings"]["looks"] == 38  # Of 300 steps, libero_goal's own limit, in chunks of 8.
    # One look at a time needs half of it.
    assert plan(*A10G, "--micro-batch", 1, "--gradient-checkpointing")["peak"]["bytes"] <= 10e9


def test_what_nobody_sets_is_chosen_to_be_quick_and_to_leave_room(plan):
    found = plan(*A10G)
    assert found["peak"]["bytes"] <= 0.8 * DEVICES["a10g"].memory
    chosen = found["settings"]
    one_more = plan(*A10G, "--no-gradient-checkpointing", "--micro-batch", chosen["micro_batch"] + 1)
    assert one_more["peak"]["bytes"] > 0.8 * DEVICES["a10g"].memory
    assert chosen["checkpointing"] is False
    other = plan(*A10G, "--gradient-checkpointing")
    assert other["settings"]["micro_batch"] > chosen["micro_batch"]
    assert other["seconds"]["update"] > found["seconds"]["update"]
    # 64 looks at once fit with checkpointing alone.
    assert plan(*A10G, "--micro-batch", 64)["settings"]["checkpointing"] is True


def test_parts_are_what_their_names_say(plan):
    update = plan(*A10G)["memory"]["update"]
    assert update["weights: vision towers"] == 2 * 715_675_376
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert update["weights: language model's linear layers"] * 8 / linear == pytest.approx(4.127, abs=1e-3)
    assert update["adapter"] == update["gradients"] == 4 * ADAPTER
    assert update["optimizer"] == 8 * ADAPTER
    assert "gradients" not in plan(*A10G)["memory"]["rollout"]
    assert (update["CUDA context"], update["rendering"]) == (CONTEXT_BYTES, 4 * RENDER_BYTES)
    whole = plan(*A10G, "--quantize", "none")["memory"]["update"]
    assert sum(size for part, size in whole.items() if part.startswith("weights")) == 2 * PARAMETERS


def test_the_peak_is_that_of_a_stage_and_not_their_sum(plan):
    found = plan(*A10G)
    for stage in found["memory"].values():
        assert stage["in all"] == sum(size for part, size in stage.items() if part != "in all")
    totals = {name: stage["in all"] for name, stage in found["memory"].items()}
    assert list(totals) == ["rollout", "reward", "update"]
    assert (found["peak"]["stage"], found["peak"]["bytes"]) == ("update", max(totals.values()))
    assert found["peak"]["free"] == DEVICES["a10g"].memory - max(totals.values())


def test_the_largest_micro_batch_fits_and_one_look_more_does_not(plan):
    kept = (*A10G, "--no-gradient-checkpointing")
    most = plan(*kept)["largest_micro_batch"]
    assert plan(*kept, "--micro-batch", most)["fits"]
    beyond = plan(*kept, "--micro-batch", most + 1)
    assert (beyond["fits"], beyond["status"]) == (False, 1)
    assert f"--micro-batch {most}" in beyond["remedies"]


def test_what_does_not_fit_says_what_to_change_and_then_fits(plan):
    fixed = ("--no-gradient-checkpointing", "--micro-batch", 64, "--quantize", "none")
    found = plan(*A10G, *fixed)
    most = found["largest_micro_batch"]
    assert found["remedies"][:3] == [f"--micro-batch {most}", "--quantize nf4", "--gradient-checkpointing"]
    assert found["verdict"].endswith(f"{-found['peak']['free'] / 2**30:.1f} GiB are missing.")
    assert plan(*A10G, *fixed, "--micro-batch", most)["fits"]
    assert plan(*A10G, "--micro-batch", 64, "--gradient-checkpointing", "--quantize", "nf4")["fits"]


def test_weights_that_do_not_fit_alone_leave_no_micro_batch(plan):
    found = plan("--policy", "openvla-7b", "--gpu", "a10g", "--set", "policy.precision=fp32", "--quantize", "none")
    assert (found["fits"], found["largest_micro_batch"]) == (False, 0)
    assert found["remedies"][0] == "--quantize nf4"


def test_an_episode_of_many_looks_is_divided(plan):
    """Plain OpenVLA looks at every step."""
    found = plan("--policy", "openvla-7b", *A10G[2:])
    assert (found["fits"], found["settings"]["looks"]) == (True, 300)
    assert found["settings"]["looks_at_once"] < 300


def test_only_token_by_token_decoding_keeps_keys_and_values(plan):
    # Two of them, 32 layers, 8 worlds at once, 40 + 256 positions, 4096 numbers of 2 bytes.
    plain = plan("--policy", "openvla-7b", *A10G[2:])["memory"]["rollout"]
    assert plain["keys and values"] == 2 * 32 * 8 * 296 * 4096 * 2
    assert plan(*A10G)["memory"]["rollout"]["keys and values"] == 0


def test_groups_fill_the_host_and_worlds_the_gpu(plan):
    one, groups, worlds = plan(*A10G), plan(*A10G, "--group", 16), plan(*A10G, "--envs", 32)
    name = "features of the update's episodes"
    assert one["host"][name] == 128 * 39 * 256 * 2176 * 2
    assert groups["host"][name] == 2 * one["host"][name]
    assert groups["memory"]["rollout"] == one["memory"]["rollout"]
    work = "activations at work"
    assert worlds["memory"]["rollout"][work] > 1.5 * one["memory"]["rollout"][work]


def test_features_beyond_the_budget_are_computed_again(plan):
    kept, again = plan(*A10G), plan(*A10G, "--set", "grpo.feature_budget=1")
    assert again["host"]["features of the update's episodes"] < kept["host"]["features of the update's episodes"]
    assert again["host"]["pictures kept instead"] == pytest.approx((128 * 38 - 2**30 / (256 * 2176 * 2)) * 3 * 256**2)
    share = 1 - 2**30 / (128 * 37.5 * 256 * 2176 * 2)
    towers = (again["flops"]["update"] - kept["flops"]["update"]) / (128 * 37.5 * share)
    # About two operations for each weight and patch, and some percent for attention.
    assert towers == pytest.approx(2 * 256 * 715_675_376, rel=0.12)
    # The towers, and what is done to a picture before them.
    longer = again["seconds"]["update"] - kept["seconds"]["update"]
    assert longer == pytest.approx(128 * 37.5 * share * (towers / (0.4 * 70e12) + PREPROCESSING))
    # The scorer's averages were kept.
    assert again["memory"]["reward"] == kept["memory"]["reward"]
    assert again["host"]["averages of their features"] == pytest.approx(
        again["host"]["pictures kept instead"] * 4 * 1152 / (3 * 256**2), rel=1e-6
    )


# Time


def test_times_follow_speed_cores_and_lengths(plan):
    base, faster = plan(*A10G)["seconds"], plan(*A10G, "--mfu", 0.8)["seconds"]
    assert faster["rollout: policy"] == pytest.approx(base["rollout: policy"] / 2, rel=0.05)
    assert faster["rollout: simulation"] == base["rollout: simulation"]
    slow = plan(*A10G, "--workers", 1)["seconds"]
    assert slow["rollout: simulation"] == pytest.approx(4 * base["rollout: simulation"])
    busy = base["rollout: policy"] + base["rollout: preparing pictures"]
    assert base["rollout: in all"] == max(base["rollout: simulation"], busy)
    assert base["in all"] == pytest.approx(base["rollout: in all"] + base["reward"] + base["update"])
    assert plan(*A10G, "--steps", 150)["seconds"]["update"] == pytest.approx(base["update"] / 2)


def test_operations_of_the_language_model_are_about_two_for_each_weight_and_position(plan):
    found = plan(*A10G)
    linear = found["parameters"]["language model's linear layers"]
    looks, positions = 128 * 37.5, found["settings"]["length"]
    # Forward, and the gradient of each input; attention, adapter and head add some percent.
    assert found["flops"]["update"] == pytest.approx(2 * 2 * linear * positions * looks, rel=0.05)


def test_checkpointing_and_epochs_cost_passes(plan):
    long = ("--policy", "openvla-oft-7b", "--gpu", "h200")
    kept, again = plan(*long, "--no-gradient-checkpointing"), plan(*long, "--gradient-checkpointing")
    assert again["flops"]["update"] == pytest.approx(1.5 * kept["flops"]["update"], rel=0.02)
    twice = plan(*long, "--no-gradient-checkpointing", "--set", "grpo.epochs=2")
    assert twice["flops"]["update"] == pytest.approx(2 * kept["flops"]["update"])


def test_spelling_quantized_layers_out_takes_the_time_to_read_and_write_them(plan):
    fixed = ("--policy", "openvla-oft-7b", "--gpu", "h200", "--gradient-checkpointing", "--micro-batch", 64)
    four, plain = plan(*fixed, "--quantize", "nf4"), plan(*fixed, "--quantize", "none")
    assert four["flops"] == plain["flops"]
    stored = four["memory"]["update"]["weights: language model's linear layers"]
    moved = stored + 2 * plain["memory"]["update"]["weights: language model's linear layers"]
    passes = 3 * 128 * 37.5 / 64  # Forward, again, backward.
    longer = four["seconds"]["update"] - plain["seconds"]["update"]
    assert longer == pytest.approx(passes * moved / 4.8e12)


# SRPO's way


def test_srpos_way_needs_sixteen_bytes_a_weight_and_many_gpus(plan):
    found = plan(*A10G)["srpo"]
    memory = found["memory"]
    assert memory["weights, float32"] == memory["gradients"] == 4 * PARAMETERS
    assert memory["optimizer"] == 8 * PARAMETERS
    assert memory["V-JEPA 2 giant, float32"] == 4 * V_JEPA_PARAMETERS
    assert memory["logits of the vocabulary"] == 2 * 4 * 16 * 353 * 32064
    spread = sum(memory[part] for part in found["sharded"]) * 1.05
    alone = memory["in all"] - sum(memory[part] for part in found["sharded"])
    room = DEVICES["a10g"].memory - alone
    assert spread / found["gpus"] <= room < spread / (found["gpus"] - 1)
    assert found["host"]["reference copy"] == 2 * PARAMETERS


def test_srpos_way_computes_what_here_is_kept(plan):
    found = plan(*A10G)
    theirs = found["srpo"]["seconds"]
    stages = ("rollout: in all", "reward", "old log-probabilities", "reference log-probabilities", "update")
    assert theirs["in all"] == pytest.approx(sum(theirs[stage] for stage in stages))
    assert theirs["in all"] > found["seconds"]["in all"]
    assert found["srpo"]["flops"]["reward"] == 128 * V_JEPA_FLOPS
    assert V_JEPA_FLOPS == pytest.approx(114e12, rel=0.01)
    assert V_JEPA_PARAMETERS == pytest.approx(1.01e9, rel=0.01)


# The command


def test_the_tables_show_parts_stages_and_srpos_way(invoke):
    result = invoke("plan", *A10G)
    assert result.exit_code == 0
    for text in ("GiB, computed", "activations kept for the backward pass", "SRPO's way", "optimizer", "V-JEPA",
                 "Fits the NVIDIA A10G", "Largest micro-batch", "40% of the GPU's dense speed"):  # fmt: skip
        assert text in result.stdout
    assert invoke("plan", *A10G, "--micro-batch", 200).exit_code == 1


def test_the_built_in_policy_is_planned_with_the_configurations_own_numbers(plan, tmp_path):
    found = plan()
    assert (found["settings"]["policy"], found["settings"]["max_steps"]) == ("tiny", 120)
    assert plan("--policy", "tiny")["settings"] == found["settings"]
    assert found["settings"]["quantization"] == "none"
    (tmp_path / "own.yaml").write_text("grpo: {group_size: 4, prompts: 3}\npolicy: {lora_rank: 4}\n")
    other = plan("--config", tmp_path / "own.yaml", "--set", "grpo.prompts=5")
    assert other["settings"]["episodes"] == 20
    assert other["parameters"]["adapter"] * 4 == found["parameters"]["adapter"]
    # An optimizer step learns from a quarter of the episodes, and a micro-batch is a part of that.
    assert (found["settings"]["looks"], found["settings"]["looks_at_once"]) == (15, 64)
    assert plan("--micro-batch", 64, "--group", 2, "--set", "grpo.prompts=2")["settings"]["looks_at_once"] == 15


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--gpu", "a10gg"), "Did you mean 'a10g'?"),
        (("--gpu", "t4"), "does not compute in bfloat16"),
        (("--group", 0), "grpo.group_size = 0"),
        (("--envs", 0), "env.num_envs = 0"),
        (("--micro-batch", 0), "grpo.micro_batch = 0"),
        (("--policy", "openvla-oft"), "Did you mean 'openvla-oft-7b'?"),
        (("--suite", "libero_goals"), "Did you mean 'libero_goal'?"),
        (("--mfu", 1.5), "--mfu is 1.5"),
        (("--prompt-tokens", 0), "--prompt-tokens is 0"),
        (("--quantize", "nf4", "--set", "policy.full=true"), "cannot be trained"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_can(invoke, args, said):
    result = invoke("plan", *args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_a_t4_is_planned_in_single_precision(plan):
    found = plan("--gpu", "t4", "--set", "policy.precision=fp32")
    assert found["fits"]
    assert found["settings"]["device"]["bf16"] is False


def test_measuring_without_a_gpu_says_so(invoke, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = invoke("plan", "--measure")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "CUDA device" in result.stderr


def test_gpus_are_found_by_any_spelling():
    assert find_device("A10G") is DEVICES["a10g"]
    assert find_device("rtx4090") is find_device("RTX 4090") is DEVICES["4090"]
    with pytest.raises(UnknownNameError):
        find_device("a1000")
    for device in DEVICES.values():
        assert device.half > device.single > 0
        assert device.memory > 14 * 2**30


def test_help_loads_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from vlacoach.cli.main import app\n"
        "assert CliRunner().invoke(app, ['plan', '--help']).exit_code == 0\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
