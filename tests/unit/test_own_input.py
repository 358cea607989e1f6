"""Scorers of neurons that read the FFN's input: what they guess, and what they read to do so."""

from contextlib import ExitStack

import pytest
import torch
from families import tiny

from shadow.data.batches import collate, logits_of
from shadow.errors import UserError
from shadow.front import sparse
from shadow.jobs import checks
from shadow.models.kinds import find_sites, weights_of
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.own_input import SignBits, TruncatedGate, TruncatedNeurons
from shadow.signals import Signal

FULL = 32  # the width of the tiny models


@pytest.fixture(scope="module")
def small(examples):
    return collate(examples([9, 5, 12]))


def at(layer):
    return Signal(layer, "site", "gate_up")


def noted(model, projection, batch):
    """-> what a projection reads and writes, [B, T, N]."""
    found = {}

    def hook(module, args, y):
        found["x"], found["y"] = args[0].view(*batch.ids.shape, -1), y.view(*batch.ids.shape, -1)

    with ExitStack() as stack:
        stack.callback(projection.register_forward_hook(hook).remove)
        logits_of(model, batch)
    return found["x"], found["y"]


def test_signs_are_counted_one_by_one(small):
    model = tiny("opt-350m")
    fc1 = model.model.decoder.layers[1].fc1
    x, _ = noted(model, fc1, small)
    found = SignBits().build(model, None).scores(at(1), x, None)[1, "neuron"]
    for neuron in range(0, 48, 7):
        products = x[0, 3] * fc1.weight[neuron]
        assert float(found[0, 3, neuron]) == int((products > 0).sum()) - int((products < 0).sum())


@pytest.mark.parametrize("family", ["opt-350m", "llama", "gemma2", "phi3", "pythia", "falcon-7b"])
def test_a_copy_of_full_rank_is_the_gate_itself(family, small):
    model = tiny(family)
    site = next(site for site in find_sites(model, ["neuron"]) if site.layer == 2)
    x, y = noted(model, site.writers[0], small)
    found = TruncatedGate(FULL).build(model, None).scores(at(2), x, None)[2, "neuron"]
    gate = y[..., :48]
    acts = {"opt": lambda g: g, "llama": torch.nn.functional.silu, "phi3": torch.nn.functional.silu}
    act = acts.get(family.split("-")[0])
    if act is None:  # GELU, of two kinds
        tanh = family == "gemma2"
        act = lambda g: torch.nn.functional.gelu(g, approximate="tanh" if tanh else "none")  # noqa: E731
    expected = act(gate) if family.startswith("opt") else act(gate).abs()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_copies_of_full_rank_are_what_down_reads(family, small):
    model = tiny(family)
    site = next(site for site in find_sites(model, ["neuron"]) if site.layer == 1)
    x, _ = noted(model, site.writers[0], small)
    neurons, _ = noted(model, site.reader, small)
    found = TruncatedNeurons(FULL).build(model, None).scores(at(1), x, None)[1, "neuron"]
    torch.testing.assert_close(found, neurons.abs(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "family", "numbers"),
    [
        (SignBits(), "opt-350m", 48 * 32 / 16),
        (TruncatedGate(8), "llama", 8 * (48 + 32)),
        (TruncatedNeurons(8), "phi3", 2 * 8 * (48 + 32)),
    ],
    ids=["sparse_infer", "svdp", "d_countdown"],
)
def test_they_read_their_copies_and_no_row_of_what_goes(recipe, family, numbers, small):
    model = tiny(family)
    policy = SparsityPolicy(0.5, dense_layers=[0])
    with sparse(model, recipe.build(model, None), policy) as run:
        run.logits(small)
    ffn = sum(site.units * site.cost for site in find_sites(model, ["neuron"]) if site.layer > 0)
    layers = weights_of(model).layers
    assert run.bytes()["skipped_of_layers"] == pytest.approx((ffn / 2 - 2 * numbers) / layers)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=tiny-llama", "predictor=sparse_infer"], r"a ReLU silences, .*activation is silu: use"),
        (["model=tiny-opt", "predictor=d_countdown"], r"neurons of opt have no gate: use predictor="),
        (
            ["model=tiny-llama", "predictor=svdp", "predictor.rank=0"],
            r"predictor\.rank must be a whole number",
        ),
    ],
    ids=str,
)
def test_models_and_ranks_that_do_not_fit_are_refused(compose, overrides, message):
    with pytest.raises(UserError, match=message):
        checks.check_method(compose("evaluate", *overrides))
