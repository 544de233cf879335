"""What a training left, read from a folder that was copied."""

from __future__ import annotations

import json

import pytest

from vlacoach.errors import RunError
from vlacoach.runs.results import TrainResult, read_train_result, write_results


def test_artifacts_lie_where_the_folder_is_now(tmp_path):
    before = tmp_path / "node" / "run"
    before.mkdir(parents=True)
    result = TrainResult(before, 4, 12.5, {}, {"adapter": before / "checkpoints" / "000004" / "adapter"})
    write_results(result, before / "results.json")
    now = before.rename(tmp_path / "here")
    assert read_train_result(now) == TrainResult(
        now, 4, 12.5, {}, {"adapter": now / "checkpoints" / "000004" / "adapter"}
    )


@pytest.mark.parametrize("change", [{"run": "/elsewhere"}, {"updates": None}, {"artifacts": 3}])
def test_damaged_results_are_an_error(tmp_path, change):
    with pytest.raises(RunError, match="cannot be read"):
        read_train_result(tmp_path)
    write_results(TrainResult(tmp_path, 4, 12.5, {}, {"plot": tmp_path / "plot.png"}), tmp_path / "results.json")
    data = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(RunError, match=r"results\.json cannot be read"):
        read_train_result(tmp_path)
