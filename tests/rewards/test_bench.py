"""The lab's figures, on embeddings whose quality is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trajectories import graded_failures, make_trajectory, paths_and_reversals

from vlacoach.errors import NonFiniteError, VlacoachError
from vlacoach.rewards import Scorer, SiglipScorer, make_scorer
from vlacoach.rewards.bench import (
    LabEpisode,
    assess,
    auroc_within,
    closeness,
    progress_curve,
    standardized_within,
)
from vlacoach.rewards.check import ScorerCheck
from vlacoach.rewards.metrics import auroc, subsample
from vlacoach.rewards.views import view

DIM = 8


class LastLook(Scorer):
    """Looks at the end only."""

    name = "last"

    def embed(self, trajectory):
        return trajectory.terminal_features.mean(dim=0).numpy()


def staged(count: int, seed: int = 0) -> list[LabEpisode]:
    """Walks from 0 toward 1 along the first axis: all the way, nine tenths of it, or a tenth."""
    rng = np.random.default_rng(seed)
    made = []
    for slot in range(count):
        source = ("policy", "policy", "near-miss", "gross-failure")[slot % 4]
        success = slot % 4 == 0
        reach = {"policy": 1.0 if success else 0.5, "near-miss": 0.9, "gross-failure": 0.1}[source]
        looks = torch.zeros(8, DIM)
        looks[:, 0] = torch.linspace(0, reach, 8)
        looks += 0.01 * torch.from_numpy(rng.standard_normal((1, DIM))).float()
        trajectory = make_trajectory(looks[:-1], success, slot=slot, task=slot // 4 % 2, terminal=looks[-1])
        made.append(LabEpisode(trajectory, source))
    return made


def test_closeness_leaves_a_success_out_of_its_own_reference():
    points = [[0.0], [2.0], [5.0], [9.0]]
    found = closeness(points, [True, True, False, True], [0, 0, 0, 1])
    np.testing.assert_allclose(found[:3], [-2.0, -2.0, -4.0])
    assert np.isnan(found[3])
    # A failure is held against the same references as the successes: at 0 and at 2.
    np.testing.assert_allclose(closeness([[0.0], [2.0], [1.5]], [True, True, False], [0, 0, 0])[2], -1.0)
    assert closeness([[1.0], [4.0]], [True, False], [0, 0])[1] == -3.0
    with pytest.raises(NonFiniteError, match="Embedding 1"):
        closeness([[0.0], [np.nan]], [True, False], [0, 0])


@pytest.mark.parametrize("successes", [2, 4, 16])
def test_successes_and_failures_that_do_not_differ_are_at_chance_however_few_there_are(successes):
    rng = np.random.default_rng(successes)
    areas = []
    for _ in range(40):
        points = rng.standard_normal((successes + 12, 192))
        won = np.arange(successes + 12) < successes
        areas.append(auroc(closeness(points, won, np.zeros(len(won))), won))
    assert np.mean(areas) == pytest.approx(0.5, abs=0.12)


def test_auroc_within_counts_pairs_of_the_same_task_only():
    scores, labels, task = [1.0, 2.0, 10.0, 11.0, 12.0], [True, False, False, True, True], [0, 0, 1, 1, 1]
    # Task 0 loses its pair, task 1 wins both; a positive of one task below a negative of another is no matter.
    assert auroc_within(scores, labels, task) == pytest.approx(2 / 3)
    assert auroc(scores, labels) == pytest.approx(4 / 6)
    moved = [100.0, 101.0, *scores[2:]]
    assert auroc_within(moved, labels, task) == pytest.approx(2 / 3)
    assert auroc(moved, labels) != pytest.approx(2 / 3)
    with pytest.raises(VlacoachError, match="both classes"):
        auroc_within(scores, labels, [0, 1, 2, 3, 4])


def test_standardized_within_takes_each_tasks_scale_away():
    found = standardized_within([1.0, 3.0, 100.0, 300.0, 7.0], [0, 0, 1, 1, 2])
    np.testing.assert_allclose(found, [-1, 1, -1, 1, 0])


def test_a_view_shows_the_chosen_looks_in_order():
    looks = torch.arange(5.0)[:, None].repeat(1, DIM)
    whole = make_trajectory(looks[:-1], True, terminal=looks[-1])
    whole.frames = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 2, 2, 3)
    shown = view(whole, [4, 0, 2])
    assert shown.features.mean(dim=(1, 2)).tolist() == [4.0, 0.0]
    assert shown.terminal_features.mean().item() == 2.0
    assert shown.frames[:, 0, 0, 0].tolist() == [4, 0, 2]
    alone = view(whole, [3])
    assert alone.num_looks == 0
    np.testing.assert_allclose(SiglipScorer().embed(alone), np.full(DIM, 3.0), atol=1e-6)


def test_progress_on_a_straight_walk_is_the_distance_that_is_left():
    looks = torch.zeros(5, DIM)
    looks[:, 0] = torch.linspace(0, 1, 5)
    walk = make_trajectory(looks[:-1], True, terminal=looks[-1])
    goal = np.zeros(DIM)
    goal[0] = 1.0
    np.testing.assert_allclose(progress_curve(LastLook(), walk, goal), [-1, -0.75, -0.5, -0.25, 0], atol=1e-6)


def test_a_scorer_that_sees_how_far_episodes_came_gets_perfect_figures():
    report = assess(LastLook(), staged(80), resamples=200)
    for figure in (report.auroc, report.policy_auroc, report.near_miss_auroc):
        assert figure.value == figure.low == figure.high == 1.0
    assert report.spearman.value == pytest.approx(1.0, abs=0.02)
    assert report.monotonicity.value > 0.95
    assert report.smd.value > 1.0
    assert report.jensen_shannon.value > 0.9
    assert report.mmd.low > 0.1
    assert report.parameters == 0
    assert report.milliseconds > 0
    assert report.curves["median"][0] < 0.1
    assert report.curves["median"][-1] > 0.9


def test_a_scorer_that_reads_the_clock_is_seen_through():
    class Clock(Scorer):
        name = "clock"

        def embed(self, trajectory):
            return np.array([trajectory.num_looks + 0.01 * np.sin(trajectory.slot)], dtype=np.float32)

    episodes = staged(80)
    episodes = [
        LabEpisode(view(one.trajectory, range(5)), one.source) if one.trajectory.success else one for one in episodes
    ]
    report = assess(Clock(), episodes, resamples=100)
    assert report.auroc.value == 1.0
    assert report.held_auroc.low < 0.5 < report.held_auroc.high
    assert report.spearman is None


def test_a_scorer_that_sees_nothing_is_at_chance():
    class Blind(Scorer):
        name = "blind"

        def embed(self, trajectory):
            return np.random.default_rng(trajectory.slot).standard_normal(4).astype(np.float32)

    report = assess(Blind(), staged(160), resamples=200)
    assert report.auroc.low < 0.5 < report.auroc.high
    assert report.near_miss_auroc.low < 0.5 < report.near_miss_auroc.high
    assert abs(report.mmd.value) < 0.1


def test_order_sensitivity_is_zero_for_a_mean_and_not_for_a_trained_fusion():
    batch = paths_and_reversals(DIM, 12, seed=0)
    episodes = [LabEpisode(one, "policy") for one in batch]
    assert assess(SiglipScorer(), episodes, resamples=100).order_sensitivity == 0.0
    for fusion, sensitive in (("film", True), ("add", False)):
        scorer = make_scorer("siglip-t", feature_dim=DIM, fusion=fusion, steps=30)
        scorer.fit(batch)
        sensitivity = assess(scorer, episodes, resamples=100).order_sensitivity
        assert (sensitivity > 0.1) is sensitive


def test_figures_that_the_rollouts_do_not_allow_are_left_out():
    episodes = [LabEpisode(one, "policy") for one in graded_failures(DIM, 20, seed=0)[0]]
    report = assess(SiglipScorer(), episodes, resamples=100)
    assert report.near_miss_auroc is None
    assert report.auroc is not None
    failures = [one for one in episodes if not one.trajectory.success]
    with pytest.raises(VlacoachError, match="No task has two successes"):
        assess(SiglipScorer(), failures, resamples=100)


def test_the_same_seed_gives_the_same_report():
    first, second = (vars(assess(SiglipScorer(), staged(40), seed=3, resamples=100)) for _ in range(2))
    first.pop("milliseconds"), second.pop("milliseconds")
    assert first == second


def test_halves_scatter_like_the_mean_itself():
    values = np.random.default_rng(0).standard_normal(400)
    found = subsample(lambda rows: float(values[rows].mean()), 400, np.random.default_rng(1), 2000)
    error = values.std(ddof=1) / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    with pytest.raises(VlacoachError, match="undefined on most resamples"):
        subsample(lambda rows: 0.0 if len(rows) == 4 else _undefined(), 4, np.random.default_rng(0))


def _undefined() -> float:
    raise VlacoachError("No.")


def test_the_check_of_a_run_waits_for_enough_batches_and_speaks_once():
    check = ScorerCheck(batches=2)
    batches = [[episode.trajectory for episode in staged(40, seed)] for seed in range(4)]
    assert check.observe(LastLook(), batches[0]) is None
    found = check.observe(LastLook(), batches[1])
    assert found.value == found.low == found.high == 1.0
    assert check.observe(LastLook(), batches[2]) is None


def test_the_check_leaves_out_batches_from_before_the_scorer_was_fitted():
    check, scorer = ScorerCheck(batches=1), make_scorer("siglip-t", feature_dim=DIM, steps=20)
    batch = [episode.trajectory for episode in staged(40)]
    assert check.observe(scorer, batch) is None
    scorer.fit(batch)
    assert check.observe(scorer, [episode.trajectory for episode in staged(40, 1)]).value > 0.5


def test_the_check_compares_within_batches():
    class Drifting(Scorer):
        """Right within a batch, but a later batch is closer throughout."""

        name = "drifting"
        batch = 0

        def embed(self, trajectory):
            return np.array([(10 + trajectory.slot) * 0.1**self.batch * (not trajectory.success)], dtype=np.float32)

    check, scorer = ScorerCheck(batches=2), Drifting()
    batch = [episode.trajectory for episode in staged(40)]
    check.observe(scorer, batch)
    scorer.batch = 5
    assert check.observe(scorer, batch).value == 1.0


def test_a_check_without_a_mixed_task_has_nothing_to_say():
    failures = [episode.trajectory for episode in staged(40) if not episode.trajectory.success]
    assert ScorerCheck(batches=1).observe(LastLook(), failures) is None
