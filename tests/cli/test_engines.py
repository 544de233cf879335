"""``vlacoach train --engine``: what is refused before anything is started, and the command that is passed on."""

from __future__ import annotations

import importlib.util

import pytest
from typer.main import get_command

from vlacoach.cli import engines
from vlacoach.cli.console import Verbosity
from vlacoach.cli.engines import forwarded, make_job, refuse_local_folders
from vlacoach.cli.main import app
from vlacoach.errors import ConfigError
from vlacoach.launch import modal as launch
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.resolve import resolve_config


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Somebody without an account."""
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def customer(monkeypatch):
    """Somebody with an account, whose trainings are noted and not started."""
    started = []

    def start(settings, job, mirror, say, logs):
        started.append((settings, job))
        return {"status": 0, "output": "printed there\n"}

    monkeypatch.setattr(launch, "require_account", lambda: None)
    monkeypatch.setattr(launch, "start", start)
    return started


def parsed(*words):
    context = get_command(app).commands["train"].make_context("train", list(words))
    context.obj = Verbosity()
    return context


def job(*words, file=None, folder="", verbosity=None):
    context = parsed(*words)
    context.obj = verbosity or Verbosity()
    return make_job(context, resolve_config(None, context.params["sets"] or (), environ={}), file, "/runs", folder)


# The command


@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        ([], []),
        (["--updates", "3", "--minutes=1.5"], ["--updates=3", "--minutes=1.5"]),
        (["--no-temporal", "--lora"], ["--no-temporal", "--lora"]),
        (["--temporal", "--full"], ["--temporal", "--full"]),
        (["--log", "wandb", "--log=trackio"], ["--log=wandb", "--log=trackio"]),
        (["--set", "a=1", "--set=b=[2, 3]"], ["--set=a=1", "--set=b=[2, 3]"]),
        (["--head", "oft-discrete", "--quantize", "nf4"], ["--head=oft-discrete", "--quantize=nf4"]),
        (["--tasks", "-x"], ["--tasks=-x"]),
        (["--engine", "modal", "--gpu", "L4", "-y", "--runs-dir", "here", "--json"], ["--json"]),
    ],
)
def test_options_are_passed_on_as_they_were_typed(typed, passed):
    assert forwarded(parsed(*typed), engines.OURS) == passed
    again = parsed(*passed).params
    assert {name: value for name, value in parsed(*typed).params.items() if name not in engines.OURS} == {
        name: value for name, value in again.items() if name not in engines.OURS
    }


def test_a_new_run_gets_a_name_of_its_own():
    first, second = job("--name", "mine"), job("--name", "mine")
    for one in (first, second):
        assert one.arguments == ["train", "--set=env.workers=8", f"--name={one.name}", "--runs-dir=/runs"]
        assert one.again == ["train", "--runs-dir=/runs", "--resume"]
    assert first.name != second.name


def test_a_name_that_leaves_no_room_for_an_id_is_refused():
    assert len(job("--set", f"name={'a' * 57}").name) == 64
    with pytest.raises(ConfigError, match="too long"):
        job("--set", f"name={'a' * 58}")


def test_processes_that_somebody_chose_are_left_alone():
    assert job("--set", "env.workers=3").arguments[1:-2] == ["--set=env.workers=3"]


def test_a_configuration_file_travels_as_text(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\n")
    made = job("--config", str(file), file=file)
    assert "--config=/tmp/vlacoach/mine.yaml" in made.arguments
    assert made.files == {"/tmp/vlacoach/mine.yaml": "seed: 3\n"}
    assert str(tmp_path) not in str(made.arguments)


def test_a_resumed_run_is_named_by_its_folder_and_needs_no_second_command():
    made = job("--resume", "latest", "--updates", "9", folder="20260101_100000_grpo_0001")
    assert made.arguments == ["train", "--updates=9", "--runs-dir=/runs", "--resume=20260101_100000_grpo_0001"]
    assert (made.again, made.name, made.files) == ([], "", {})


def test_what_is_asked_of_the_output_is_asked_of_the_second_command_too():
    made = job("--json", verbosity=Verbosity(quiet=True))
    assert made.again == ["-q", "train", "--json", "--runs-dir=/runs", "--resume"]
    assert job(verbosity=Verbosity(verbose=2)).arguments[:3] == ["-v", "-v", "train"]


def test_variables_that_set_the_configuration_travel_and_places_do_not(monkeypatch):
    monkeypatch.setenv("VLACOACH_GRPO__PROMPTS", "4")
    monkeypatch.setenv("VLACOACH_RUNS_DIR", "/home/me/runs")
    monkeypatch.setenv("VLACOACH_CACHE", "/home/me/cache")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert job().environment == {"VLACOACH_GRPO__PROMPTS": "4"}


# What is refused


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gpu", "A10G"], "Add --engine modal."),
        (["--yes"], "Add --engine modal."),
        (["--engine", "modal", "--gpu", "A11G"], "Did you mean 'A10G'? Available: A10,"),
        (["--engine", "modal", "--watch"], "say `vlacoach watch` in another terminal"),
        (["--engine", "modal", "--suite", "libero_gaol"], "Did you mean 'libero_goal'?"),
        (["--engine", "modal", "--seed", "-4"], "--seed: seed = -4"),
        (["--engine", "modal", "--policy", "."], "policy.path is a folder of this machine"),
        (["--engine", "modal"], "modal token new"),
        (["--engine", "spaceship"], "'modal'"),
    ],
)
def test_what_cannot_work_exits_2_and_leaves_nothing(invoke, tmp_path, stranger, args, message):
    result = invoke("train", *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_without_modal_the_error_says_how_to_install_it(invoke, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "modal" else real(name))
    result = invoke("train", "--engine", "modal")
    assert result.exit_code == 2
    assert "pip install 'vlacoach[modal]'" in result.stderr


def test_resume_of_a_run_that_is_not_here(invoke, customer):
    assert invoke("train", "--engine", "modal", "--resume", "nope").exit_code == 5


def test_resume_and_config_contradict_each_other(invoke, tmp_path, customer):
    with RunFolder.create(tmp_path / "runs", "first", TrainConfig()):
        pass
    result = invoke("train", "--engine", "modal", "--resume", "first", "--config", "x.yaml")
    assert result.exit_code == 2
    assert "cannot be combined" in result.stderr


def test_an_adapter_of_this_machine_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"policy\.adapter is a folder of this machine") as error:
        refuse_local_folders(TrainConfig.model_validate({"policy": {"adapter": str(tmp_path)}}))
    assert f"/cache/policies/{tmp_path.name}" in str(error.value)


# Money


def test_without_a_terminal_nothing_is_spent_unless_yes_says_so(invoke, customer):
    result = invoke("train", "--engine", "modal")
    assert result.exit_code == 2
    assert "1.73 USD an hour" in result.stderr
    assert "Say --yes" in result.stderr
    assert customer == []
    result = invoke("train", "--engine", "modal", "--yes", "--log", "wandb")
    assert (result.exit_code, result.stdout) == (0, "printed there\n")
    ((settings, _),) = customer
    assert settings.machine.gpu.name == "A10G"
    assert settings.extras == ("quantize", "video", "wandb")


@pytest.mark.parametrize(("answer", "trainings"), [("y\n", 1), ("n\n", 0), ("\n", 0)])
def test_in_a_terminal_the_user_is_asked(tmp_path, monkeypatch, customer, answer, trainings):
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "_asks", lambda: True)
    result = CliRunner().invoke(app, ["train", "--engine", "modal", "--gpu", "L4"], input=answer)
    assert len(customer) == trainings
    assert result.exit_code == (0 if trainings else 1)


def test_secrets_are_those_that_are_set(invoke, customer, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    invoke("train", "--engine", "modal", "--yes")
    invoke("train", "--engine", "modal", "--yes", "--log", "wandb")
    monkeypatch.delenv("HF_TOKEN")
    invoke("train", "--engine", "modal", "--yes")
    assert [settings.secrets for settings, _ in customer] == [("HF_TOKEN",), ("HF_TOKEN", "WANDB_API_KEY"), ()]
    assert "hf_secret" not in str(customer)


def test_the_status_of_the_command_there_is_this_ones(invoke, customer, monkeypatch):
    monkeypatch.setattr(launch, "start", lambda *_: {"status": 6, "output": ""})
    assert invoke("train", "--engine", "modal", "--yes").exit_code == 6
    monkeypatch.setattr(launch, "start", lambda *_: None)
    assert invoke("train", "--engine", "modal", "--yes").exit_code == 130
