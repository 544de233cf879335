"""A run that fails before its first checkpoint is removed; any other stays."""

from __future__ import annotations

import pytest

from vlacoach.runs.discarding import discarded_if_nothing_began
from vlacoach.runs.finding import find_run
from vlacoach.runs.folder import RunFolder
from vlacoach.runs.reporting import NullReporter


def fail(folder: RunFolder, checkpoint: bool = False) -> None:
    with folder, discarded_if_nothing_began(folder, NullReporter()), folder.running():
        if checkpoint:
            folder.checkpoints.save(0, lambda path: (path / "x").write_text("data"))
        raise KeyboardInterrupt


def test_a_run_that_has_not_begun_leaves_neither_folder_nor_link(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail(RunFolder.create(tmp_path, "first"))
    assert list(tmp_path.iterdir()) == []


def test_latest_is_the_run_before_again(tmp_path):
    first = RunFolder.create(tmp_path, "first")
    with pytest.raises(KeyboardInterrupt):
        fail(first, checkpoint=True)
    assert RunFolder.open(first.path).status() == "interrupted"
    with pytest.raises(KeyboardInterrupt):
        fail(RunFolder.create(tmp_path, "second"))
    assert {path.name for path in tmp_path.iterdir()} == {first.path.name, "latest"}
    assert find_run("latest", tmp_path) == first.path
