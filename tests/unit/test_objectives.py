"""What predictors are trained towards, against loops."""

import math

import pytest
import torch
from drawn_sites import sites_of

from shadow.fit.objectives import Active, Cutoff, Listwise, LogSquares, Pairwise, partners
from shadow.plans.policy import SparsityPolicy

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


EVERY = [
    LogSquares(1.0),
    Listwise(1.0),
    Pairwise(1.0),
    Cutoff(1.0, [0.3, 0.6]),
    Active(None),
    Active([0.3, 0.6]),
]
ORDERS = EVERY[1:4]


def name(objective):
    return type(objective).__name__


@pytest.mark.parametrize("objective", EVERY, ids=name)
def test_a_target_leaves_the_scores_as_they_were(scores, objective):
    before = scores.clone()
    objective.target(scores, MEAN)
    assert torch.equal(scores, before)


def test_above_zero_is_active(scores):
    assert torch.equal(Active(None).target(scores, MEAN), (scores > 0).float())


def test_active_is_what_plans_of_the_scores_keep_averaged_over_levels(scores):
    scores = scores + torch.arange(10) * 1e-3  # no two alike
    of_site = {(0, "neuron"): scores}
    plans = [
        SparsityPolicy(level, dense_layers=()).plan(of_site, sites_of(of_site))[0, "neuron"].float()
        for level in (0.3, 0.6)
    ]
    assert torch.equal(Active([0.3]).target(scores, MEAN), plans[0])
    assert torch.equal(Active([0.3, 0.6]).target(scores, MEAN), (plans[0] + plans[1]) / 2)


def test_a_unit_that_scores_0_is_never_active():
    """Of neurons that a ReLU silences a plan keeps the first; which ones tells nothing."""
    scores = torch.tensor([[[0.0, 0.0, 3.0, 0.0]]])
    assert Active([0.5]).target(scores, MEAN).tolist() == [[[0, 0, 1, 0]]]


def test_the_entropy_weighs_inactive_units_by_the_share_of_active_ones():
    said, target = torch.tensor([[[2.0, -1.0, 0.5, 0.0]]]), torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    share = 0.25 + 0.005
    terms = [
        -math.log(1 / (1 + math.exp(-x))) if y else -share * math.log(1 - 1 / (1 + math.exp(-x)))
        for x, y in zip(said.flatten().tolist(), target.flatten().tolist())
    ]
    assert float(Active(None).loss(said, target)) == pytest.approx(sum(terms) / 4, rel=1e-6)


# Orders


@pytest.fixture
def said():
    return torch.randn(4, 2, 10, generator=torch.Generator().manual_seed(1))


def each_layer(*tensors):
    """The values of the units in each row and layer, as lists."""
    for row in range(4):
        for layer in range(2):
            yield row, *(values[row, layer].tolist() for values in tensors)


@pytest.mark.parametrize("floor", [0.5, 3.0])
def test_listwise_is_the_cross_entropy_of_shares_of_scores_and_the_softmax_of_what_is_said(
    scores, said, floor
):
    objective, layers = Listwise(floor), []
    above = scores + floor * MEAN
    for _, shares, guesses in each_layer(above, said):
        whole = math.log(sum(math.exp(s) for s in guesses))
        layers.append(-sum(a / sum(shares) * (s - whole) for a, s in zip(shares, guesses)))
    found = float(objective.loss(said, objective.target(scores, MEAN)))
    assert found == pytest.approx(sum(layers) / len(layers), rel=1e-5)


def test_pairwise_is_the_logistic_loss_of_pairs_weighed_by_the_difference_of_their_log_scores(scores, said):
    objective, terms = Pairwise(1.0), []
    target = objective.target(scores, MEAN)
    for row, true, guesses in each_layer(target, said):
        k = 1 + int(row * 0.618 * 9) % 9
        for u in range(10):
            high, low = u, (u + k) % 10
            if true[high] < true[low]:
                high, low = low, high
            weight = true[high] - true[low]
            terms.append(weight * math.log(1 + math.exp(guesses[low] - guesses[high])))
    assert float(objective.loss(said, target)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("units", [2, 3, 9, 1536])
def test_every_unit_has_a_partner_that_is_another_and_other_rows_have_others(units):
    found = partners(200, units, torch.device("cpu"))
    assert (found != torch.arange(units)).all()
    assert (found.sort(-1).values == torch.arange(units)).all()
    assert len(found[:, 0].unique()) == min(200, units - 1)


@pytest.mark.parametrize("levels", [[0.5], [0.3, 0.7], [0.05, 0.5]], ids=str)
def test_cutoff_is_the_logistic_loss_of_staying_weighed_by_the_distance_from_the_border(scores, said, levels):
    scores = scores + torch.arange(10) * 1e-3  # no two alike
    objective, terms = Cutoff(1.0, levels), []
    target = objective.target(scores, MEAN)
    for _, true, guesses in each_layer(target, said):
        for level in levels:
            goes = int(level * 10 + 1e-9)
            if goes == 0:
                continue
            borders = [(sorted(x)[goes - 1] + sorted(x)[goes]) / 2 for x in (true, guesses)]
            for t, s in zip(true, guesses):
                sign = 1 if t in sorted(true)[goes:] else -1
                terms.append(abs(t - borders[0]) * math.log(1 + math.exp(-sign * (s - borders[1]))))
    expected = sum(terms) / (4 * 2 * 10 * len(levels))
    assert float(objective.loss(said, target)) == pytest.approx(expected, rel=1e-5)


def test_where_all_units_stay_an_error_costs_nothing(scores, said):
    """Of 10 units a level of 0.05 drops none."""
    said.requires_grad_()
    objective = Cutoff(1.0, [0.05])
    loss = objective.loss(said, objective.target(scores, MEAN))
    loss.backward()
    assert loss == 0
    assert not said.grad.any()


def test_the_border_of_what_is_said_is_held_fixed(scores, said):
    """A unit's slope is that of its own term alone, less the mean over units."""
    said.requires_grad_()
    objective = Cutoff(1.0, [0.5])
    target = objective.target(scores + torch.arange(10) * 1e-3, MEAN)
    objective.loss(said, target).backward()
    above, margin = (
        x - (x.sort(-1).values[..., 4:5] + x.sort(-1).values[..., 5:6]) / 2 for x in (target, said.detach())
    )
    own = -above / (1 + (above.sign() * margin).exp()) / target.numel()
    torch.testing.assert_close(said.grad, own - own.mean(-1, keepdim=True))


@pytest.mark.parametrize("objective", ORDERS, ids=name)
def test_an_order_does_not_change_with_a_constant_for_a_layer(scores, said, objective):
    """Neither the loss nor the way down: nothing rises for ever."""
    target, said = objective.target(scores, MEAN), said.requires_grad_()
    moved = said + 5 * torch.randn(4, 2, 1, generator=torch.Generator().manual_seed(2))
    loss = objective.loss(said, target)
    torch.testing.assert_close(objective.loss(moved, target), loss)
    (slope,) = torch.autograd.grad(loss, said)
    assert slope.sum(-1).abs().max() < 1e-6
    assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("objective", ORDERS, ids=name)
def test_an_order_is_better_said_right_than_wrong(scores, objective):
    target = objective.target(scores, MEAN)
    right, wrong = objective.loss(target, target), objective.loss(-target, target)
    assert right < objective.loss(torch.zeros_like(target), target) < wrong


def test_no_other_list_is_better_than_the_log_scores_up_to_a_constant(scores):
    objective = Listwise(1.0)
    target = objective.target(scores, MEAN)
    said = (target + 3).requires_grad_()
    objective.loss(said, target).backward()
    assert said.grad.abs().max() < 1e-7


@pytest.mark.parametrize("objective", ORDERS, ids=name)
def test_layers_of_silence_and_equal_scores_have_a_finite_loss_and_slope(said, objective):
    for value in (0.0, 1.0):
        leaf = said.clone().requires_grad_()
        loss = objective.loss(leaf, objective.target(torch.full_like(said, value), 0 * MEAN))
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("objective", [LogSquares(1.0), Active([0.5])], ids=["log_mse", "bce"])
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


def test_positive_units_are_weighed_by_the_share_of_their_own_layer():
    scores = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])  # [1, 2, 2]: two layers of unequal shares
    objective, said = Active(None), torch.full((1, 2, 2), 0.5)
    target = objective.target(scores, torch.ones(2, 1))
    single = [objective.loss(said[:, [layer]], target[:, [layer]]) for layer in (0, 1)]
    torch.testing.assert_close(objective.loss(said, target), torch.stack(single).mean())
    active, idle = torch.tensor(-0.5).exp().log1p(), torch.tensor(0.5).exp().log1p()
    torch.testing.assert_close(single[1], (active + (0.5 + 0.005) * idle) / 2)
