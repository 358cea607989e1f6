"""When a plan is decided, what it has seen, and that the batch around a row does not matter."""

from itertools import cycle, product

import pytest
import torch
from drawn_sites import sites_of
from pairwise import pairwise

from shadow.criteria import CONTEXTUAL
from shadow.criteria.one_pass import score
from shadow.data.batches import Example, collate
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted

POLICY = SparsityPolicy(0.5)
NETS = ["unified-scores", "unified-mean", "unified-last", "layerwise-scores", "layerwise-last"]
ORACLES = [f"oracle-{name}" for name in CONTEXTUAL]
LOOKING = [name for name in ORACLES if name != "oracle-random"]
FAMILIES = ["opt", "llama"]
TIMES = ["token", "prompt", "sequence"]
ONCE = [  # each net at each time, and each criterion at one of them
    *(
        (name, at)
        for name in ["fixed", *NETS]
        for at in TIMES
        if at != "token" or not name.endswith(("-mean", "-last"))
    ),
    *zip(ORACLES, cycle(TIMES)),
]  # a single token has nothing to pool


@pytest.fixture
def make_scorer(make_net):
    def make(name, lm):
        shape, _, how = name.partition("-")
        if shape == "fixed":
            return Fixed(random_scores(find_sites(lm.model), 0))
        if shape == "oracle":
            return Oracle(how)
        return Predicted(make_net(lm, [1] if shape == "unified" else [1, 2, 3]), how)

    return make


def plan_of(lm, scorer, batch, decided_at, policy=POLICY):
    with sparse(lm.model, scorer, policy, decided_at) as run:
        logits = run.logits(batch)
    return run.plan, logits, run


def of_row(plan, row, length):
    """This row's part of a plan: the same for all positions [U], or one each [T, U] without the padding's."""
    return {
        unit: keep if keep.dim() == 1 else keep[row] if keep.dim() == 2 else keep[row, :length]
        for unit, keep in plan.items()
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for unit in one:
        assert torch.equal(one[unit], other[unit]), unit


def differ(one, other):
    return any(not torch.equal(one[unit], other[unit]) for unit in one)


# Batch size


@pytest.mark.parametrize(
    ("family", "name", "decided_at", "dtype"),
    [
        # with rounding of 6e-8 a criterion's two units are once in a while too close to tell
        (family, *case, torch.float64 if case[0] in ORACLES else dtype)
        for case, (family, dtype) in zip(
            ONCE, cycle(product(["opt", "llama"], [torch.float64, torch.float32]))
        )
    ],
)
def test_batch_size_1_and_8_give_the_same_plans(
    make_lm, make_scorer, examples, family, name, decided_at, dtype
):
    lm = make_lm(family, dtype=dtype)
    rows = examples([12, 5, 9, 16, 7, 13, 10, 4])
    scorer = make_scorer(name, lm)
    together, _, run = plan_of(lm, scorer, collate(rows), decided_at)
    kept, total = run.planner.kept, run.planner.total
    alone_kept, alone_total = type(kept)(), type(total)()
    for row, example in enumerate(rows):
        alone, _, run = plan_of(lm, scorer, collate([example]), decided_at)
        assert_same(of_row(together, row, len(example.ids)), of_row(alone, 0, len(example.ids)))
        alone_kept += run.planner.kept
        alone_total += run.planner.total
    assert total == alone_total
    assert {unit: kept[unit] for unit in total} == {unit: alone_kept[unit] for unit in total}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_a_row_has_the_same_logits_alone_and_among_others(lm64, make_scorer, examples, scope, decided_at):
    rows, policy = examples([12, 5, 9, 16]), SparsityPolicy(0.5, scope)
    scorer = make_scorer("unified-scores", lm64)
    together = plan_of(lm64, scorer, collate(rows), decided_at, policy)[1]
    for row, example in enumerate(rows):
        alone = plan_of(lm64, scorer, collate([example]), decided_at, policy)[1]
        # float64, of which only the order of sums differs
        torch.testing.assert_close(together[row, : len(example.ids)], alone[0], rtol=1e-9, atol=1e-9)


# What a plan has seen


TURNS = pytest.mark.parametrize(("family", "name"), [*zip(cycle(FAMILIES), [*NETS, *LOOKING])])


@pytest.fixture
def pairs(examples):
    """Rows with the same first 6 tokens, and other tokens after them (as many, fewer, more)."""
    first, *others = examples([12, 12, 8, 15])
    rows = [first, *(Example(first.ids[:6] + other.ids[6:], 6) for other in others)]
    assert all(row.prompt == 6 for row in rows)
    return rows


@pytest.mark.parametrize("name", ["fixed", *NETS, "oracle-l2_norm"])
def test_a_plan_decided_at_the_prompt_has_not_seen_the_answer(lm, make_scorer, pairs, name):
    scorer = make_scorer(name, lm)
    first = of_row(plan_of(lm, scorer, collate(pairs[:1]), "prompt")[0], 0, 12)
    for pair in pairs[1:]:
        assert_same(of_row(plan_of(lm, scorer, collate([pair]), "prompt")[0], 0, 99), first)
    together = plan_of(lm, scorer, collate(pairs), "prompt")[0]
    for row in range(len(pairs)):
        assert_same(of_row(together, row, 99), first)


@TURNS
def test_a_plan_decided_at_the_prompt_depends_on_the_prompt(make_lm, make_scorer, examples, family, name):
    lm = make_lm(family)
    one, other = examples([12, 12])
    scorer = make_scorer(name, lm)
    assert differ(
        of_row(plan_of(lm, scorer, collate([one]), "prompt")[0], 0, 12),
        of_row(plan_of(lm, scorer, collate([other]), "prompt")[0], 0, 12),
    )


@TURNS
def test_a_plan_decided_at_the_sequence_has_seen_the_answer(make_lm, make_scorer, pairs, family, name):
    lm = make_lm(family)
    scorer = make_scorer(name, lm)
    assert differ(
        of_row(plan_of(lm, scorer, collate(pairs[:1]), "sequence")[0], 0, 12),
        of_row(plan_of(lm, scorer, collate(pairs[1:2]), "sequence")[0], 0, 12),
    )


@pytest.mark.parametrize("name", ["unified-scores", "layerwise-scores", "oracle-l2_norm"])
def test_a_plan_decided_at_the_token_has_not_seen_later_tokens(lm, make_scorer, pairs, name):
    scorer = make_scorer(name, lm)
    plan = plan_of(lm, scorer, collate(pairs), "token")[0]
    for row in range(1, len(pairs)):
        assert_same(of_row(plan, 0, 6), of_row(plan, row, 6))
    assert differ(
        {unit: keep[0, 6:8] for unit, keep in plan.items()},
        {unit: keep[1, 6:8] for unit, keep in plan.items()},
    )


def test_a_plan_decided_at_the_token_differs_from_position_to_position(lm, make_scorer, pairs):
    plan = plan_of(lm, make_scorer("unified-scores", lm), collate(pairs), "token")[0]
    for keep in plan.values():
        assert (keep[:, 1:6] != keep[:, :1]).any()


@pairwise("family, name, decided_at", FAMILIES, NETS, ["prompt", "sequence"])
def test_a_plan_of_a_whole_row_is_what_the_pooled_scores_say(
    make_lm, make_net, examples, family, name, decided_at
):
    """By hand from the states of the dense pass, which are what the first tap reads in the sparse one."""
    lm = make_lm(family)
    shape, _, pooling = name.partition("-")
    net = make_net(lm, [1] if shape == "unified" else [1, 2, 3])
    example = examples([11])[0]
    plan = plan_of(lm, Predicted(net, pooling), collate([example]), decided_at)[0]
    end = example.prompt if decided_at == "prompt" else 11
    ids = torch.tensor([example.ids])
    state = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, :end]
    others = [torch.zeros_like(state)] * (len(net.taps) - 1)
    if pooling == "mean":
        state = state.mean(0, keepdim=True)
    elif pooling == "last":
        state = state[-1:]
    with torch.no_grad():
        scores = net(torch.stack([state, *(other[: len(state)] for other in others)], 1))
    for kind, values in scores.items():  # [positions, S, U]; layer 1 is the first
        of_layer = {(1, kind): values.mean(0)[0]}
        expected = POLICY.plan(of_layer, sites_of(of_layer))
        assert torch.equal(plan[1, kind][0], expected[1, kind])


@pytest.mark.parametrize(("family", "decided_at", "name"), [*zip(cycle(FAMILIES), cycle(TIMES), CONTEXTUAL)])
def test_the_oracle_takes_the_units_that_its_criterion_ranks_highest(
    make_lm, batch, family, decided_at, name
):
    lm = make_lm(family)
    found, policy = {}, SparsityPolicy(0.5, dense_layers=())

    def receive(_, site, seen):
        pool = {"token": None, "prompt": batch.in_prompt(), "sequence": batch.real()}[decided_at]
        found[site.layer, site.kind] = seen.tokens() if pool is None else seen.window(pool)

    score(lm.model, batch, [name], receive)
    assert_same(plan_of(lm, Oracle(name), batch, decided_at, policy)[0], policy.plan(found, sites_of(found)))


@pytest.mark.parametrize("decided_at", ["token", "prompt", "sequence"])
def test_the_random_oracle_takes_the_same_units_everywhere(lm, make_scorer, batch, decided_at):
    plan = plan_of(lm, make_scorer("oracle-random", lm), batch, decided_at)[0]
    for keep in plan.values():
        rows = keep.flatten(0, -2)
        assert torch.equal(rows, rows[:1].expand_as(rows))


def test_what_an_oracle_saw_of_one_batch_does_not_reach_the_next(lm, make_scorer, examples):
    scorer = make_scorer("oracle-fisher", lm)
    one, other = collate(examples([9], seed=1)), collate(examples([9], seed=2))
    expected = plan_of(lm, make_scorer("oracle-fisher", lm), other, "token")[0]
    with sparse(lm.model, scorer, POLICY) as run:
        run.logits(one)
        run.logits(other)
        assert_same(run.plan, expected)


# One pass


def test_the_first_tap_reads_what_the_dense_model_computes_and_later_ones_what_is_left(lm, make_net, batch):
    states = {}

    class Spy(Predicted):
        def scores(self, signal, state, pool):
            states[signal.layer] = state.clone()
            return super().scores(signal, state, pool)

    plan_of(lm, Spy(make_net(lm, [1, 2, 3]), "scores"), batch, "token")
    hidden = lm.model(
        input_ids=batch.ids, attention_mask=batch.real().long(), output_hidden_states=True
    ).hidden_states
    assert torch.equal(states[1], hidden[1])
    assert not torch.equal(states[2], hidden[2])
    assert not torch.equal(states[3], hidden[3])


@pytest.mark.parametrize("name", ["fixed", "unified-scores", "layerwise-scores"])
def test_a_sparse_pass_runs_the_model_once(lm, make_scorer, batch, name):
    calls = []
    handle = lm.model.register_forward_hook(lambda *args: calls.append(1))
    plan_of(lm, make_scorer(name, lm), batch, "token")
    handle.remove()
    assert len(calls) == 1
