"""What is taken out of a run."""

from __future__ import annotations

import csv
import io
import resource
from importlib import metadata

import pytest

from vlacoach.errors import CheckpointError, ConfigError, RunError
from vlacoach.runs.export import export_adapter, export_csv, export_tensorboard, metrics_csv
from vlacoach.runs.folder import RunFolder

RECORDS = [
    {"time": 100.5, "step": 0, "eval/success": 0.25},
    {"time": 101.0, "step": 1, "train/kl": None, "train/loss": 1e-07, "nonfinite": ["train/kl"]},
    {"time": 102.0, "step": 1, "eval/success": 0.5, "note": 'a "b", c'},
]


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoints" / "000001"
    (folder / "adapter" / "inner").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "inner" / "x").write_bytes(b"x" * 100_000)
    (folder / "scorer").mkdir()
    return folder


def test_csv_has_a_row_a_line_and_columns_in_the_order_of_their_appearance():
    assert metrics_csv(RECORDS) == (
        "step,time,eval/success,train/kl,train/loss,note\n"
        "0,100.5,0.25,,,\n"
        "1,101.0,,,1e-07,\n"
        '1,102.0,0.5,,,"a ""b"", c"\n'
    )


def test_csv_reads_back_as_what_the_run_logged(tmp_path):
    with RunFolder.create(tmp_path, "one") as folder:
        folder.log_metrics(1, {"a/x": 0.1, "a/y": float("nan")})
        folder.log_metrics(2, {"a/y": -3.0, "a/x": float("inf")})
    rows = list(csv.DictReader(io.StringIO(metrics_csv(folder.metrics()))))
    assert [(row["step"], row["a/x"], row["a/y"]) for row in rows] == [("1", "0.1", ""), ("2", "", "-3.0")]


def test_csv_of_a_run_without_metrics_is_its_heading():
    assert metrics_csv([]) == "step,time\n"


def test_a_csv_file_is_replaced_only_when_asked(tmp_path):
    file = tmp_path / "metrics.csv"
    export_csv(RECORDS, file)
    with pytest.raises(ConfigError, match="exists"):
        export_csv([], file)
    assert file.read_text() == metrics_csv(RECORDS)
    export_csv([], file, force=True)
    assert file.read_text() == "step,time\n"


def test_the_adapter_is_copied_and_nothing_else(checkpoint, tmp_path):
    target = export_adapter(checkpoint, tmp_path / "out" / "mine")
    assert sorted(path.name for path in target.rglob("*")) == ["adapter_config.json", "inner", "x"]
    assert (target / "inner" / "x").read_bytes() == b"x" * 100_000
    assert [path.name for path in target.parent.iterdir()] == ["mine"]


def test_where_all_weights_were_trained_they_are_copied(checkpoint, tmp_path):
    (checkpoint / "adapter").rename(checkpoint / "policy")
    assert (export_adapter(checkpoint, tmp_path / "mine") / "inner" / "x").exists()


def test_a_checkpoint_without_weights_is_an_error(checkpoint, tmp_path):
    (checkpoint / "adapter").rename(checkpoint / "other")
    with pytest.raises(CheckpointError, match="no adapter"):
        export_adapter(checkpoint, tmp_path / "mine")


def test_an_adapter_that_is_there_is_replaced_only_when_asked(checkpoint, tmp_path):
    target = export_adapter(checkpoint, tmp_path / "mine")
    (target / "old").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        export_adapter(checkpoint, target)
    export_adapter(checkpoint, target, force=True)
    assert not (target / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "mine"]


def test_a_folder_of_other_things_is_never_replaced(checkpoint, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "precious").write_text("x")
    for export in (lambda: export_adapter(checkpoint, home, True), lambda: export_tensorboard(RECORDS, home, True)):
        with pytest.raises(ConfigError, match="other things"):
            export()
    assert (home / "precious").exists()


def test_an_export_that_fails_leaves_what_was_there(checkpoint, tmp_path):
    target = export_adapter(checkpoint, tmp_path / "mine")
    before = (target / "inner" / "x").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(RunError, match="Cannot write"):
            export_adapter(checkpoint, target, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (target / "inner" / "x").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "mine"]


def test_event_files_read_back_as_the_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    target = export_tensorboard(RECORDS, tmp_path / "tb")
    events = EventAccumulator(str(target))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/success", "train/loss"]
    found = [(event.wall_time, event.step, event.value) for event in events.Scalars("eval/success")]
    assert found == [(100.5, 0, 0.25), (102.0, 1, 0.5)]
    assert events.Scalars("train/loss")[0].value == pytest.approx(1e-7)


def test_event_files_that_are_there_are_replaced_only_when_asked(tmp_path):
    target = export_tensorboard(RECORDS, tmp_path / "tb")
    (before,) = target.iterdir()
    with pytest.raises(ConfigError, match="not empty"):
        export_tensorboard(RECORDS, target)
    assert list(target.iterdir()) == [before]
    export_tensorboard(RECORDS, target, force=True)
    assert len(list(target.iterdir())) == 1


def test_without_tensorboard_the_error_names_the_extra(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match="tensorboard is not installed") as caught:
        export_tensorboard(RECORDS, tmp_path / "tb")
    assert caught.value.hint == 'Install it with: pip install "vlacoach[tensorboard]"'
    assert list(tmp_path.iterdir()) == []
