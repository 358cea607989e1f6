"""Budgets of layers: nothing else costs less at the same total, and the costs are those of really pruning."""

import json
import random
from itertools import pairwise, product

import pytest
import torch
from drawn_sites import sites_of

from shadow.artifacts.hub import save_predictor
from shadow.criteria.one_pass import row_losses
from shadow.data.batches import batched
from shadow.errors import UserError
from shadow.fit import budgets
from shadow.fit.budgets import Cost, by_rank, hull, learn, probes, share_out, slope
from shadow.front import sparse
from shadow.jobs import calibration, checks, ingredients, keys, loading, measures, point_records, policies
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted

SMALL = (
    "model=tiny-llama",
    "data.windows=6",
    "data.tokens=12",
    "predictor=random",
    "sparsity.budgets=greedy",
    "sparsity.budget_windows=4",
    "traces.batch_size=2",
    "traces.shard_windows=4",
    "callbacks.progress=null",
    "+trainer.enable_progress_bar=false",
)


def draw_costs(seed: int, groups: int = 3) -> dict:
    draw = random.Random(seed)
    return {
        (layer, "head"): [Cost(count, draw.uniform(-0.2, 1)) for count in (1, 3, 4)]
        for layer in range(groups)
    }


# Sharing out


@pytest.mark.parametrize("seed", range(20))
def test_a_hull_lies_below_every_point_and_turns_only_upwards(seed):
    points_of = [Cost(0, 0.0), *draw_costs(seed)[0, "head"]]
    found = hull(points_of)
    assert {points_of[0], points_of[-1]} <= set(found) <= set(points_of)
    slopes = [slope(*pair) for pair in pairwise(found)]
    assert slopes == sorted(slopes)
    for point in points_of:
        (under,) = {
            round(before.loss + slope(before, after) * (point.removed - before.removed), 12)
            for before, after in pairwise(found)
            if before.removed <= point.removed <= after.removed
        }
        assert under <= point.loss + 1e-9


def on_hull(measured, removed: int) -> float:
    for before, after in pairwise(hull([Cost(0, 0.0), *measured])):
        if removed <= after.removed:
            return before.loss + slope(before, after) * (removed - before.removed)
    raise AssertionError("beyond what was measured")


@pytest.mark.parametrize("total", [0, 1, 5, 8, 12])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_way_to_share_out_the_total_costs_less(seed, total):
    costs = draw_costs(seed)
    found = share_out(costs, total)
    assert sum(found.values()) == total
    least = min(
        sum(on_hull(measured, count) for measured, count in zip(costs.values(), counts))
        for counts in product(range(5), repeat=3)
        if sum(counts) == total
    )
    assert sum(on_hull(costs[unit], count) for unit, count in found.items()) == pytest.approx(least)


def test_what_costs_nothing_goes_first_and_then_what_costs_least():
    costs = {
        (1, "head"): [Cost(4, 2.0)],
        (2, "head"): [Cost(2, 0.0), Cost(4, 0.0)],
        (3, "head"): [Cost(4, 1.0)],
    }
    assert share_out(costs, 3) == {(1, "head"): 0, (2, "head"): 3, (3, "head"): 0}
    assert share_out(costs, 9) == {(1, "head"): 1, (2, "head"): 4, (3, "head"): 4}


def test_alike_layers_that_cost_more_with_each_unit_share_alike():
    costs = {(layer, "neuron"): [Cost(10, 0.1), Cost(20, 0.3), Cost(30, 0.9)] for layer in range(4)}
    assert set(share_out(costs, 80).values()) == {20}


# Plans of layers that lose different shares


def test_a_layer_loses_its_own_level_and_others_the_common_one():
    levels = {(1, "head"): 0.25, (2, "head"): 0.0, (2, "neuron"): 0.75}
    policy = SparsityPolicy(0.5, levels=levels)
    scores = {(n, kind): torch.rand(2, 8) for n in range(4) for kind in ("head", "neuron")}
    gone = {unit: int((~keep).sum(-1)[0]) for unit, keep in policy.plan(scores, sites_of(scores)).items()}
    assert gone == {(1, "head"): 2, (1, "neuron"): 4, (2, "neuron"): 6, (3, "head"): 4, (3, "neuron"): 4}


@pytest.mark.parametrize("count", range(9))
def test_a_level_that_is_so_many_units_of_9_takes_exactly_so_many(count):
    policy = SparsityPolicy(0.5, levels={(1, "head"): count / 9})
    assert policy.gone(9, policy.level_of((1, "head"))) == count


def test_levels_of_layers_need_the_scope_layer_and_are_levels():
    with pytest.raises(UserError, match=r"sparsity\.scope=layer or threshold, got global"):
        SparsityPolicy(0.5, "global", levels={(1, "head"): 0.5})
    with pytest.raises(UserError, match=r"in \[0, 1\), got"):
        SparsityPolicy(0.5, levels={(1, "head"): 1.0})


# Learning


@pytest.fixture
def windows(examples):
    return list(batched(examples([12, 9, 10, 12]), 2))


@pytest.fixture(params=["fixed", "net", "oracle"])
def scorer(request, lm, make_net):
    if request.param == "fixed":
        return Fixed(random_scores(find_sites(lm.model), 0))
    return Oracle("l2_norm") if request.param == "oracle" else Predicted(make_net(lm, [1, 2]), "scores")


@pytest.mark.parametrize("level", [0.3, 0.5])
def test_budgets_take_as_much_of_each_kind_as_one_level_for_all(lm, scorer, windows, level):
    policy = SparsityPolicy(level)
    found = learn(lm.model, scorer, policy, "token", Zero(), windows)
    achieved = []
    for chosen in (policy, SparsityPolicy(level, levels=found.levels)):
        with sparse(lm.model, scorer, chosen) as run:
            for batch in windows:
                run.logits(batch)
        achieved.append({kind: run.achieved(kind) for kind in ("head", "neuron")})
    assert achieved[0] == achieved[1]
    assert found.levels.keys() == {(n, kind) for n in (1, 2, 3) for kind in ("head", "neuron")}
    assert len(set(found.levels.values())) > 1  # a random model's layers differ


def test_a_cost_is_by_how_much_the_loss_grows_when_that_alone_is_pruned(lm, scorer, windows):
    found = learn(lm.model, scorer, SparsityPolicy(0.5), "token", Zero(), windows)

    def loss(policy):
        with sparse(lm.model, scorer, policy) as run:
            rows = [row_losses(run.logits(batch), batch.targets("next_token")) for batch in windows]
        return float(torch.cat(rows).double().mean())

    dense = loss(SparsityPolicy(0.0))
    for level in probes(0.5):
        policy = SparsityPolicy(level, dense_layers=(0, 1, 3), kinds=("neuron",))
        (cost,) = [cost for cost in found.costs[2, "neuron"] if cost.removed == round(64 * level)]
        assert cost.loss == pytest.approx(loss(policy) - dense, abs=1e-6)


def test_the_number_of_passes_is_what_is_said(lm, windows):
    passes = []
    handle = lm.model.register_forward_hook(lambda *args: passes.append(1))
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    found = learn(lm.model, scorer, SparsityPolicy(0.5), "token", Zero(), windows)
    handle.remove()
    assert found.passes == 1 + 3 * 2 * 3  # the dense model; layers, kinds and levels
    assert len(passes) == found.passes * len(windows)


def test_what_nothing_reads_costs_nothing(lm, windows):
    reader = next(site for site in find_sites(lm.model) if (site.layer, site.kind) == (2, "neuron"))
    reader.module.weight.data.zero_()
    policy = SparsityPolicy(0.3, kinds=("neuron",))
    found = learn(lm.model, Oracle("l2_norm"), policy, "token", Zero(), windows)
    assert [cost.loss for cost in found.costs[2, "neuron"]] == [0, 0, 0]
    # of the others the first to go may be silent: OPT's neurons are behind a ReLU
    assert all(found.costs[unit][-1].loss for unit in ((1, "neuron"), (3, "neuron")))


# By one ranking


def test_one_ranking_takes_of_each_layer_what_a_plan_over_all_layers_does():
    draw = torch.Generator().manual_seed(0)
    scores = {
        (layer, kind): (layer + 1) * torch.rand(units, generator=draw)
        for layer in range(4)
        for kind, units in (("head", 9), ("neuron", 50))
    }
    policy = SparsityPolicy(0.5)
    levels = by_rank(scores, policy, list(sites_of(scores).values()))
    whole = SparsityPolicy(0.5, scope="global").plan(scores, sites_of(scores))
    assert levels.keys() == whole.keys()
    for unit, keep in SparsityPolicy(0.5, levels=levels).plan(scores, sites_of(scores)).items():
        assert torch.equal(keep, whole[unit])
    assert levels[1, "neuron"] > 0.5 > levels[3, "neuron"]  # scores grow by layers
    assert sum(50 * levels[layer, "neuron"] for layer in (1, 2, 3)) == pytest.approx(75)


def test_one_ranking_of_groups_of_heads_loses_whole_groups():
    scores = {(layer, "head"): torch.tensor([4.0, 1, 3, 2, 6, 5]) * 2**layer for layer in range(3)}
    policy = SparsityPolicy(0.5, kinds=("head",), head_unit="group")
    levels = by_rank(scores, policy, list(sites_of(scores, group=2).values()))
    assert levels == {(1, "head"): pytest.approx(2 / 3), (2, "head"): pytest.approx(1 / 3)}


# As a job has them


def job(compose, *overrides):
    return compose("evaluate", "make_missing=true", *SMALL, *overrides)


def test_budgets_are_learnt_once_and_found_again(compose, monkeypatch):
    cfg = job(compose)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm, [])
    first = policies.get_policy(cfg, lm, scorer, Zero())
    kept = json.loads(keys.budgets_file(cfg).read_text())
    assert (kept["windows"], kept["passes"]) == (4, 19)
    assert len(kept["costs"]) == 18
    monkeypatch.setattr(budgets, "learn", None)
    assert policies.get_policy(cfg, lm, scorer, Zero()) == first
    assert sum(level for (_, kind), level in first.levels.items() if kind == "neuron") == pytest.approx(1.5)
    checks.check_scorer(compose("evaluate", *SMALL))


def test_the_ranking_over_layers_is_by_the_means_of_the_calibration(compose):
    cfg = job(compose, "sparsity.budgets=global", "predictor=static")
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm, [])
    policy = policies.get_policy(cfg, lm, scorer, Zero())
    scores = ingredients.JobIngredients(cfg, lm).static()
    assert policy.levels == by_rank(scores, SparsityPolicy(0.5), list(sites_of(scores, group=2).values()))
    assert len(set(policy.levels.values())) > 1
    of_oracle = job(compose, "sparsity.budgets=global", "predictor=oracle")
    assert policies.get_policy(of_oracle, lm, scorer, Zero()) == policy
    assert calibration.needs_traces(of_oracle)


@pytest.mark.parametrize("predictor", ["oracle", "unified"])
def test_a_ranking_over_layers_waits_for_its_traces(compose, make_net, config_of, predictor):
    job = [*SMALL, f"predictor={predictor}", "sparsity.budgets=global", "make_missing=false"]
    cfg = compose("evaluate", *job)
    if predictor == "unified":
        lm = loading.load_lm(cfg)
        net = make_net(lm, [1])
        save_predictor(keys.predictor_folder(cfg), net, config_of(net, lm))
    with pytest.raises(UserError, match=r"no trace store .* make_missing=true"):
        checks.check_scorer(cfg)


def test_no_budgets_are_learnt_for_one_level_in_all_layers_or_for_the_dense_model(compose, artifacts):
    for overrides in (["sparsity.budgets=uniform"], ["sparsity.level=0"]):
        cfg = job(compose, *overrides)
        lm = loading.load_lm(cfg)
        policy = policies.get_policy(cfg, lm, ingredients.get_scorer(cfg, lm, []), Zero())
        assert policy.levels is None
    assert not artifacts.exists()


def test_budgets_of_other_weights_are_refused(compose):
    cfg = job(compose)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm, [])
    policies.get_policy(cfg, lm, scorer, Zero())
    file = keys.budgets_file(cfg)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": "0" * 16}))
    with pytest.raises(UserError, match="other weights"):
        policies.get_policy(cfg, lm, scorer, Zero())


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["data.windows=5"], True),
        (["measure.windows=3"], True),
        (["sparsity.budget_windows=3"], False),
        (["sparsity.level=0.3"], False),
        (["sparsity.stand_in=mean"], False),
        (["sparsity.decided_at=prompt"], False),
        (["predictor=oracle"], False),
        (["data.tokens=13"], False),
        (["seed=7"], False),
    ],
    ids=str,
)
def test_budgets_are_named_by_what_decides_them(compose, overrides, same):
    assert (keys.budgets_file(job(compose, *overrides)) == keys.budgets_file(job(compose))) == same


def test_points_know_the_budgets_and_their_windows_and_the_dense_one_neither(compose):
    def key(*overrides):
        cfg = job(compose, *overrides)
        return point_records.settings_of(cfg, {"content": measures.content_of(cfg)})

    uniform = "sparsity.budgets=uniform"
    assert key() != key("sparsity.budget_windows=3")
    assert key() != key(uniform)
    assert key("sparsity.level=0") == key("sparsity.level=0", uniform)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sparsity.budgets=equal"],
            r"sparsity\.budgets must be one of \['uniform', 'greedy', 'global', .*\], got 'equal'",
        ),
        (["sparsity=global"], r"budgets=greedy .* needs sparsity\.scope=layer or threshold, got global"),
        (
            ["sparsity.budgets=block"],
            r"budgets=block runs each layer by itself .*predictor=random reads nothing.*budgets=greedy",
        ),
        (["sparsity.block.step=0"], r"sparsity\.block\.step must be in \(0, 0\.5\], got 0"),
        (
            ["sparsity.budgets=global", "sparsity.min_units=0"],
            r"sparsity\.budgets=global .* sparsity\.min_units=1, got 0",
        ),
        (
            ["sparsity.budget_windows=0"],
            r"sparsity\.budget_windows must be a whole number of at least 1, got 0",
        ),
        ([], r"no budgets .*make_missing=true.*sparsity\.budgets=uniform"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(compose, overrides, message):
    with pytest.raises(UserError, match=message):
        checks.check_scorer(compose("evaluate", *SMALL, *overrides))
