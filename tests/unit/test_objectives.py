"""What predictors are trained towards, against loops."""

import math

import pytest
import torch

from shadow.objectives import Active, LogSquares
from shadow.sparsity import SparsityPolicy

MEAN = torch.tensor([[0.5], [2.0]])


@pytest.fixture
def scores():
    """[4, 2, 10], of which some are 0, as after ReLU."""
    drawn = torch.rand(4, 2, 10, generator=torch.Generator().manual_seed(0))
    return drawn * (drawn > 0.3)


def test_log_squares_aim_at_the_logarithm_of_a_score_above_its_floor(scores):
    target = LogSquares(3.0).target(scores, MEAN)
    for row in range(4):
        for layer in range(2):
            for unit in range(10):
                expected = math.log(float(scores[row, layer, unit]) + 3.0 * float(MEAN[layer]))
                assert float(target[row, layer, unit]) == pytest.approx(expected, abs=1e-6)


def test_without_a_floor_a_silent_unit_has_a_finite_target(scores):
    assert LogSquares(0.0).target(scores, MEAN).isfinite().all()


@pytest.mark.parametrize("objective", [LogSquares(1.0), Active(None), Active([0.3, 0.6])], ids=repr)
def test_a_target_leaves_the_scores_as_they_were(scores, objective):
    before = scores.clone()
    objective.target(scores, MEAN)
    assert torch.equal(scores, before)


def test_above_zero_is_active(scores):
    assert torch.equal(Active(None).target(scores, MEAN), (scores > 0).float())


def test_active_is_what_plans_of_the_scores_keep_averaged_over_levels(scores):
    scores = scores + torch.arange(10) * 1e-3  # no two alike
    plans = [
        SparsityPolicy(level, dense_layers=()).plan({(0, "neuron"): scores})[0, "neuron"].float()
        for level in (0.3, 0.6)
    ]
    assert torch.equal(Active([0.3]).target(scores, MEAN), plans[0])
    assert torch.equal(Active([0.3, 0.6]).target(scores, MEAN), (plans[0] + plans[1]) / 2)


def test_the_entropy_weighs_inactive_units_by_the_share_of_active_ones():
    said, target = torch.tensor([[[2.0, -1.0, 0.5, 0.0]]]), torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    share = 0.25 + 0.005
    terms = [
        -math.log(1 / (1 + math.exp(-x))) if y else -share * math.log(1 - 1 / (1 + math.exp(-x)))
        for x, y in zip(said.flatten().tolist(), target.flatten().tolist())
    ]
    assert float(Active(None).loss(said, target)) == pytest.approx(sum(terms) / 4, rel=1e-6)


@pytest.mark.parametrize("objective", [LogSquares(1.0), Active([0.5])], ids=repr)
def test_the_start_is_the_best_constant(scores, objective):
    """For the entropy it would be, if all units weighed alike; a step aside makes the squares worse."""
    target = objective.target(scores, MEAN)
    start = objective.start(target.mean(0))
    if isinstance(objective, LogSquares):
        least = objective.loss(start.expand_as(target), target)
        for step in (-0.1, 0.1):
            assert objective.loss((start + step).expand_as(target), target) > least
    else:
        inside = (target.mean(0) > 0) & (target.mean(0) < 1)
        torch.testing.assert_close(start.sigmoid()[inside], target.mean(0)[inside])
        assert start.isfinite().all()
