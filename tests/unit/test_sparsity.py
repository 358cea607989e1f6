"""Plans: how many units stay, which, and what a policy refuses."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from drawn_sites import sites_of

from shadow.errors import UserError
from shadow.plans.policy import SparsityPolicy
from shadow.plans.rules import keep_top, kept

LEVELS = [0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 0.99]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scores():
    """Layers 0 to 3, 12 heads and 100 neurons, of 2 rows and 3 positions."""
    units = {"head": 12, "neuron": 100}
    return {
        (layer, kind): draw(2, 3, count, seed=7 * layer + count)
        for layer in range(4)
        for kind, count in units.items()
    }


@pytest.mark.parametrize("units", [1, 2, 9, 10, 12, 64, 100, 1536])
@pytest.mark.parametrize("level", LEVELS)
def test_never_more_than_the_level_goes_and_less_than_one_unit_too_few(units, level):
    """Counted in exact decimals: 0.3 of 10 is 3, though 0.3 * 10 is 2.9999999999999996 in floats."""
    assert units - kept(units, level) == math.floor(Fraction(str(level)) * units)


@pytest.mark.parametrize("level", LEVELS[1:])
def test_exactly_the_level_goes_in_every_row_layer_and_kind(scores, level):
    plan = SparsityPolicy(level, dense_layers=()).plan(scores, sites_of(scores))
    assert set(plan) == set(scores)
    for (layer, kind), keep in plan.items():
        assert keep.shape == scores[layer, kind].shape
        gone = math.floor(Fraction(str(level)) * keep.shape[-1])
        assert ((~keep).sum(-1) == gone).all()


def test_what_stays_scores_higher_than_what_goes(scores):
    for unit, keep in SparsityPolicy(0.5, dense_layers=()).plan(scores, sites_of(scores)).items():
        lowest_kept = scores[unit].masked_fill(~keep, 2.0).amin(-1)
        highest_gone = scores[unit].masked_fill(keep, -1.0).amax(-1)
        assert (lowest_kept > highest_gone).all()


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("min_units", [0, 1, 5])
def test_plans_are_nested_as_the_level_grows(scores, scope, min_units):
    plans = [SparsityPolicy(level, scope, min_units).plan(scores, sites_of(scores)) for level in LEVELS[1:]]
    for wider, narrower in pairwise(plans):
        for unit in wider:
            assert not (narrower[unit] & ~wider[unit]).any()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_level_0_plans_nothing(scores, scope):
    assert SparsityPolicy(0.0, scope, dense_layers=()).plan(scores, sites_of(scores)) == {}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_dense_layers_and_other_kinds_are_not_in_the_plan(scores, scope):
    plan = SparsityPolicy(0.5, scope, dense_layers=(0, 2), kinds=("neuron",)).plan(scores, sites_of(scores))
    assert set(plan) == {(1, "neuron"), (3, "neuron")}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("min_units", [1, 3, 12, 50])
def test_a_layer_keeps_min_units_of_a_kind_or_all_it_has(scores, scope, min_units):
    for unit, values in scores.items():
        if unit[0] == 1:
            values.mul_(1e-3)  # a layer that a global ranking would empty
    for keep in SparsityPolicy(0.99, scope, min_units).plan(scores, sites_of(scores)).values():
        assert (keep.sum(-1) >= min(min_units, keep.shape[-1])).all()


def test_a_layer_may_be_emptied_when_min_units_is_0():
    many = {(0, "head"): draw(100)}
    plan = SparsityPolicy(0.99, min_units=0, dense_layers=()).plan(many, sites_of(many))
    assert plan[0, "head"].sum() == 1
    scores = {(layer, kind): draw(4) + layer for layer in (0, 1) for kind in ("head", "neuron")}
    plan = SparsityPolicy(0.5, "global", 0, ()).plan(scores, sites_of(scores))
    assert {unit: int(keep.sum()) for unit, keep in plan.items()} == {
        (0, "head"): 0,
        (1, "head"): 4,
        (0, "neuron"): 0,
        (1, "neuron"): 4,
    }


@pytest.mark.parametrize("level", LEVELS[1:])
def test_global_scope_removes_the_share_of_a_kind_over_all_pruned_layers(scores, level):
    plan = SparsityPolicy(level, "global", min_units=0).plan(scores, sites_of(scores))
    for kind, units in (("head", 36), ("neuron", 300)):
        gone = sum((~keep).sum(-1) for unit, keep in plan.items() if unit[1] == kind)
        assert (gone == math.floor(Fraction(str(level)) * units)).all()


def test_global_scope_takes_the_lowest_wherever_they_are(scores):
    for unit, values in scores.items():
        values.add_(unit[0])
    plan = SparsityPolicy(1 / 3 + 1e-9, "global", 0).plan(scores, sites_of(scores))
    assert not plan[1, "head"].any()
    assert plan[2, "head"].all()
    assert plan[3, "head"].all()


def test_global_scope_removes_the_right_total_although_min_units_protects_a_layer(scores):
    scores[1, "head"].mul_(1e-3)
    plan = SparsityPolicy(0.5, "global", min_units=4).plan(scores, sites_of(scores))
    assert (plan[1, "head"].sum(-1) == 4).all()
    assert (sum(keep.sum(-1) for unit, keep in plan.items() if unit[1] == "head") == 18).all()


def test_a_global_plan_is_the_same_for_a_row_alone(scores):
    whole = SparsityPolicy(0.5, "global").plan(scores, sites_of(scores))
    alone = SparsityPolicy(0.5, "global").plan(
        {unit: values[1:] for unit, values in scores.items()}, sites_of(scores)
    )
    for unit, keep in alone.items():
        assert torch.equal(keep, whole[unit][1:])


# Ties


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_equal_scores_lose_exactly_the_level_too(scope):
    scores = {(layer, kind): torch.zeros(3, 10) for layer in (0, 1) for kind in ("head", "neuron")}
    plan = SparsityPolicy(0.5, scope, 0, ()).plan(scores, sites_of(scores))
    for kind in ("head", "neuron"):
        assert (plan[0, kind].sum(-1) + plan[1, kind].sum(-1) == 10).all()


def test_among_equal_scores_the_first_stay():
    scores = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 2.0], [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]])
    assert keep_top(scores, 4).tolist() == [
        [True, True, True, False, False, True],
        [True, True, True, True, False, False],
    ]


@pytest.mark.parametrize("n", [1, 7, 32, 63])
def test_ties_are_broken_alike_in_every_batch(n):
    """Scores of few values, so that nearly every row has ties at the threshold."""
    scores = torch.randint(0, 4, (50, 64), generator=torch.Generator().manual_seed(0)).float()
    whole = keep_top(scores, n)
    assert (whole.sum(-1) == n).all()
    assert torch.equal(whole, torch.cat([keep_top(row[None], n) for row in scores]))
    assert torch.equal(whole, keep_top(scores.flip(0), n).flip(0))
    assert torch.equal(whole.view(5, 10, 64), keep_top(scores.view(5, 10, 64), n))


def test_infinite_scores_are_ranked_like_any_other():
    scores = torch.tensor([torch.inf, 1.0, -torch.inf, 2.0])
    assert keep_top(scores, 2).tolist() == [True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_scores_may_have_any_precision(dtype):
    keep = keep_top(draw(3, 20).to(dtype), 5)
    assert (keep.sum(-1) == 5).all()


# Refusals


@pytest.mark.parametrize("level", [1.0, 1.5, -0.1, "abc", "0.5", True, False, None, float("nan")])
def test_a_bad_level_is_refused_by_name_and_value(level):
    with pytest.raises(UserError, match=r"sparsity\.level.*\[0, 1\)") as error:
        SparsityPolicy(level)
    assert repr(level) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"scope": "block"}, "sparsity.scope"),
        ({"min_units": -1}, "sparsity.min_units"),
        ({"min_units": 1.5}, "sparsity.min_units"),
        ({"min_units": True}, "sparsity.min_units"),
        ({"kinds": ("heads",)}, "sparsity.kinds"),
        ({"kinds": ()}, "sparsity.kinds"),
    ],
)
def test_other_bad_settings_are_refused_by_name(settings, name):
    with pytest.raises(UserError, match=name):
        SparsityPolicy(0.5, **settings)


def test_a_row_is_ranked_for_itself_however_far_the_one_before_it_is():
    sizes = torch.tensor([1.0, 1e-20, 1e20, -1.0, 0.0, 1.0])
    scores = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) * sizes[:, None]
    expected = torch.zeros(6, 300, dtype=torch.bool)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    assert torch.equal(keep_top(scores, 120), expected.scatter(-1, order[:, :120], True))
