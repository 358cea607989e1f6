"""What `sparse` counts, and what it refuses."""

import pytest
import torch
from drawn_sites import sites_of

from shadow.data.batches import collate
from shadow.errors import UserError
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.models.load import random_opt
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted
from shadow.signals import Signal, hook_signals


@pytest.fixture
def unified(lm, make_net):
    return Predicted(make_net(lm, [1]), "scores")


@pytest.fixture
def layerwise(lm, make_net):
    return Predicted(make_net(lm, [1, 2, 3]), "scores")


# Achieved sparsity


@pytest.mark.parametrize("level", [0.25, 0.5, 0.75])
def test_achieved_is_the_share_of_all_layers_the_dense_one_included(lm, unified, batch, level):
    with sparse(lm.model, unified, SparsityPolicy(level)) as run:
        run.logits(batch)
    # 4 heads and 64 neurons: these levels are whole numbers of both; 3 of 4 layers are pruned
    assert run.achieved("head") == 1 - (1 - 0.75 * level)
    assert run.achieved("neuron") == 1 - (1 - 0.75 * level)


def test_achieved_is_what_a_level_can_really_take(lm, batch):
    """A third of 4 heads is one head; a third of 64 neurons is 21."""
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    with sparse(lm.model, scorer, SparsityPolicy(0.34, dense_layers=())) as run:
        run.logits(batch)
    assert run.achieved("head") == 1 - 3 / 4
    assert run.achieved("neuron") == 1 - 43 / 64


def test_achieved_of_a_kind_that_is_not_pruned_is_0(lm, unified, batch):
    with sparse(lm.model, unified, SparsityPolicy(0.5, kinds=("neuron",))) as run:
        run.logits(batch)
    assert run.achieved("head") == 0.0
    assert run.achieved("neuron") == 0.375


def test_achieved_counts_real_tokens_and_not_padding(lm, batch):
    """A plan that drops everything at padding and nothing elsewhere, and one the other way round."""
    real = batch.real()
    for where, achieved in ((~real, 0.0), (real, 0.25)):
        with sparse(lm.model, Fixed({}), SparsityPolicy(0.0)) as run:
            run.planner.plan = {(2, "neuron"): (~where)[..., None].expand(*real.shape, 64)}
            run.logits(batch)
        assert run.achieved("neuron") == achieved
        assert run.planner.total[2, "neuron"] == 64 * int(batch.lengths.sum())


def test_achieved_weighs_rows_by_their_tokens(lm, examples):
    batch = collate(examples([12, 4]))
    with sparse(lm.model, Fixed({}), SparsityPolicy(0.0)) as run:
        run.planner.plan = {(0, "head"): torch.tensor([[True] * 4, [False] * 4])}
        run.logits(batch)
    assert run.achieved("head") == 1 - (1 - 4 / 16 / 4)


def test_achieved_adds_up_over_calls_and_does_not_count_what_an_oracle_looks_at(lm, examples):
    with sparse(lm.model, Oracle("plainact"), SparsityPolicy(0.5)) as run:
        run.logits(collate(examples([10, 6])))
        run.logits(collate(examples([5])))
    assert run.planner.total[0, "head"] == 4 * (10 + 6 + 5)
    assert run.achieved("head") == 0.375


def test_the_dense_model_counts_every_unit_as_kept(lm, unified, batch):
    with sparse(lm.model, unified, SparsityPolicy(0.0)) as run:
        run.logits(batch)
    tokens = int(batch.lengths.sum())
    for layer in range(4):
        assert run.planner.kept[layer, "head"] == run.planner.total[layer, "head"] == 4 * tokens
        assert run.planner.kept[layer, "neuron"] == run.planner.total[layer, "neuron"] == 64 * tokens


# Refusals


@pytest.mark.parametrize("decided_at", ["answer", "Token", "", None])
def test_an_unknown_time_of_decision_is_refused(lm, unified, decided_at):
    with (
        pytest.raises(UserError, match=r"sparsity\.decided_at.*token, prompt or sequence"),
        sparse(lm.model, unified, SparsityPolicy(0.5), decided_at),
    ):
        pass


@pytest.mark.parametrize("layers", [(4,), (-1,), (0, 99)])
def test_dense_layers_outside_the_model_are_refused(lm, unified, layers):
    with (
        pytest.raises(UserError, match=r"sparsity\.dense_layers.*\[0, 4\)"),
        sparse(lm.model, unified, SparsityPolicy(0.5, dense_layers=(0, *layers))),
    ):
        pass


@pytest.mark.parametrize(
    ("taps", "ahead", "dense_layers"),
    [([1], 0, ()), ([2], 0, (0,)), ([2], 0, (1,)), ([3], 0, (0, 2)), ([0], 1, ()), ([0, 1], 2, (0,))],
)
def test_layers_before_the_first_that_is_scored_must_be_dense(lm, make_net, taps, ahead, dense_layers):
    scorer = Predicted(make_net(lm, taps, ahead=ahead), "scores")
    with (
        pytest.raises(
            UserError, match=rf"sparsity\.dense_layers.*predictor scores \({taps[0] + ahead}\), got"
        ),
        sparse(lm.model, scorer, SparsityPolicy(0.5, dense_layers=dense_layers)),
    ):
        pass


@pytest.mark.parametrize(("taps", "ahead"), [([0], 1), ([0, 1, 2], 1), ([0, 1], 2)])
def test_a_predictor_that_looks_ahead_prunes_what_it_scores(lm, make_net, batch, taps, ahead):
    scorer = Predicted(make_net(lm, taps, ahead=ahead), "scores")
    policy = SparsityPolicy(0.5, dense_layers=range(scorer.first))
    with sparse(lm.model, scorer, policy) as run:
        run.logits(batch)
    assert set(run.plan) == {
        (layer, kind) for layer in range(taps[0] + ahead, 4) for kind in ("head", "neuron")
    }
    assert run.achieved("neuron") == 0.5 * (4 - scorer.first) / 4


@torch.no_grad()
def test_the_plan_of_a_layer_ahead_is_of_the_state_that_the_tap_reads(lm, make_net, batch):
    scorer, found = Predicted(make_net(lm, [0, 1, 2], ahead=1), "scores"), {}
    with (
        sparse(lm.model, scorer, SparsityPolicy(0.5)) as run,
        hook_signals(
            lm.model,
            [Signal(at, "layer_input") for at in [0, 1, 2]],
            lambda at, x: found.__setitem__(at.layer, x),
        ),
    ):
        run.logits(batch)
    for tap, state in found.items():
        scores = scorer.scores(Signal(tap, "layer_input"), state, None)
        for unit, keep in SparsityPolicy(0.5).plan(scores, sites_of(scores)).items():
            assert unit[0] == tap + 1
            assert torch.equal(run.plan[unit], keep)


@pytest.mark.parametrize(("kind", "other"), [("head", "neuron"), ("neuron", "head")])
def test_units_of_a_kind_that_is_not_scored_are_not_pruned(lm, make_net, batch, kind, other):
    scorer = Predicted(make_net(lm, [1], kinds=[kind]), "scores")
    with sparse(lm.model, scorer, SparsityPolicy(0.5, kinds=[kind])) as run:
        run.logits(batch)
    assert (run.achieved(kind), run.achieved(other)) == (0.375, 0.0)
    for policy in (SparsityPolicy(0.5, kinds=["head", "neuron"]), SparsityPolicy(0.5, kinds=[other])):
        with (
            pytest.raises(UserError, match=rf"sparsity\.kinds must be among \['{kind}'\].*got .*'{other}'"),
            sparse(lm.model, scorer, policy),
        ):
            pass
    with sparse(lm.model, scorer, level=0):  # prunes nothing
        pass


def test_global_scope_is_refused_for_several_taps(lm, layerwise):
    with (
        pytest.raises(UserError, match=r"sparsity\.scope=global.*3 taps"),
        sparse(lm.model, layerwise, SparsityPolicy(0.5, "global")),
    ):
        pass


def test_global_scope_is_fine_with_one_tap(lm, unified, batch):
    with sparse(lm.model, unified, SparsityPolicy(0.5, "global", 0)) as run:
        run.logits(batch)
    assert run.achieved("neuron") == 0.375


def test_level_0_is_never_refused_for_its_taps(lm, layerwise):
    with sparse(lm.model, layerwise, SparsityPolicy(0.0, "global", dense_layers=())):
        pass


def test_what_is_refused_leaves_no_hook(lm, layerwise, hooks_on):
    with pytest.raises(UserError), sparse(lm.model, layerwise, SparsityPolicy(0.5, "global")):
        pass
    assert hooks_on(lm.model) == 0


def test_an_oracle_that_has_not_seen_the_sample_says_so(lm, batch):
    with (
        pytest.raises(UserError, match=r"oracle.*`Run\.logits`"),
        sparse(lm.model, Oracle("fisher"), SparsityPolicy(0.5)),
    ):
        lm.model(batch.ids)


@pytest.mark.parametrize(
    "given",
    [{}, {"level": 0.5, "policy": SparsityPolicy(0.5)}, {"level": 0.0, "policy": SparsityPolicy(0.5)}],
)
def test_exactly_one_of_level_and_policy_is_asked_for(lm, unified, given):
    with (
        pytest.raises(UserError, match=r"exactly one of level and policy"),
        sparse(lm.model, unified, **given),
    ):
        pass


@pytest.mark.parametrize("level", [0, 0.25, 0.5])
def test_a_level_is_the_default_policy_of_that_level(lm, unified, batch, level):
    with sparse(lm.model, unified, SparsityPolicy(level)) as run:
        expected = run.logits(batch)
    with sparse(lm.model, unified, level=level) as run:
        assert run.planner.policy == SparsityPolicy(level, kinds=["head", "neuron"] if level else None)
        assert torch.equal(run.logits(batch), expected)


@pytest.mark.parametrize("level", [-0.1, 1, True])
def test_a_level_that_cannot_be_is_refused(lm, unified, level):
    with pytest.raises(UserError, match=r"sparsity\.level"), sparse(lm.model, unified, level=level):
        pass


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"layers": 3}, "4 layers of width 32 .* and this one has 3 layers of width 32 "),
        ({"layers": 6}, "and this one has 6 layers"),
        ({"hidden": 64}, "and this one has 4 layers of width 64"),
        ({"heads": 8}, "4 heads and 64 neurons each, and this one has .* 8 heads and 64 neurons each"),
        ({"neurons": 128}, "and this one has .* 4 heads and 128 neurons each"),
    ],
    ids=str,
)
@pytest.mark.parametrize("level", [0, 0.5])
def test_a_predictor_of_another_model_is_refused_before_anything_runs(
    tiny_opt, make_net, hooks_on, other, message, level
):
    shape = {"layers": 4, "hidden": 32, "heads": 4, "neurons": 64} | other
    model = random_opt(**shape, positions=64, seed=0, dtype=torch.float32, device_map=None).model
    scorer = Predicted(make_net(tiny_opt, [1, 3]), "scores")
    with pytest.raises(UserError, match=message), sparse(model, scorer, level=level):
        pass
    assert hooks_on(model) == 0


# What is given, and how


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy": 0.5}, r"policy must be a SparsityPolicy, got 0\.5: a level is given as level=0\.5"),
        (
            {"level": 0.5, "stand_in": "median"},
            r"stand_in must be one of \['auto', 'mean', 'zero'\].*got 'median'",
        ),
        ({"level": 0.5, "stand_in": "mean"}, r"stand_in=mean needs a predictor that brings means"),
    ],
    ids=str,
)
def test_what_is_no_policy_and_no_fill_is_refused(lm, unified, given, message):
    with pytest.raises(UserError, match=message), sparse(lm.model, unified, **given):
        pass


def test_a_net_that_reads_whole_prompts_does_not_decide_at_a_token(lm, make_net):
    for pooling in ("last", "mean"):
        scorer = Predicted(make_net(lm, [1]), pooling)
        refused = pytest.raises(
            UserError, match=r"reads a whole prompt.*decided_at=prompt or sequence, got token"
        )
        with refused, sparse(lm.model, scorer, level=0.5):
            pass
        for taken in ({"level": 0.0}, {"level": 0.5, "decided_at": "prompt"}):
            with sparse(lm.model, scorer, **taken):
                pass


@torch.no_grad()
def test_a_mask_by_position_counts_as_one_by_name_and_embeddings_as_ids(lm, unified, batch):
    mask = batch.real().long()
    embedded = lm.model.get_input_embeddings()(batch.ids)
    found = []
    for args, kwargs in (
        ((batch.ids,), {"attention_mask": mask}),
        ((batch.ids, mask), {}),
        ((), {"inputs_embeds": embedded, "attention_mask": mask}),
    ):
        with sparse(lm.model, unified, SparsityPolicy(0.5), "prompt") as run:
            found.append((lm.model(*args, **kwargs).logits[mask.bool()], run.planner.total[1, "neuron"]))
    for logits, total in found[1:]:
        torch.testing.assert_close(logits, found[0][0])
        assert total == found[0][1] == 64 * int(mask.sum())
