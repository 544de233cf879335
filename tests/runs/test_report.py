from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.report import figures, learning_curve, series, stage_seconds, write_learning_curve
from vlacoach.runs.statistics import wilson_interval


def records():
    lines = [{"step": 0, "eval/success": 0.4, "eval/successes": 80, "eval/episodes": 200}]
    for step in range(1, 6):
        lines.append({"step": step, names.ROLLOUT_SUCCESS: step / 10, names.TRAIN_KL: None, names.TRAIN_ENTROPY: 1.0})
    return [*lines, {"step": 5, "eval/success": 0.6, "eval/successes": 120, "eval/episodes": 200}]


def test_series_keeps_gaps_and_ignores_rubbish():
    steps, values = series(
        [*records(), {"step": "x", names.TRAIN_KL: 1.0}, {"step": 9, names.TRAIN_KL: "y"}], names.TRAIN_KL
    )
    assert steps.tolist() == [1, 2, 3, 4, 5]
    assert np.isnan(values).all()


def test_success_panel_shows_points_average_and_wilson_bars():
    axes = learning_curve(records(), "run").axes[0]
    points, average = axes.lines[:2]
    np.testing.assert_allclose(points.get_ydata(), [0.1, 0.2, 0.3, 0.4, 0.5])
    assert len(average.get_ydata()) == 5
    (bars,) = axes.containers
    (segments,) = (collection.get_segments() for collection in bars.lines[2])
    interval = wilson_interval(80, 200)
    np.testing.assert_allclose(segments[0][:, 1], [interval.low, interval.high])


def test_png_is_written_whole(tmp_path):
    file = write_learning_curve(records(), tmp_path / "curve.png", "run")
    with Image.open(file) as image:
        assert image.size == (1080, 840)
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert list(tmp_path.iterdir()) == [file]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(RunError, match="no metrics"):
        write_learning_curve([{"step": 1}], tmp_path / "curve.png", "run")


def test_figures_are_those_there_are_metrics_for():
    assert figures([{"step": 1}]) == {}
    drawn = figures(records())
    assert list(drawn) == ["success", "health"]
    panels = [axes for axes in drawn["health"].axes if axes.axison]
    assert [axes.get_ylabel() for axes in panels] == ["KL (nats)", "entropy (nats)"]


def test_time_is_stacked_by_stage_without_the_sums():
    lines = [
        {"step": 1, "time/rollout": 3.0, "time/update": 1.0, "time/total": 4.5},
        {"step": 1, "time/elapsed": 99.0},
        {"step": 2, "time/rollout": 2.0, "time/update": None},
    ]
    assert stage_seconds(lines) == {"rollout": {1: 3.0, 2: 2.0}, "update": {1: 1.0}}
    axes = figures(lines)["time"].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["rollout", "update"]
    top = axes.collections[-1].get_paths()[0].vertices
    assert top[:, 1].max() == 4.0
    assert (top[:, 0].min(), top[:, 0].max()) == (0.5, 2.5)
