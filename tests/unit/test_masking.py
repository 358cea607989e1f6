"""The masked executor against the plain model: level 0 changes nothing, a mask is weights of zero."""

from copy import deepcopy
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from observed import drawn_means
from pairwise import pairwise
from torch import nn

from shadow.data.batches import Batch
from shadow.errors import UserError
from shadow.executors.masked import MaskedRun
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted
from shadow.signals import Signal

DENSE = SparsityPolicy(0.0)
SCORERS = [
    "fixed",
    "unified",
    "layerwise",
    "oracle-l2_norm",
    "oracle-fisher",
    "oracle-grasp",
    "oracle-random",
]


def fail_after(_):
    raise RuntimeError("mid-way")


def scorer_of(name, lm, make_net):
    if name == "fixed":
        return Fixed(random_scores(find_sites(lm.model), 0))
    if name.startswith("oracle-"):
        return Oracle(name.removeprefix("oracle-"))
    return Predicted(make_net(lm, [1] if name == "unified" else [1, 2, 3]), "scores")


@pytest.fixture(params=[*zip(cycle(["opt", "llama"]), SCORERS)], ids="-".join)
def planned(request, make_lm, make_net):
    """A model and a scorer of each sort, the families by turns."""
    family, name = request.param
    lm = make_lm(family)
    return lm, scorer_of(name, lm, make_net)


@pairwise(
    "family, name, decided_at",
    ["opt", "llama"],
    ["fixed", "unified", "oracle-fisher"],
    ["token", "prompt", "sequence"],
)
def test_level_0_is_the_dense_model_bit_for_bit(make_lm, make_net, batch, dense, family, name, decided_at):
    lm = make_lm(family)
    scorer = scorer_of(name, lm, make_net)
    with sparse(lm.model, scorer, DENSE, decided_at) as run:
        assert torch.equal(run.logits(batch), dense(lm, batch))
    assert run.achieved("head") == run.achieved("neuron") == 0.0


def test_level_0_is_the_dense_model_whatever_would_stand_in_for_dropped_units(lm, make_net, batch, dense):
    scorer = Predicted(make_net(lm, [1]), "scores")
    with sparse(lm.model, scorer, DENSE, stand_in=drawn_means(lm)) as run:
        assert torch.equal(run.logits(batch), dense(lm, batch))
    assert run.achieved("neuron") == 0.0


@pytest.mark.parametrize("pooling", ["scores", "mean", "last"])
def test_level_0_is_the_dense_model_whatever_the_pooling(lm, make_net, batch, dense, pooling):
    with sparse(lm.model, Predicted(make_net(lm, [1]), pooling), DENSE, "prompt") as run:
        assert torch.equal(run.logits(batch), dense(lm, batch))


def test_after_the_block_the_model_is_dense_again(planned, batch, dense, hooks_on):
    lm, scorer = planned
    before = dense(lm, batch)
    with sparse(lm.model, scorer, SparsityPolicy(0.5)) as run:
        assert not torch.equal(run.logits(batch), before)
    assert hooks_on(lm.model) == 0
    assert torch.equal(dense(lm, batch), before)


def test_no_hook_is_left_after_an_exception(planned, batch, hooks_on):
    lm, scorer = planned
    with pytest.raises(RuntimeError, match="mid-way"), sparse(lm.model, scorer, SparsityPolicy(0.5)) as run:
        fail_after(run.logits(batch))
    assert hooks_on(lm.model) == 0


def test_no_hook_is_left_when_the_forward_pass_fails(planned, batch, hooks_on):
    lm, scorer = planned
    outside = batch._replace(ids=batch.ids + 1_000_000)
    with pytest.raises(IndexError), sparse(lm.model, scorer, SparsityPolicy(0.5)) as run:
        run.logits(outside)
    assert hooks_on(lm.model) == 0


def test_a_call_after_one_that_failed_is_sound(planned, batch):
    """A failed call must not leave the run in the middle of looking, or with another batch's rows."""
    lm, scorer = planned
    outside = batch._replace(ids=batch.ids + 1_000_000)
    with sparse(lm.model, scorer, SparsityPolicy(0.5)) as run:
        expected = run.logits(batch)
    with sparse(lm.model, scorer, SparsityPolicy(0.5)) as run:
        with pytest.raises(IndexError):
            run.logits(outside)
        assert torch.equal(run.logits(batch), expected)


# A mask is weights of zero


def reader(model: nn.Module, layer: int, kind: str) -> nn.Linear:
    if model.config.model_type == "opt":
        module = model.model.decoder.layers[layer]
        return module.self_attn.out_proj if kind == "head" else module.fc2
    module = model.model.layers[layer]
    return module.self_attn.o_proj if kind == "head" else module.mlp.down_proj


def without(model: nn.Module, layer: int, kind: str, unit: int) -> nn.Module:
    """A copy whose reading projection has zeros in the unit's columns."""
    copy = deepcopy(model)
    width = 8 if kind == "head" else 1
    reader(copy, layer, kind).weight.data[:, unit * width : (unit + 1) * width] = 0
    return copy


def keep_all_but(run: MaskedRun, batch: Batch, kind: str, unit: int, where: torch.Tensor, layer: int) -> None:
    """where: bool, [B] or [B, T]: there the unit goes."""
    keep = torch.ones(*where.shape, 4 if kind == "head" else 64, dtype=torch.bool)
    keep[..., unit] = ~where
    run.planner.plan = {(layer, kind): keep}


UNITS = [("head", 0), ("head", 1), ("head", 3), ("neuron", 0), ("neuron", 37), ("neuron", 63)]


@pytest.mark.parametrize(("kind", "unit"), UNITS)
@pytest.mark.parametrize("layer", [0, 2])
def test_masking_a_unit_in_some_rows_equals_zeroing_its_columns_for_them(lm, batch, dense, kind, unit, layer):
    rows = torch.tensor([True, False, False, True, True, False, True, False])
    plain, zeroed = dense(lm, batch), dense(lm._replace(model=without(lm.model, layer, kind, unit)), batch)
    with sparse(lm.model, Fixed({}), DENSE) as run:
        keep_all_but(run, batch, kind, unit, rows, layer)
        masked = run.logits(batch)
    assert not torch.equal(zeroed, plain)
    assert torch.equal(masked[rows], zeroed[rows])
    assert torch.equal(masked[~rows], plain[~rows])


@pytest.mark.parametrize(("kind", "unit"), UNITS)
def test_masking_a_unit_at_some_positions_equals_zeroing_its_columns_there(lm, batch, dense, kind, unit):
    """The reference runs both projections and takes each position from the one that it asks for."""
    where = torch.rand(batch.ids.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    zeroed = reader(without(lm.model, 2, kind, unit), 2, kind)

    def choose(module, args, output):
        x = args[0]
        return torch.where(where.view(*x.shape[:-1], 1), F.linear(x, zeroed.weight, zeroed.bias), output)

    handle = reader(lm.model, 2, kind).register_forward_hook(choose)
    expected = dense(lm, batch)
    handle.remove()
    assert not torch.equal(expected, dense(lm, batch))
    with sparse(lm.model, Fixed({}), DENSE) as run:
        keep_all_but(run, batch, kind, unit, where, 2)
        assert torch.equal(run.logits(batch), expected)


class Rigged:
    """Each row of the batch loses its own head: row r scores head r % 4 lowest, in every layer from 1 on."""

    kinds = frozenset({"head"})

    def signals(self, sites):
        return [Signal(1, "layer_input")]

    def scores(self, signal, state, pool):
        rows, width = state.shape[:2]
        lowest = torch.arange(rows) % 4
        scores = torch.ones(rows, 4).scatter_(1, lowest[:, None], 0.0)
        if pool is None:
            scores = scores[:, None].expand(rows, width, 4)
        return {(layer, "head"): scores for layer in range(1, 4)}


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_rows_of_a_batch_lose_the_heads_that_their_own_scores_rank_last(lm, batch, dense, decided_at):
    policy = SparsityPolicy(0.25, kinds=("head",))
    with sparse(lm.model, Rigged(), policy, decided_at) as run:
        masked = run.logits(batch)
    for head in range(4):
        copy = lm.model
        for layer in range(1, 4):
            copy = without(copy, layer, "head", head)
        expected = dense(lm._replace(model=copy), batch)
        assert torch.equal(masked[head::4], expected[head::4])


# What stands in for a dropped unit


@torch.no_grad()
def replaced_by_hand(lm, batch, means, plan):
    """Logits of a model whose projections read the mean where the plan, bool [B, T, U], drops the unit."""
    handles = []
    for (layer, kind), keep in plan.items():

        def replace(module, args, keep=keep, mean=means[layer, kind]):
            x = args[0].clone()
            units = x.view(*batch.ids.shape, *mean.shape)
            for row, position, unit in (~keep).nonzero().tolist():
                units[row, position, unit] = mean[unit]
            return (x,)

        handles.append(reader(lm.model, layer, kind).register_forward_pre_hook(replace))
    logits = lm.model(input_ids=batch.ids, attention_mask=batch.real().long(), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("decided_at", ["token", "prompt", "fixed"])
def test_dropped_units_say_their_means(lm, make_net, batch, decided_at):
    """Decided per token, per row, and once for all; the achieved share is what it is without."""
    means = drawn_means(lm)
    scorer = Predicted(make_net(lm, [1, 3]), "scores")
    if decided_at == "fixed":
        scorer, decided_at = Fixed(random_scores(find_sites(lm.model), 0)), "token"
    with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at, stand_in=means) as run:
        filled = run.logits(batch)
        plan = {}
        for unit, keep in run.plan.items():
            wide = keep[:, None] if keep.dim() == 2 else keep
            plan[unit] = wide.expand(*batch.ids.shape, keep.shape[-1])
    assert len(plan) == 6
    assert torch.equal(filled, replaced_by_hand(lm, batch, means, plan))
    assert run.achieved("head") == run.achieved("neuron") == 0.375
    with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at) as run:
        assert not torch.equal(run.logits(batch), filled)


def test_means_of_zero_are_what_happens_without(lm, make_net, batch):
    scorer = Predicted(make_net(lm, [1]), "scores")
    zeros = {unit: torch.zeros_like(mean) for unit, mean in drawn_means(lm).items()}
    with sparse(lm.model, scorer, SparsityPolicy(0.5), stand_in=zeros) as run:
        filled = run.logits(batch)
    with sparse(lm.model, scorer, SparsityPolicy(0.5)) as run:
        assert torch.equal(run.logits(batch), filled)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_what_a_gathered_executor_would_add_up_is_what_the_filled_units_give(lm64, batch, kind):
    """W m, known beforehand, and of each kept unit the columns of W times its deviation."""
    means, module = drawn_means(lm64), reader(lm64.model, 2, kind)
    given, inputs = {}, {}
    handles = [
        module.register_forward_pre_hook(lambda module, args: inputs.update(x=args[0])),
        module.register_forward_hook(lambda module, args, y: given.update(y=y)),
    ]
    keep = torch.rand(means[2, kind].shape[0], generator=torch.Generator().manual_seed(0)) < 0.5
    with sparse(lm64.model, Fixed({}), DENSE, stand_in=means) as run:
        run.logits(batch)
        dense_input = inputs["x"]
        run.planner.plan = {(2, kind): keep}
        run.logits(batch)
    for handle in handles:
        handle.remove()
    mean = means[2, kind].double()
    columns = keep.repeat_interleave(mean.shape[1])
    constant = F.linear(mean.flatten(), module.weight, module.bias)
    kept = (dense_input - mean.flatten())[..., columns] @ module.weight[:, columns].T
    torch.testing.assert_close(constant + kept, given["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lack", ["nothing", "a layer", "a shape"])
def test_means_that_do_not_fit_the_model_are_refused(lm, make_net, lack, hooks_on):
    scorer, means = Predicted(make_net(lm, [1]), "scores"), drawn_means(lm)
    if lack == "nothing":
        means = scorer.means
        message = r"\(4, 8\) for the heads of layer 1, and has nothing there"
    elif lack == "a layer":
        del means[2, "neuron"]
        message = r"\(64, 1\) for the neurons of layer 2, and has nothing there"
    else:
        means[3, "head"] = means[3, "head"].T
        message = r"\(4, 8\) for the heads of layer 3, and has values of shape \(8, 4\)"
    with pytest.raises(UserError, match=message), sparse(lm.model, scorer, level=0.5, stand_in=means):
        pass
    assert hooks_on(lm.model) == 0
    with sparse(lm.model, scorer, level=0, stand_in=means):
        pass
