from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlacoach.errors import RunError
from vlacoach.runs import constants as names
from vlacoach.runs.report import learning_curve, series, write_learning_curve
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
