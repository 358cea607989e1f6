"""sparsity.head_unit=group: the query heads that share a key-value head stay or go together."""

import pytest
import torch
from drawn_sites import sites_of

from shadow.data.batches import collate
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.fit import budgets, thresholds
from shadow.front import sparse
from shadow.jobs import keys, method
from shadow.plans.policy import SparsityPolicy
from shadow.plans.rules import keep_top, kept
from shadow.plans.stand_ins import Zero
from shadow.scorers.fixed import Fixed
from shadow.scorers.predicted import Predicted


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scores():
    """12 heads on 4 key-value heads, and 30 neurons, of 2 rows and 5 positions."""
    return {(layer, kind): draw(2, 5, n, seed=layer + n) for layer in range(4) for kind, n in UNITS.items()}


UNITS = {"head": 12, "neuron": 30}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("level", [0.25, 0.5, 0.7])
def test_whole_groups_go_as_many_as_the_level_says(scores, scope, level):
    plan = SparsityPolicy(level, scope, head_unit="group").plan(scores, sites_of(scores, group=3))
    heads = {layer: plan[layer, "head"].unflatten(-1, (4, 3)) for layer in (1, 2, 3)}
    for keep in heads.values():
        assert torch.equal(keep.any(-1), keep.all(-1))
    stay = torch.stack([keep.any(-1) for keep in heads.values()], -2)  # [2, 5, 3, 4]
    if scope == "layer":
        assert (stay.sum(-1) == kept(4, level)).all()
    else:
        assert (stay.sum((-1, -2)) == kept(12, level)).all()
    alone = SparsityPolicy(level, scope).plan(scores, sites_of(scores))
    assert all(torch.equal(plan[layer, "neuron"], alone[layer, "neuron"]) for layer in (1, 2, 3))


def test_the_groups_that_stay_are_those_whose_heads_score_highest_on_the_mean(scores):
    plan = SparsityPolicy(0.5, head_unit="group").plan(scores, sites_of(scores, group=3))
    for layer in (1, 2, 3):
        means = scores[layer, "head"].unflatten(-1, (4, 3)).mean(-1)
        assert torch.equal(plan[layer, "head"][..., ::3], keep_top(means, 2))


def test_min_units_are_groups(scores):
    plan = SparsityPolicy(0.99, min_units=2, head_unit="group", kinds=("head",)).plan(
        scores, sites_of(scores, group=3)
    )
    assert all((keep.sum(-1) == 6).all() for keep in plan.values())


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_the_achieved_share_is_that_of_heads(make_lm, make_net, batch, family, decided_at):
    """Llama's 4 heads are 2 groups; OPT's are groups of their own, so nothing changes for it."""
    lm = make_lm(family)
    scorer = Predicted(make_net(lm, [1]), "scores")
    with sparse(lm.model, scorer, SparsityPolicy(0.5, head_unit="group"), decided_at) as run:
        grouped, plan = run.logits(batch), run.plan
    with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at) as alone:
        assert torch.equal(alone.logits(batch), grouped) == (family == "opt")
    assert run.achieved("head") == alone.achieved("head") == 0.375
    if family == "llama":
        for layer in (1, 2, 3):
            keep = plan[layer, "head"].unflatten(-1, (2, 2))
            assert torch.equal(keep.any(-1), keep.all(-1))


def test_thresholds_are_learnt_of_groups(tiny_llama, make_net, examples):
    """On what they were learnt from, and with a tap whose input is dense, they remove the level."""
    scorer = Predicted(make_net(tiny_llama, [1]), "scores")
    batches = [collate(examples([16] * 8))]
    policy = SparsityPolicy(0.25, "threshold", min_units=0, kinds=("head",), head_unit="group")
    found = thresholds.learn(tiny_llama.model, scorer, policy, "token", Zero(), batches)
    policy = SparsityPolicy(
        0.25, "threshold", min_units=0, kinds=("head",), thresholds=found, head_unit="group"
    )
    with sparse(tiny_llama.model, scorer, policy) as run:
        run.logits(batches[0])
    assert run.achieved("head") == pytest.approx(0.75 * 0.25)
    keep = run.plan[2, "head"].unflatten(-1, (2, 2))
    assert torch.equal(keep.any(-1), keep.all(-1))


def test_budgets_are_learnt_of_groups(tiny_llama, examples):
    scorer = Fixed({(layer, "head"): draw(4, seed=layer) for layer in range(4)})
    policy = SparsityPolicy(0.5, min_units=0, kinds=("head",), head_unit="group")
    found = budgets.learn(tiny_llama.model, scorer, policy, "token", Zero(), [collate(examples([12] * 3))])
    assert set(found.levels.values()) <= {0.0, 0.5, 1.0}
    assert sum(found.levels.values()) == 1.5


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_the_gathered_executor_agrees_or_refuses(tiny_llama, make_net, batch, decided_at):
    scorer = Predicted(make_net(tiny_llama, [1]), "scores")
    policy = SparsityPolicy(0.5, head_unit="group")
    with sparse(tiny_llama.model, scorer, policy, decided_at) as run:
        masked = run.logits(batch)
    gathered = sparse(tiny_llama.model, scorer, policy, decided_at, executor=Gathered())
    if decided_at == "token":
        with (
            pytest.raises(UserError, match=r"sparsity\.head_unit=query, got group"),
            gathered,
        ):
            pass
        return
    with gathered as fast:
        real = batch.real()
        torch.testing.assert_close(fast.logits(batch)[real], masked[real], rtol=1e-4, atol=1e-4)
    assert fast.achieved("head") == run.achieved("head") == 0.375


def test_another_unit_is_refused():
    with pytest.raises(UserError, match=r"sparsity\.head_unit must be one of .*group.*got 'key'"):
        SparsityPolicy(0.5, head_unit="key")


def test_names_of_points_tell_groups_from_query_heads(compose):
    query, group = (compose("evaluate", f"sparsity.head_unit={unit}") for unit in ("query", "group"))
    assert method.policy_of(group).head_unit == "group"
    assert keys.method_settings(query) != keys.method_settings(group)
