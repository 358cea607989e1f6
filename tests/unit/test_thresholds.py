"""Thresholds: tokens keep more or fewer units, and the level is that of the average."""

import json
import math

import pytest
import torch
from drawn_sites import sites_of

from shadow.artifacts import hub
from shadow.data.batches import batched
from shadow.errors import UserError
from shadow.fit import thresholds
from shadow.fit.thresholds import learn, threshold
from shadow.front import sparse
from shadow.jobs import (
    calibration,
    checks,
    ingredients,
    keys,
    loading,
    measures,
    point_records,
    policies,
    predictor_curve,
    stores,
)
from shadow.models.kinds import find_sites
from shadow.models.sites import KINDS
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted

SMALL = (
    "model=tiny-llama",
    "data.windows=6",
    "data.tokens=12",
    "predictor=oracle",
    "sparsity=threshold",
    "sparsity.budget_windows=4",
    "traces.batch_size=2",
    "traces.shard_windows=4",
    "callbacks.progress=null",
    "+trainer.enable_progress_bar=false",
)
OF_TASKS = ("model=tiny-llama", "data=tasks", "predictor=oracle", "sparsity=threshold")
HEADS = (1, "head")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def above(value: float, min_units: int = 0) -> SparsityPolicy:
    return SparsityPolicy(0.5, "threshold", min_units, thresholds={HEADS: value})


# Plans


@pytest.mark.parametrize("min_units", [0, 1, 3, 20])
def test_a_plan_keeps_what_is_above_and_the_best_of_each_row(min_units):
    scores = draw(2, 5, 12)
    (keep,) = above(0.8, min_units).plan({HEADS: scores}, sites_of({HEADS: scores})).values()
    for row, stays in zip(scores.flatten(0, 1).tolist(), keep.flatten(0, 1).tolist()):
        best = sorted(row, reverse=True)[:min_units]
        assert stays == [score > 0.8 or score in best for score in row]
    assert len(set(keep.sum(-1).flatten().tolist())) > 1 or min_units == 20  # tokens differ


def test_dense_layers_and_other_kinds_need_no_threshold():
    scores = {(layer, kind): draw(4, 8) for layer in (0, 1) for kind in KINDS}
    policy = SparsityPolicy(0.5, "threshold", kinds=("head",), thresholds={HEADS: 0.5})
    assert set(policy.plan(scores, sites_of(scores))) == {HEADS}
    assert SparsityPolicy(0.0, "threshold").plan(scores, sites_of(scores)) == {}


def test_a_plan_without_its_threshold_is_refused():
    for policy in (SparsityPolicy(0.5, "threshold"), above(0.5)):
        scores = {(1, "neuron"): draw(8)}
        with pytest.raises(UserError, match=r"needs a threshold .*none for the neurons of layer 1"):
            policy.plan(scores, sites_of(scores))


def test_thresholds_need_their_scope():
    with pytest.raises(UserError, match=r"thresholds need sparsity\.scope=threshold, got layer"):
        SparsityPolicy(0.5, thresholds={HEADS: 0.5})


# Quantiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("level", [0.01, 0.3, 0.5, 0.99])
def test_a_threshold_is_the_largest_of_those_that_go(level, dtype):
    scores = torch.randperm(200, generator=torch.Generator().manual_seed(0)).view(20, 10).to(dtype)
    policy = SparsityPolicy(level, "threshold", 0)
    found = threshold(scores, policy)
    assert found == sorted(scores.flatten().tolist())[round(level * 200) - 1]
    assert int((scores > found).sum()) == 200 - round(level * 200)


@pytest.mark.parametrize("min_units", [1, 3])
def test_the_level_goes_although_the_best_of_each_row_stay(min_units):
    scores = draw(20, 10) + 10 * torch.arange(20)[:, None]  # half the rows are below all the others
    policy = above(threshold(scores, SparsityPolicy(0.5, "threshold", min_units)), min_units)
    (keep,) = policy.plan({HEADS: scores}, sites_of({HEADS: scores})).values()
    assert int(keep.sum()) == 100
    assert int(keep.sum(-1).min()) == min_units


@pytest.mark.parametrize(("min_units", "kept"), [(8, 8), (10, 10), (50, 10)])
def test_no_more_goes_than_min_units_leave(min_units, kept):
    scores = draw(20, 10)
    policy = above(threshold(scores, SparsityPolicy(0.5, "threshold", min_units)), min_units)
    (keep,) = policy.plan({HEADS: scores}, sites_of({HEADS: scores})).values()
    assert (keep.sum(-1) == kept).all()


def test_nothing_goes_where_the_level_is_less_than_one_unit():
    assert threshold(draw(2, 10), SparsityPolicy(0.04, "threshold")) == -math.inf
    assert threshold(draw(3, 10), SparsityPolicy(0.04, "threshold")) > -math.inf


def test_equal_scores_go_together():
    scores = torch.tensor([[0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 2.0]])
    found = threshold(scores, SparsityPolicy(0.5, "threshold", 1))
    assert found == 0
    (keep,) = above(found, 1).plan({HEADS: scores}, sites_of({HEADS: scores})).values()
    assert keep.int().tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1]]


# Learning


@pytest.fixture
def windows(examples):
    return list(batched(examples([12, 9, 10, 12]), 2))


@pytest.fixture(params=["unified", "layerwise", "ahead", "oracle"])
def scorer(request, lm, make_net):
    if request.param == "oracle":
        return Oracle("l2_norm_pre" if lm.model.config.model_type == "opt" else "l2_norm")
    taps = {"unified": [1], "layerwise": [1, 2, 3], "ahead": [0, 1, 2]}[request.param]
    return Predicted(make_net(lm, taps, ahead=int(request.param == "ahead")), "scores")


@pytest.mark.parametrize("decided_at", ["token", "prompt", "sequence"])
def test_on_the_calibration_the_average_plan_removes_the_level(lm, scorer, windows, decided_at):
    """Late taps too: their thresholds are those of states that the earlier thresholds have pruned."""
    policy = SparsityPolicy(0.5, "threshold")
    found = learn(lm.model, scorer, policy, decided_at, Zero(), windows)
    assert found.keys() == {(layer, kind) for layer in (1, 2, 3) for kind in KINDS}
    policy = SparsityPolicy(0.5, "threshold", thresholds=found)
    counts = {unit: [] for unit in found}
    with sparse(lm.model, scorer, policy, decided_at) as run:
        for batch in windows:
            run.logits(batch)
            for unit, keep in run.plan.items():
                counts[unit] += (keep[batch.real()] if decided_at == "token" else keep).sum(-1).tolist()
    for (_, kind), of_rows in counts.items():
        assert len(of_rows) == (43 if decided_at == "token" else 4)
        units = 4 if kind == "head" else 64
        assert sum(of_rows) == math.ceil(len(of_rows) * units / 2)
    neurons = [count for (_, kind), of_rows in counts.items() if kind == "neuron" for count in of_rows]
    assert len(set(neurons)) > 1  # rows differ
    if decided_at == "token":
        assert run.achieved("neuron") == pytest.approx(0.375, abs=1 / 64)


def test_it_takes_a_pass_for_each_tap_and_leaves_no_hook(lm, make_net, windows, hooks_on):
    passes = []
    handle = lm.model.register_forward_hook(lambda *args: passes.append(1))
    scorer = Predicted(make_net(lm, [1, 2, 3]), "scores")
    learn(lm.model, scorer, SparsityPolicy(0.5, "threshold"), "token", Zero(), windows)
    handle.remove()
    assert len(passes) == 3 * len(windows)
    assert hooks_on(lm.model) == 0


def test_what_is_not_pruned_gets_no_threshold(lm, windows):
    policy = SparsityPolicy(0.5, "threshold", dense_layers=(0, 2), kinds=("neuron",))
    found = learn(lm.model, Oracle("l2_norm"), policy, "token", Zero(), windows)
    assert found.keys() == {(1, "neuron"), (3, "neuron")}


def test_what_could_not_run_is_refused_before_it_is_learnt(lm, make_net, windows):
    policy = SparsityPolicy(0.5, "threshold", dense_layers=())
    with pytest.raises(UserError, match=r"sparsity\.dense_layers must hold every layer before"):
        learn(lm.model, Predicted(make_net(lm, [1]), "scores"), policy, "token", Zero(), windows)


def test_scores_that_are_the_same_for_all_tokens_are_refused(lm, windows):
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    every = dict.fromkeys([(layer, kind) for layer in range(4) for kind in KINDS], 0.5)
    with pytest.raises(UserError, match="differ between tokens"):
        learn(lm.model, scorer, SparsityPolicy(0.5, "threshold"), "token", Zero(), windows)
    with (
        pytest.raises(UserError, match="differ between tokens"),
        sparse(lm.model, scorer, SparsityPolicy(0.5, "threshold", thresholds=every)),
    ):
        pass


def test_a_run_without_thresholds_is_refused_before_it_begins(lm, hooks_on):
    with (
        pytest.raises(UserError, match=r"none for the heads of layer 1: learn them"),
        sparse(lm.model, Oracle("l2_norm"), SparsityPolicy(0.5, "threshold")),
    ):
        pass
    assert hooks_on(lm.model) == 0


# As a job has them


def job(compose, *overrides):
    return compose("evaluate", "make_missing=true", *SMALL, *overrides)


def test_thresholds_are_learnt_once_and_found_again(compose, monkeypatch):
    cfg = job(compose)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm, [])
    first = policies.get_policy(cfg, lm, scorer, Zero())
    kept = json.loads(keys.budgets_file(cfg).read_text())
    assert kept["windows"] == 4
    assert first.thresholds.keys() == {(layer, kind) for layer in (1, 2, 3) for kind in KINDS}
    assert first.levels is None
    monkeypatch.setattr(thresholds, "learn", None)
    assert policies.get_policy(cfg, lm, scorer, Zero()) == first
    checks.check_scorer(compose("evaluate", *SMALL))


def test_thresholds_of_a_net_also_lie_beside_it_where_it_is_used_as_it_is_unasked(compose):
    net = ("predictor=unified", "predictor.epochs=1", "predictor.batch_size=4", "predictor.rank=4")

    def measured(*overrides):
        cfg = job(compose, *net, "sparsity.level=0.25", *overrides)
        policy = policies.get_policy(cfg, lm, scorer, stores.get_stand_in(cfg, lm, scorer))
        unread = {"skipped": 0.25, "skipped_of_layers": 0.25}
        told = {"content": measures.content_of(cfg), "achieved": {}, "bytes": unread, "metrics": {}}
        told["commit"] = {"sha": None}
        predictor_curve.add_to_curve(cfg, told)
        return policy

    cfg = job(compose, *net)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm, [])
    folder = keys.predictor_folder(cfg)
    for other in ("sparsity.kinds=[head]", "sparsity.min_units=2", "sparsity.dense_layers=[0,1]"):
        measured(other)
    measured("sparsity.stand_in=mean")
    assert hub.load_predictor(folder).policies == {}
    learnt = measured()
    assert hub.load_predictor(folder).policy(0.25).thresholds == learnt.thresholds
    told = json.loads((folder / "thresholds-token-0.25.json").read_text())["learnt"]
    assert (told["data"], told["windows"], told["seed"]) == ("builtin", 4, cfg.seed)
    (folder / "thresholds-token-0.25.json").write_text("{")
    measured("sparsity.decided_at=sequence", "sparsity.level=0")
    measured()  # as of a point that was measured before
    assert hub.load_predictor(folder).policies.keys() == {("token", 0.25)}
    assert "predictor.policy(0.25)" in (folder / "README.md").read_text()


def test_a_threshold_of_minus_infinity_is_found_again(compose):
    cfg = job(compose, "sparsity.min_units=100000")
    lm = loading.load_lm(cfg)
    policy = policies.get_policy(cfg, lm, ingredients.get_scorer(cfg, lm, []), Zero())
    assert set(policy.thresholds.values()) == {-math.inf}


def test_the_dense_model_needs_no_thresholds(compose, artifacts):
    cfg = compose("evaluate", *SMALL, "sparsity.level=0", "predictor=static")
    checks.check_scorer(cfg)
    lm = loading.load_lm(cfg)
    policy = policies.get_policy(cfg, lm, ingredients.get_scorer(cfg, lm, []), Zero())
    assert policy.thresholds is None
    assert not artifacts.exists()


def test_points_know_the_thresholds(compose):
    def key(*overrides):
        cfg = job(compose, *overrides)
        return point_records.settings_of(cfg, {"content": measures.content_of(cfg)})

    assert key() != key("sparsity.budget_windows=3")
    assert key() != key("sparsity=layer")
    assert key("sparsity.level=0") == key("sparsity.level=0", "sparsity=layer")


@pytest.mark.usefixtures("tasks")
def test_thresholds_of_tasks_can_be_learnt_with_other_shots(compose, task_root):
    data = (*OF_TASKS, "data.tasks=[copa]", f"data.root={task_root}", "data.num_fewshot=2")

    def asked(*overrides):
        return compose("evaluate", *data, *overrides)

    def learnt(*overrides):
        return calibration.budget_data(asked(*overrides))

    few = learnt()
    none = learnt("sparsity.budget_fewshot=0")
    assert (few.num_fewshot, none.num_fewshot) == (2, 0)
    lm = loading.load_lm(asked())
    assert [example.ids[example.prompt :] for example in none.examples(lm)] == [
        example.ids[example.prompt :] for example in few.examples(lm)
    ]
    files = {keys.budgets_file(asked(f"sparsity.budget_fewshot={n}")) for n in ("null", 0, 1)}
    assert len(files) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sparsity.budget_fewshot=0"], r"sparsity\.budget_fewshot .*needs data=tasks, got 0 with data=b"),
        (["sparsity.budget_fewshot=-1"], r"sparsity\.budget_fewshot .*at least 0.*got -1 "),
        (["predictor=static"], r"sparsity\.scope=threshold .*predictor=static are the same for all"),
        (["predictor=random"], r"sparsity\.scope=threshold .*predictor=random are the same for all"),
        (["sparsity=global", "sparsity.budgets=greedy"], r"budgets=greedy .*=layer or threshold, got global"),
        (
            ["predictor=unified", "predictor.loss=listwise", "make_missing=true"],
            r"predictor\.loss=listwise .*not how tokens compare: .*sparsity\.scope=layer, got threshold",
        ),
        ([], r"no thresholds .*: make them with .*make_missing=true.*sparsity=layer"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(compose, overrides, message):
    with pytest.raises(UserError, match=message):
        checks.check_scorer(compose("evaluate", *SMALL, *overrides))
