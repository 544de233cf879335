from __future__ import annotations

import pytest

from vlacoach.runs.config import TrainConfig
from vlacoach.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    def write(value):
        def fill(path):
            (path / "adapter").mkdir()
            (path / "adapter" / "adapter_config.json").write_text(value)

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
    result = invoke("runs", "export", "first", "--adapter", "mine", *args)
    assert (result.exit_code, result.stdout) == (0, "adapter: mine\n")
    assert (tmp_path / "mine" / "adapter_config.json").read_text() == contents


def test_an_unknown_checkpoint_exits_4_and_lists_those_there_are(invoke, run):
    result = invoke("runs", "export", "--adapter", "mine", "--checkpoint", "7")
    assert result.exit_code == 4
    assert "last, 1, 2" in result.stderr


def test_a_damaged_checkpoint_is_not_exported(invoke, run, tmp_path):
    (run.path / "checkpoints" / "000002" / "adapter" / "adapter_config.json").write_text("twO")
    assert invoke("runs", "export", "--adapter", "mine").exit_code == 4
    assert not (tmp_path / "mine").exists()


def test_csv_to_standard_output_and_to_a_file(invoke, run, tmp_path):
    result = invoke("runs", "export", "--csv", "-")
    assert result.stdout.splitlines()[0] == "step,time,a/x"
    assert invoke("runs", "export", "--csv", "m.csv").stdout == "csv: m.csv\n"
    assert (tmp_path / "m.csv").read_text() == result.stdout
    assert invoke("runs", "export", "--csv", "m.csv").exit_code == 2
    assert invoke("runs", "export", "--csv", "m.csv", "--force").exit_code == 0


def test_tensorboard(invoke, run, tmp_path):
    assert invoke("runs", "export", "--tensorboard", "tb").stdout == "tensorboard: tb\n"
    assert len(list((tmp_path / "tb").glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(
    "args",
    [[], ["--csv", "a", "--adapter", "b"], ["--csv", "a", "--tensorboard", "b"], ["--csv", "a", "--checkpoint", "1"]],
)
def test_exactly_one_thing_is_exported(invoke, run, tmp_path, args):
    assert invoke("runs", "export", *args).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
