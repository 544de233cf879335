"""What ``train``, ``eval``, ``sft`` and ``demos`` refuse, before anything heavy starts or is written."""

from __future__ import annotations

from importlib import metadata

import pytest

from vlacoach.cli.eval import Split, chosen_states
from vlacoach.cli.train import _resume
from vlacoach.runs.checkpoints import CheckpointStore
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.resolve import Flag


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "runs", "first", TrainConfig()) as folder:
        folder.checkpoints.save(3, lambda path: (path / "x").write_text("data"), score=0.1)
    return folder


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--suite", "libero_gaol"], "Did you mean 'libero_goal'?"),
        (["--tasks", "1,99"], "no task 99"),
        (["--tasks", "one"], "env.tasks = 'one'"),
        (["--set", "grpo.clip_hihg=1"], "Did you mean 'grpo.clip_high'?"),
        (["--set", "reward.name=sigclip"], "Did you mean 'siglip'?"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--seed", "-4"], "--seed: seed = -4"),
    ],
)
def test_bad_settings_exit_2_and_leave_nothing(invoke, tmp_path, command, args, message):
    result = invoke(command, *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_resume_of_an_unknown_run(invoke, run):
    result = invoke("train", "--resume", "nope")
    assert result.exit_code == 5
    assert run.path.name in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seed", "5"], "cannot change seed from 0 to 5 (--seed)"),
        (["--no-temporal"], "cannot change reward.temporal"),
        (["--set", "grpo.prompts=3"], "cannot change grpo.prompts from 16 to 3 (--set grpo.prompts=3)"),
        (["--config", "x.yaml"], "cannot be combined"),
    ],
)
def test_resume_cannot_change_what_decides_the_numbers(invoke, run, args, message):
    before = (run.path / "config.yaml").read_text()
    result = invoke("train", "--resume", "latest", *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert (run.path / "config.yaml").read_text() == before
    # The lock was given back.
    RunFolder.resume(run.path).close()


def test_a_resumed_run_may_change_its_micro_batch_and_says_what_auto_was(run):
    for asked, used in (("grpo.micro_batch=5", 5), ("grpo.micro_batch=auto", 64)):
        folder, resolved = _resume(str(run.path), run.path.parent, None, [asked], [])
        folder.close()
        assert resolved.config.grpo.micro_batch == used
        assert TrainConfig.load(run.path / "config.yaml").grpo.micro_batch == used


def test_a_tracker_that_is_not_installed_exits_2_and_leaves_nothing(invoke, tmp_path, monkeypatch):
    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    result = invoke("train", "--log", "tensorboard", "--log", "wandb")
    assert result.exit_code == 2
    assert 'pip install "vlacoach[tensorboard]"' in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_exits_2_and_lists_those_there_are(invoke, tmp_path):
    assert "'wandb'" in invoke("train", "--log", "mlflow").stderr
    result = invoke("train", "--set", "logging.trackers=[mlflow]")
    assert result.exit_code == 2
    assert "logging.trackers" in result.stderr
    assert "'trackio'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_resume_may_change_where_metrics_go(run):
    _, resolved = _resume("first", run.path.parent, None, [], [Flag("--log", "logging.trackers", ["tensorboard"] * 2)])
    assert resolved.config.logging.trackers == ("tensorboard",)


def test_resume_of_a_run_in_use(invoke, run):
    with RunFolder.resume(run.path):
        result = invoke("train", "--resume", "latest")
    assert result.exit_code == 5
    assert "in use" in result.stderr


def test_eval_of_two_policies(invoke, run):
    assert invoke("eval", "--run", "latest", "--policy", "tiny").exit_code == 2


def test_eval_of_a_missing_or_damaged_checkpoint(invoke, run):
    result = invoke("eval", "--run", "latest", "--checkpoint", "7")
    assert result.exit_code == 4
    assert "There are: last, 3" in result.stderr
    (run.path / "checkpoints" / "000003" / "x").write_text("dama")
    for checkpoint in ("last", "best", "3", "000003"):
        result = invoke("eval", "--run", "latest", "--checkpoint", checkpoint)
        assert result.exit_code == 4, checkpoint
        assert "corrupt" in result.stderr
    assert CheckpointStore(run.path / "checkpoints").best() is not None


def test_splits():
    config = TrainConfig()
    tasks = config.env.tasks
    assert chosen_states(config, None) == (dict.fromkeys(tasks, tuple(range(30, 50))), "held-out")
    assert chosen_states(config, Split.TRAIN) == (dict.fromkeys(tasks, tuple(range(30))), "train")
    assert chosen_states(config, Split.ALL) == (dict.fromkeys(tasks, tuple(range(50))), "all")


def test_sft_without_demonstrations(invoke):
    result = invoke("sft")
    assert result.exit_code == 2
    assert "vlacoach demos collect" in result.stderr


def test_sft_spares_a_full_folder(invoke, tmp_path):
    (tmp_path / "demos").mkdir()
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "precious").write_text("x")
    result = invoke("sft")
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr


def test_demos_of_an_unknown_suite(invoke):
    assert "libero_object" in invoke("demos", "collect", "--suite", "libero_objcet").stderr
