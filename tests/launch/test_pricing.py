"""What a rented GPU costs."""

from __future__ import annotations

import pytest

from vlacoach.agents.plan import make_plan
from vlacoach.agents.plan_devices import DEVICES, find_device
from vlacoach.agents.plan_settings import settings_from
from vlacoach.agents.plan_time import ROLLOUT, TOTAL
from vlacoach.errors import ConfigError, UnknownNameError
from vlacoach.launch.pricing import GPUS, Estimate, Machine, RentedGPU, Work, estimate, find_gpu, work_of
from vlacoach.runs.config import TrainConfig

A10G = Machine(GPUS["A10G"], cores=8, memory=32)


def config(**sections):
    return TrainConfig.model_validate(sections)


def test_the_machine_costs_its_gpu_its_cores_and_its_memory():
    assert A10G.price == pytest.approx(1.10 + 8 * 0.0472 + 32 * 0.008)


@pytest.mark.parametrize("name", ["A10G", "a10g", " A10g "])
def test_gpus_are_found_whatever_the_capitals(name):
    assert find_gpu(name) is GPUS["A10G"]


def test_gpus_are_found_by_the_names_of_the_plan_too():
    assert find_gpu("a100-80") is GPUS["A100-80GB"]
    assert {gpu.plan for gpu in GPUS.values() if gpu.plan} <= set(DEVICES)


@pytest.mark.parametrize("name", ["A11G", "A10G:2", "", "4090"])
def test_an_unknown_gpu_is_refused_with_those_there_are(name):
    with pytest.raises(UnknownNameError, match=r"Available: A10, A100-40GB, .*T4\.") as error:
        find_gpu(name)
    assert error.value.exit_code == 2


def test_the_cost_is_hours_times_the_price():
    machine = Machine(RentedGPU("X", 2.0, None), cores=0, memory=0)
    expected = Estimate(machine, 1.5, "ten updates")
    assert expected.cost == 3.0
    assert "About 1:30:00, 3.00 USD: ten updates." in expected.lines()


def test_work_is_updates_and_the_episodes_of_every_evaluation():
    settings = config(grpo={"updates": 10}, evaluation={"trials": 20, "every": 0})
    assert work_of(settings, tasks=3) == Work(10, 3 * 20 * 4)  # Two splits, before and after.
    held_out_only = config(grpo={"updates": 10}, evaluation={"trials": 20, "every": 4, "train_states": False})
    assert work_of(held_out_only, tasks=3) == Work(10, 3 * 20 * (2 + 2))  # After updates 4 and 8 as well.
    assert work_of(held_out_only, tasks=3, done=4) == Work(6, 3 * 20 * (1 + 1))


def test_an_evaluation_that_falls_on_the_last_update_is_the_one_after_training():
    settings = config(grpo={"updates": 10}, evaluation={"trials": 1, "every": 5, "train_states": False})
    assert work_of(settings, tasks=1).evaluation_episodes == 3  # Before, after 5, after.


def test_hours_are_updates_and_evaluations_by_the_plan():
    settings = config(grpo={"updates": 40})
    plan = make_plan(settings_from(settings, find_device("a10g"), workers=8))
    seconds = plan.timing.seconds
    work = Work(40, 320)
    expected = 40 * seconds[TOTAL] + 320 * seconds[ROLLOUT] / (settings.grpo.prompts * settings.grpo.group_size)
    assert estimate(settings, A10G, work).hours == pytest.approx(expected / 3600)


def test_minutes_end_the_training_before_its_updates_do():
    long = estimate(config(grpo={"updates": 10_000}), A10G, Work(10_000, 0))
    short = estimate(config(grpo={"updates": 10_000, "minutes": 90}), A10G, Work(10_000, 0))
    assert short.hours == 1.5
    assert long.hours > 2 * short.hours
    assert "90 minutes of training" in short.basis


def test_where_the_plan_knows_nothing_the_clock_decides():
    b200 = Machine(GPUS["B200"], 8, 32)
    unknown = estimate(config(), b200, Work(40, 0))
    assert (unknown.hours, unknown.cost) == (None, None)
    assert any("unknown: vlacoach plan does not know the B200. --minutes limits it." in one for one in unknown.lines())
    assert estimate(config(grpo={"minutes": 30}), b200, Work(40, 0)).hours == 0.5


def test_a_policy_that_is_not_on_this_machine_has_no_plan():
    absent = estimate(config(policy={"path": "nobody/nothing"}), A10G, Work(40, 0))
    assert absent.hours is None
    assert "nobody/nothing" in absent.basis


def test_a_gpu_that_is_too_small_is_said():
    settings = config(policy={"path": "openvla-oft-7b", "full": True, "quantize": "none"}, env={"suite": "libero_goal"})
    warning = estimate(settings, A10G, Work(1, 0)).warning
    assert warning is not None
    assert warning.startswith("Does not fit the NVIDIA A10G")


def test_a_gpu_without_bfloat16_is_refused_for_it():
    with pytest.raises(ConfigError, match="T4 does not compute in bfloat16"):
        estimate(config(policy={"precision": "bf16"}), Machine(GPUS["T4"], 8, 32), Work(1, 0))
