"""Ranks, and what they agree in, on orders small enough to count."""

import pytest
import torch
from drawn_sites import sites_of
from scipy.stats import spearmanr

from shadow.fit.rank_metrics import mass, places, ranks, recall, spearman, stay
from shadow.plans.policy import SparsityPolicy


def draw(seed):
    return torch.rand(5, 3, 20, generator=torch.Generator().manual_seed(seed))


def test_ranks_count_from_the_lowest():
    scores = torch.tensor([[0.3, -1.0, 7.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
    assert ranks(scores).tolist() == [[2, 0, 3, 1], [3, 2, 1, 0]]


def silenced(seed):
    """As a ReLU leaves them: about half are 0."""
    return (draw(seed) - 0.5).relu()


def test_places_are_shared_by_equal_scores():
    found = places(torch.tensor([[0.0, 3.0, 0.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert found.first.tolist() == [[0, 3, 0, 2, 3], [0, 1, 2, 3, 4]]
    assert found.last.tolist() == [[1, 4, 1, 2, 4], [0, 1, 2, 3, 4]]


def test_spearman_is_the_rank_correlation():
    scores = torch.tensor([[[1.0, 5.0, 3.0, 2.0, 4.0]]])
    order, target = ranks(scores), places(scores)
    assert spearman(order, target) == 1
    assert spearman(4 - order, target) == -1
    swapped = ranks(torch.tensor([[[2.0, 5.0, 3.0, 1.0, 4.0]]]))
    # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert float(spearman(swapped, target)) == pytest.approx(1 - 6 * 2 / (5 * 24))


def test_spearman_is_of_each_layer_over_rows():
    for said, true in ((draw(0), draw(1)), (draw(0), silenced(1))):
        of_rows = [[spearmanr(said[n, s], true[n, s]).statistic for n in range(5)] for s in range(3)]
        found = spearman(ranks(said), places(true)).tolist()
        assert found == pytest.approx([sum(rows) / 5 for rows in of_rows], abs=1e-6)


def test_a_layer_whose_units_are_all_alike_has_no_order():
    assert spearman(ranks(draw(0)), places(torch.zeros(5, 3, 20))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 0.7, 0.99])
def test_the_units_that_stay_are_those_that_a_plan_keeps(level):
    scores = draw(0)
    of_site = {(0, "neuron"): scores}
    plan = SparsityPolicy(level, dense_layers=()).plan(of_site, sites_of(of_site)) if level else {}
    expected = plan.get((0, "neuron"), torch.ones_like(scores, dtype=torch.bool))
    assert torch.equal(stay(ranks(scores), level), expected)


@pytest.mark.parametrize("level", [0.3, 0.5, 0.7])
def test_recall_is_the_share_of_the_units_to_keep_that_are_kept(level):
    said, true = draw(0), draw(1)
    n = 20 - int(level * 20 + 1e-9)
    found = recall(ranks(said), places(true), level)
    assert found.shape == (3,)
    for layer in range(3):
        shares = []
        for row in range(5):
            best, guessed = (set(x[row, layer].topk(n).indices.tolist()) for x in (true, said))
            shares.append(len(best & guessed) / n)
        assert float(found[layer]) == pytest.approx(sum(shares) / len(shares))
    assert recall(ranks(true), places(true), level).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("level", [0.3, 0.5, 0.7])
def test_which_of_equal_units_is_kept_is_neither_right_nor_wrong(level):
    said, true = draw(0), silenced(1)
    both = [(said, true), (said.flip(-1), true.flip(-1))]
    turned = [recall(ranks(guess), places(best), level) for guess, best in both]
    torch.testing.assert_close(*turned)
    assert recall(ranks(true), places(true), level).tolist() == pytest.approx([1, 1, 1])
    n = 20 - int(level * 20 + 1e-9)
    for layer in range(3):
        shares = []
        for row in range(5):
            scores, chosen = true[row, layer], said[row, layer].topk(n).indices
            border = scores.topk(n).values[-1]
            above, level_with = (scores > border).sum(), (scores[chosen] == border).sum()
            shares.append(float(((scores[chosen] > border).sum() + min(level_with, n - above)) / n))
        assert float(turned[0][layer]) == pytest.approx(sum(shares) / 5)


@pytest.mark.parametrize("level", [0.3, 0.5, 0.7])
def test_mass_is_the_share_of_the_scores_that_is_kept(level):
    said, true = draw(0), draw(1)
    n = 20 - int(level * 20 + 1e-9)
    found = mass(ranks(said), true, level)
    assert found.shape == (3,)
    for layer in range(3):
        shares = [
            float(true[row, layer][said[row, layer].topk(n).indices].sum() / true[row, layer].sum())
            for row in range(5)
        ]
        assert float(found[layer]) == pytest.approx(sum(shares) / len(shares))


def test_no_order_keeps_more_mass_than_the_true_one():
    true = draw(1)
    assert (mass(ranks(true), true, 0.5) > mass(ranks(draw(0)), true, 0.5)).all()


def test_a_layer_that_says_nothing_loses_nothing():
    """All neurons of a ReLU layer may be silent at a token."""
    scores = draw(0)
    scores[2] = 0
    others = torch.cat([scores[:2], scores[3:]])
    expected = (4 * mass(ranks(others), others, 0.5) + 1) / 5
    torch.testing.assert_close(mass(ranks(scores), scores, 0.5), expected)
