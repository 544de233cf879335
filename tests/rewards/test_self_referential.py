from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_cases import list_cases
from sklearn.cluster import DBSCAN

from vlacoach.errors import NonFiniteError, UnknownNameError, VlacoachError
from vlacoach.rewards import self_referential_details, self_referential_reward
from vlacoach.rewards.self_referential import NOISE, NOT_CLUSTERED, density_clusters, neighbor_distance

# Ten times the agreement that an independent implementation reached on float32 inputs.
TOLERANCE = 1.2e-5
NEAREST, HALFWAY, FARTHEST = 0.6 / (1 + math.exp(-5)), 0.3, 0.6 / (1 + math.exp(5))


def random_batch(seed: int, rows: int = 12, dim: int = 6, tasks: int = 2):
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(rows, dim)),
        generator.random(rows) < 0.5,
        generator.integers(0, tasks, size=rows),
    )


@pytest.mark.parametrize("case", [case for case in list_cases("srpo", "reward") if "nan" not in case])
def test_rewards_match_the_reference(oracle, case):
    arrays = oracle(case)
    details = self_referential_details(arrays["embeddings"], arrays["complete"], arrays["task_name"])
    np.testing.assert_allclose(details.score, arrays["score"], atol=TOLERANCE)
    np.testing.assert_allclose(details.distance, arrays["distance_to_success"], atol=TOLERANCE, rtol=1e-6)
    np.testing.assert_allclose(details.normalized_distance, arrays["normalized_distance"], atol=TOLERANCE)
    np.testing.assert_array_equal(~details.usable, arrays["is_zero_embedding"])
    np.testing.assert_array_equal(details.cluster, arrays["dbscan_label"])
    score = self_referential_reward(arrays["embeddings"], arrays["complete"], arrays["task_name"])
    np.testing.assert_array_equal(score, details.score)


def test_rule_in_closed_form():
    # Successes at 0 and 2 are too far apart to cluster: the reference is their mean, 1.
    embeddings = [[0.001], [2.0], [1.5], [3.0], [5.0]]
    score = self_referential_reward(embeddings, [1, 1, 0, 0, 0], [4, 4, 4, 4, 4])
    middle = (3.0 - 1.5) / (5.0 - 1.5)
    expected = [1.0, 1.0, NEAREST, 0.6 / (1 + math.exp(-10 * (0.5 - middle))), FARTHEST]
    np.testing.assert_allclose(score, expected, atol=2e-3)


def test_a_lone_failure_and_equal_failures_are_halfway():
    assert self_referential_reward([[1.0], [7.0]], [1, 0], [0, 0])[1] == pytest.approx(HALFWAY)
    tied = self_referential_reward([[1.0], [7.0], [7.0]], [1, 0, 0], [0, 0, 0])
    np.testing.assert_allclose(tied[1:], HALFWAY)


def test_a_zero_embedding_scores_zero_and_takes_no_part():
    # The zero success would otherwise be the only reference.
    np.testing.assert_array_equal(self_referential_reward([[0.0], [1.0]], [1, 0], [0, 0]), [0.0, 0.0])


def test_rows_marked_invalid_score_zero_and_take_no_part():
    embeddings, success, task = [[1.0], [math.nan], [2.0], [9.0]], [1, 1, 0, 0], [0] * 4
    with_broken = self_referential_reward(embeddings, success, task, valid=[1, 0, 1, 1])
    without = self_referential_reward([[1.0], [2.0], [9.0]], [1, 0, 0], [0] * 3)
    assert with_broken[1] == 0.0
    np.testing.assert_array_equal(with_broken[[0, 2, 3]], without)


def test_successes_outside_of_clusters_are_no_reference():
    twins = [[0.0, 0.1], [0.0, 0.1001], [10.0, 10.0]]
    details = self_referential_details([*twins, [10.0, 10.1], [0.0, 1.0]], [1, 1, 1, 0, 0], [0] * 5)
    assert details.cluster.tolist() == [0, 0, -1, NOT_CLUSTERED, NOT_CLUSTERED]
    assert details.cluster_count == 1
    assert details.score[3] == pytest.approx(FARTHEST)


def test_a_feature_that_never_varies_does_not_hide_a_cluster():
    twins = [[5.0, 0.0], [5.0, 0.001], [5.0, 10.0]]
    details = self_referential_details([*twins, [5.0, 3.0]], [1, 1, 1, 0], [0] * 4)
    assert details.cluster.tolist() == [0, 0, -1, NOT_CLUSTERED]


def test_constants_can_be_changed():
    arguments = ([[1.0], [2.0], [9.0]], [1, 0, 0], ["a"] * 3)
    score = self_referential_reward(*arguments, success_reward=2.0, ceiling=1.0, steepness=2.0, offset=1.0)
    np.testing.assert_allclose(score, [2.0, 1 / (1 + math.exp(-2)), 0.5])


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_embedding_is_an_error_that_names_it(row, value):
    # Invariant 5, for a success and for a failure alike.
    embeddings = np.ones((3, 4))
    embeddings[row, 1] = value
    with pytest.raises(NonFiniteError, match=rf"row {row} \(task drawer\)"):
        self_referential_reward(embeddings, [1, 1, 0], ["drawer"] * 3)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(VlacoachError, match="success"):
        self_referential_reward(np.ones((3, 4)), [1, 0], [0, 0, 0])


@given(st.integers(0, 2**16), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(seed, random):
    embeddings, success, task = random_batch(seed)
    order = list(range(len(success)))
    random.shuffle(order)
    plain = self_referential_reward(embeddings, success, task)
    np.testing.assert_allclose(
        self_referential_reward(embeddings[order], success[order], task[order]), plain[order], atol=1e-9
    )


@given(st.integers(0, 2**16), st.floats(0.01, 100))
def test_scale_and_shift_of_embeddings_do_not_matter(seed, scale):
    embeddings, success, task = random_batch(seed)
    plain = self_referential_reward(embeddings, success, task)
    np.testing.assert_allclose(self_referential_reward(scale * embeddings + 3.0, success, task), plain, atol=1e-6)


@given(st.integers(0, 2**16))
def test_rewards_fall_with_distance_and_stay_below_the_ceiling(seed):
    embeddings, success, task = random_batch(seed)
    details = self_referential_details(embeddings, success, task)
    assert np.all(details.score[success] == 1.0)
    assert np.all((details.score[~success] >= 0.0) & (details.score[~success] < 0.6))
    for one in np.unique(task):
        rows = np.flatnonzero((task == one) & np.isfinite(details.distance))
        order = rows[np.argsort(details.distance[rows])]
        assert np.all(np.diff(details.score[order]) <= 0)


@given(st.integers(0, 2**16))
def test_tasks_do_not_see_each_other(seed):
    embeddings, success, task = random_batch(seed, rows=16, tasks=3)
    together = self_referential_reward(embeddings, success, task)
    for one in np.unique(task):
        rows = task == one
        np.testing.assert_array_equal(
            together[rows], self_referential_reward(embeddings[rows], success[rows], task[rows])
        )


@settings(max_examples=200)
@given(st.integers(0, 2**16), st.integers(1, 24), st.integers(1, 5), st.floats(0.1, 1.0))
def test_clusters_agree_with_scikit_learn(seed, count, min_samples, eps):
    points = np.random.default_rng(seed).uniform(size=(count, 2)) * 2
    expected = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(points)
    np.testing.assert_array_equal(density_clusters(points, eps, min_samples), expected)


def test_the_rule_needs_no_torch():
    code = (
        "import sys; from vlacoach.rewards import available_scorers, auroc, self_referential_reward; "
        "available_scorers(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Clustering whose scale follows the data


def two_ways_to_succeed(dim: int, seed: int = 0, scale: float = 1.0):
    """Six successes of each of two kinds, and failures near the second kind, between the kinds, and far off."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, dim))
    near, between, far = second, (first + second) / 2, 3 * rng.normal(size=dim)
    points = [kind + 0.1 * rng.normal(size=dim) for kind in [first] * 6 + [second] * 6 + [near, between, far]]
    success = np.arange(15) < 12
    return scale * np.array(points), success, np.zeros(15, dtype=int)


@pytest.mark.parametrize("dim", [16, 192, 1152])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_scaled_rule_finds_the_ways_to_succeed_in_any_dimension(dim, scale):
    batch = two_ways_to_succeed(dim, scale=scale)
    details = self_referential_details(*batch, rule="scaled")
    assert details.cluster_count == 2
    assert details.cluster[:12].tolist() == [0] * 6 + [1] * 6
    near, between, far = details.score[12:]
    assert near > between > far
    # SRPO's radius finds no cluster there: its only reference is the mean, which is like neither kind.
    srpo = self_referential_details(*batch)
    if dim >= 192:
        assert srpo.cluster_count == 0
        assert srpo.score[13] == pytest.approx(NEAREST)


def test_the_scaled_rule_has_one_reference_where_there_is_one_way():
    points = np.random.default_rng(1).normal(size=(20, 192))
    success = np.arange(20) < 14
    scaled = self_referential_details(points, success, np.zeros(20), rule="scaled")
    assert scaled.cluster_count == 1
    # Distances are alike in high dimension, so all successes are neighbors: the reference is their mean.
    np.testing.assert_allclose(scaled.score, self_referential_reward(points, success, np.zeros(20)), atol=1e-9)


def test_neighbor_distance_in_closed_form():
    assert neighbor_distance(np.array([[0.0], [1.0], [3.0], [7.0]])) == 1.5  # of 1, 1, 2, 4
    assert neighbor_distance(np.ones((1, 3))) == 0.0


def test_an_unknown_rule_is_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'scaled'"):
        self_referential_reward(*random_batch(0), rule="scaledd")


# References that are not rows of the batch


@pytest.mark.parametrize("rule", ["srpo", "scaled"])
@pytest.mark.parametrize("seed", range(4))
def test_references_count_as_the_batchs_own_successes_do(rule, seed):
    embeddings, success, task = random_batch(seed, rows=24)
    whole = self_referential_details(embeddings, success, task, rule=rule)
    # Some successes of each task, all of task 1, leave the batch and come back as references.
    moved = success & ((np.arange(24) % 2 == 0) | (task == 1))
    part = self_referential_details(
        embeddings[~moved],
        success[~moved],
        task[~moved],
        rule=rule,
        references=embeddings[moved],
        reference_task=task[moved],
    )
    assert 0 < moved.sum() < success.sum()
    np.testing.assert_allclose(part.distance, whole.distance[~moved])
    np.testing.assert_allclose(part.score, whole.score[~moved], atol=1e-9)
    assert part.cluster_count == whole.cluster_count


def test_a_task_that_failed_throughout_is_graded_by_references_in_closed_form():
    # References at 1 and 3 are too far apart to cluster: failures are measured from their mean, 2.
    score = self_referential_reward(
        [[3.0], [4.0], [7.0], [5.0]], [0] * 4, [1, 1, 1, 2], references=[[1.0], [3.0]], reference_task=[1, 1]
    )
    middle = (2.0 - 1.0) / (5.0 - 1.0)
    np.testing.assert_allclose(score, [NEAREST, 0.6 / (1 + math.exp(-10 * (0.5 - middle))), FARTHEST, 0.0])
    tasks = self_referential_reward(
        [[3.0], [4.0]], [0, 0], ["a", "b"], references=[[1.0], [1.0]], reference_task=["b", "c"]
    )
    np.testing.assert_allclose(tasks, [0.0, HALFWAY])


def test_clusters_are_found_among_successes_and_references_together():
    details = self_referential_details(
        [[0.0, 0.1], [10.0, 10.0], [0.0, 1.0], [0.0, 9.0]],
        [1, 1, 0, 0],
        [0] * 4,
        references=[[0.0, 0.1001]],
        reference_task=[0],
    )
    assert details.cluster.tolist() == [0, NOISE, NOT_CLUSTERED, NOT_CLUSTERED]
    np.testing.assert_allclose(details.distance[2:], [0.9, 8.9], atol=1e-3)


@given(st.integers(0, 2**16))
def test_no_references_and_references_of_other_tasks_change_nothing(seed):
    embeddings, success, task = random_batch(seed)
    plain = self_referential_details(embeddings, success, task)
    none = np.zeros((0, 6)), np.zeros(0)
    for references, tasks in [(None, None), none, (np.ones((2, 6)), [7, 8])]:
        other = self_referential_details(embeddings, success, task, references=references, reference_task=tasks)
        for name in ("score", "distance", "cluster"):
            np.testing.assert_array_equal(getattr(other, name), getattr(plain, name))


def test_references_that_say_nothing_are_refused_by_name():
    batch = np.ones((2, 3)), [1, 0], ["drawer"] * 2
    with pytest.raises(NonFiniteError, match=r"Reference 1 \(task stove\)"):
        self_referential_reward(*batch, references=[[1.0] * 3, [math.nan] * 3], reference_task=["drawer", "stove"])
    with pytest.raises(VlacoachError, match=r"Reference 0 \(task drawer\) is all zeros"):
        self_referential_reward(*batch, references=[[0.0] * 3], reference_task=["drawer"])


@pytest.mark.parametrize(
    ("references", "tasks", "message"),
    [
        ([[1.0, 2.0]], [0], r"\(R, 3\)"),
        ([[1.0, 2.0, 3.0]], [0, 0], r"\(1, 3\) and \(2,\)"),
        ([[1.0, 2.0, 3.0]], None, "go together"),
        (None, [0], "go together"),
        ([[1.0, 2.0, 3.0]], ["0"], "named by"),
    ],
)
def test_references_that_do_not_fit_are_refused(references, tasks, message):
    with pytest.raises(VlacoachError, match=message):
        self_referential_reward(np.ones((2, 3)), [1, 0], [0, 0], references=references, reference_task=tasks)
