"""The objectives of the temporal MLP, in closed form."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from vlacoach.errors import UnknownNameError
from vlacoach.rewards import SiglipScorer, make_scorer
from vlacoach.rewards.metrics import auroc
from vlacoach.rewards.progress import Objective, stage_loss

OBJECTIVES = get_args(Objective)
REMAINING = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])


def straight(remaining: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefixes on a straight line to the center, as far from it as they still have to go."""
    center = torch.tensor([[1.0, 2.0, 3.0]]).repeat(len(remaining), 1)
    return center + remaining[:, None] * torch.tensor([3.0, 0.0, 4.0]), center


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_straight_way_to_the_goal_costs_less_than_any_other(objective):
    right = stage_loss(objective, *straight(REMAINING), REMAINING)
    for wrong in (REMAINING[[4, 1, 2, 3, 0]], REMAINING[[1, 4, 0, 2, 3]]):
        assert stage_loss(objective, *straight(wrong), REMAINING) > right + 0.01


@pytest.mark.parametrize("objective", ["progress", "regression", "displacement"])
def test_a_straight_way_costs_nothing(objective):
    assert stage_loss(objective, *straight(REMAINING), REMAINING).item() == pytest.approx(0.0, abs=1e-5)


def test_progress_in_closed_form():
    # Distances that fall while the remaining share rises: a correlation of -1.
    assert stage_loss("progress", *straight(1 - REMAINING), REMAINING).item() == pytest.approx(2.0, abs=1e-4)


def test_regression_in_closed_form():
    prefix, center = straight(torch.tensor([1.0, 1.0]))
    # Distances of 1 mean each; shares of 2 and 0 means.
    loss = stage_loss("regression", prefix, center, torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(1.0, abs=1e-5)


def test_displacement_in_closed_form():
    center = torch.zeros(2, 2)
    prefix = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # The best single direction is (0.5, 0.5); it leaves half of the squares unexplained.
    assert stage_loss("displacement", prefix, center, torch.ones(2)).item() == pytest.approx(0.5, abs=1e-5)


def test_triplet_in_closed_form():
    # In order and farther apart than the margin of half a standard deviation: nothing to pay.
    assert stage_loss("triplet", *straight(REMAINING), REMAINING).item() == pytest.approx(0.0, abs=1e-5)
    prefix, center = straight(torch.tensor([0.0, 1.0]))
    # The later of two lies 5 behind, which is sqrt(2) standard deviations of (0, 5), and the margin comes on top.
    assert stage_loss("triplet", prefix, center, torch.tensor([1.0, 0.0])).item() == pytest.approx(2**0.5 + 0.5, 1e-3)
    assert stage_loss("triplet", prefix, center, torch.ones(2)).item() == 0.0


def test_time_contrast_is_a_guess_among_the_others_where_all_look_alike():
    corners = torch.eye(4)
    loss = stage_loss("time-contrastive", corners, torch.zeros(4, 4), torch.tensor([1.0, 0.9, 0.1, 0.0]))
    assert loss.item() == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_a_finite_gradient_even_at_the_goal(objective):
    prefix, center = straight(REMAINING)
    prefix = prefix.requires_grad_()
    (gradient,) = torch.autograd.grad(stage_loss(objective, prefix, center, REMAINING), prefix)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_what_a_mean_cannot_tell(objective):
    """Failures show the looks of a success in reverse: only order tells them apart."""
    from trajectories import paths_and_reversals

    train, test = paths_and_reversals(8, 24, seed=0), paths_and_reversals(8, 24, seed=1)
    scorer = make_scorer("siglip-t", feature_dim=8, objective=objective)
    scorer.fit(train)

    def area(judge):
        points = torch.tensor([judge.embed(one).tolist() for one in test])
        won = torch.tensor([one.success for one in test])
        center = points[won].mean(dim=0)
        return auroc(-(points - center).norm(dim=1).numpy(), won.numpy())

    assert area(scorer) > 0.95
    assert area(SiglipScorer()) < 0.7


def test_an_unknown_objective_is_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'triplet'"):
        make_scorer("siglip-t", feature_dim=8, objective="triplets")
