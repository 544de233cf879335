from __future__ import annotations

import json

import huggingface_hub
import pytest
from hub_server import local_hub

from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.splits import Splits, write_splits


@pytest.fixture
def run(tmp_path):
    def write(value):
        def fill(path):
            (path / "adapter").mkdir()
            (path / "adapter" / "adapter_config.json").write_text(json.dumps({"step": value}))

        return fill

    with RunFolder.create(tmp_path / "runs", "first", TrainConfig()) as folder:
        folder.log_metrics(1, {"a/x": 0.5})
        folder.checkpoints.save(1, write("one"), score=0.9)
        folder.checkpoints.save(2, write("two"), score=0.1)
    return folder


@pytest.mark.parametrize(
    ("args", "contents"),
    [([], "two"), (["--checkpoint", "best"], "one"), (["--checkpoint", "1"], "one"), (["--checkpoint", "last"], "two")],
)
def test_adapter_of_the_chosen_checkpoint(invoke, run, tmp_path, args, contents):
    result = invoke("runs", "export", "adapter", "first", "--out", "mine", *args)
    assert (result.exit_code, result.stdout) == (0, "adapter: mine\n")
    assert json.loads((tmp_path / "mine" / "adapter_config.json").read_text()) == {"step": contents}


def test_an_unknown_checkpoint_exits_4_and_lists_those_there_are(invoke, run):
    result = invoke("runs", "export", "adapter", "--out", "mine", "--checkpoint", "7")
    assert result.exit_code == 4
    assert "last, 1, 2" in result.stderr


def test_a_damaged_checkpoint_is_not_exported(invoke, run, tmp_path):
    (run.path / "checkpoints" / "000002" / "adapter" / "adapter_config.json").write_text('{"step": "twO"}')
    assert invoke("runs", "export", "adapter", "--out", "mine").exit_code == 4
    assert not (tmp_path / "mine").exists()


def test_csv_to_standard_output_and_to_a_file(invoke, run, tmp_path):
    result = invoke("runs", "export", "csv")
    assert result.stdout.splitlines()[0] == "step,time,a/x"
    assert invoke("runs", "export", "csv", "--out", "m.csv").stdout == "csv: m.csv\n"
    assert (tmp_path / "m.csv").read_text() == result.stdout
    assert invoke("runs", "export", "csv", "--out", "m.csv").exit_code == 2
    assert invoke("runs", "export", "csv", "--out", "m.csv", "--force").exit_code == 0


def test_tensorboard(invoke, run, tmp_path):
    assert invoke("runs", "export", "tensorboard", "--out", "tb").stdout == "tensorboard: tb\n"
    assert len(list((tmp_path / "tb").glob("events.out.tfevents.*"))) == 1


def test_hub_without_pushing_writes_the_folder_and_the_card(invoke, run, tmp_path):
    result = invoke("runs", "export", "hub", "first", "--repo", "me/bowls", "--dry-run", "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"repo": "me/bowls", "folder": "out", "url": None}
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\n")
    assert invoke("runs", "export", "hub", "--repo", "me/bowls", "--dry-run", "--out", "out").exit_code == 2
    again = invoke("runs", "export", "hub", "--repo", "me/bowls", "--dry-run", "--out", "out", "--force")
    assert (again.exit_code, again.stdout) == (0, "folder: out\n")


def test_hub_pushes_what_it_has_written(invoke, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with local_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        result = invoke("runs", "export", "hub", "--repo", "me/bowls", "--checkpoint", "best")
        assert (result.exit_code, result.stdout) == (0, f"hub: {hub.address}/me/bowls\n"), result.stderr
        assert sorted(hub.files) == ["README.md", "adapter_config.json", "vlacoach.json"]
        assert json.loads(hub.files["adapter_config.json"])["step"] == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--repo", "me/bowls", "--dry-run"], 2, "Say where: --out FOLDER"),
        (["--repo", "bowls", "--dry-run", "--out", "out"], 2, "Give USER/NAME"),
        (["--repo", "me/bowls", "--dry-run", "--out", "out", "--checkpoint", "7"], 4, "last, 1, 2"),
        (["--repo", "me/bowls"], 2, "hf auth login"),
    ],
)
def test_hub_says_what_is_missing_and_leaves_nothing(invoke, run, tmp_path, monkeypatch, args, code, said):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    result = invoke("runs", "export", "hub", "first", *args)
    assert result.exit_code == code
    assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_empty_run_has_nothing_to_export(invoke, tmp_path):
    with RunFolder.create(tmp_path / "runs", "empty", TrainConfig()):
        pass
    commands = (["adapter"], ["rollouts"], ["hub", "--repo", "me/bowls", "--dry-run"])
    for command in commands:
        result = invoke("runs", "export", *command, "--out", "out")
        assert result.exit_code == 4, result.stderr
        assert "no checkpoint" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_rollouts_of_tasks_that_the_run_has_not_are_refused(invoke, run):
    write_splits(run, Splits("libero_goal", {1: (0,)}, {1: (30,)}))
    result = invoke("runs", "export", "rollouts", "--tasks", "1,4", "--out", "out")
    assert result.exit_code == 2
    assert "not trained on the tasks [4]" in result.stderr
