"""Static pruning of heads and neurons, against its formulas written out and a model that is really pruned."""

from contextlib import ExitStack

import pytest
import torch
from families import FAMILIES, tiny
from having import Have

from shadow.data.batches import collate, logits_of
from shadow.front import sparse
from shadow.models.kinds import find_sites, weights_of
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.statics import ActivationNorm, Fluctuation, Magnitude, WandaSp

WHOLE = SparsityPolicy(0.5, dense_layers=[], kinds=("head", "neuron"))
RECIPES = {"magnitude": Magnitude(), "wanda_sp": WandaSp(), "flap": Fluctuation(), "cfsp": ActivationNorm()}


@pytest.fixture(scope="module")
def sample(examples):
    return [collate(examples([12, 9, 10], seed=1)), collate(examples([7, 12], seed=2))]


@pytest.fixture(scope="module")
def seen(sample):
    """A Llama of 4 heads of 8 and 48 neurons, and what o and down read at all real tokens of each layer."""
    model, parts = tiny("llama"), {}
    with ExitStack() as stack:
        for number, layer in enumerate(model.model.layers):
            for kind, projection in (("head", layer.self_attn.o_proj), ("neuron", layer.mlp.down_proj)):
                found = parts.setdefault((number, kind), [])
                hook = projection.register_forward_pre_hook(
                    lambda m, args, found=found: found.append(args[0])
                )
                stack.callback(hook.remove)
        for batch in sample:
            logits_of(model, batch)
    real = torch.cat([batch.real().flatten() for batch in sample])
    return model, {key: torch.cat([x.flatten(0, 1) for x in found])[real] for key, found in parts.items()}


def standard(scores):
    scores = torch.tensor(scores)
    return (scores - scores.mean()) / scores.std()


def weights(model, number):
    layer = model.model.layers[number]
    return layer.self_attn.o_proj.weight, layer.mlp


def test_magnitudes_are_products_of_norms(seen):
    model, _ = seen
    found = Magnitude().build(model, Have([])).fixed
    o, mlp = weights(model, 1)
    gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    expected = [float(gate[n].norm() * up[n].norm() * down[:, n].norm()) for n in range(48)]
    torch.testing.assert_close(found[1, "neuron"], standard(expected))
    heads = [float(o[:, 8 * n : 8 * n + 8].norm()) for n in range(4)]
    torch.testing.assert_close(found[1, "head"], standard(heads))


def test_wanda_sp_is_the_mean_weight_times_the_norm_of_what_it_reads(seen, sample):
    model, inputs = seen
    found = WandaSp().build(model, Have(sample)).fixed
    o, mlp = weights(model, 2)
    expected = [
        float(mlp.down_proj.weight[:, n].abs().mean() * inputs[2, "neuron"][:, n].norm()) for n in range(48)
    ]
    torch.testing.assert_close(found[2, "neuron"], standard(expected))
    columns = [float(o[:, n].abs().mean() * inputs[2, "head"][:, n].norm()) for n in range(32)]
    torch.testing.assert_close(found[2, "head"], standard([sum(columns[n : n + 8]) for n in range(0, 32, 8)]))


def test_cfsp_is_the_norm_of_activations(seen, sample):
    model, inputs = seen
    found = ActivationNorm().build(model, Have(sample)).fixed
    assert found.keys() == {(layer, "neuron") for layer in range(3)}
    torch.testing.assert_close(found[0, "neuron"], standard(inputs[0, "neuron"].norm(dim=0).tolist()))


def test_flap_is_the_pruned_model_with_means_in_its_biases(seen, sample, examples):
    model, inputs = seen
    batch, scorer = collate(examples([9, 5, 12])), Fluctuation().build(model, Have(sample))
    by_hand = tiny("llama")
    for number in range(3):
        o, mlp = weights(model, number)
        for kind, weight, width in (("head", o, 8), ("neuron", mlp.down_proj.weight, 1)):
            x = inputs[number, kind].double()
            columns = (x.var(0, correction=0) * weight.double().square().sum(0)).view(-1, width).sum(1)
            torch.testing.assert_close(scorer.fixed[number, kind], standard(columns.float().tolist()))
            gone = columns.argsort()[: len(columns) // 2]
            dropped = torch.zeros(len(columns), dtype=torch.bool)
            dropped[gone] = True
            dropped = dropped.repeat_interleave(width)
            layer = by_hand.model.layers[number]
            projection = layer.self_attn.o_proj if kind == "head" else layer.mlp.down_proj
            bias = projection.weight[:, dropped] @ x.mean(0).float()[dropped]
            projection.weight.data[:, dropped] = 0
            projection.bias = torch.nn.Parameter(bias)
    with sparse(model, scorer, WHOLE) as run:
        found = run.logits(batch)
    torch.testing.assert_close(
        found[batch.real()], logits_of(by_hand, batch)[batch.real()], rtol=1e-4, atol=1e-5
    )


FEW = ("opt-350m", "gemma3_text", "phi3", "falcon-40b", "mixtral")
CASES = [(name, family) for name in RECIPES for family in FEW if (name, family) != ("flap", "mixtral")]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_they_read_what_stays_of_heads_and_neurons(name, family, sample):
    """Of q and o as many heads, of the FFN as many neurons; keys and values whole; nothing is added."""
    assert family in FAMILIES
    model, recipe = tiny(family), RECIPES[name]
    policy = SparsityPolicy(0.5, dense_layers=[])
    with sparse(model, recipe.build(model, Have(sample)), policy) as run:
        run.logits(sample[0])
    sites = [site for site in find_sites(model) if site.kind in recipe.kinds]
    expected = sum(site.active * site.cost for site in sites) / 2 / weights_of(model).layers
    assert run.bytes()["skipped_of_layers"] == pytest.approx(expected)
    assert run.bytes()["added"] == 0


def test_ranking_over_layers_takes_more_of_the_layer_that_varies_less(sample):
    model = tiny("llama")
    scorer = WandaSp().build(model, Have(sample))
    policy = SparsityPolicy(0.5, "global", dense_layers=[])
    plan = policy.plan(scorer.fixed, {site.key: site for site in find_sites(model)})
    assert sum(int(plan[layer, "neuron"].sum()) for layer in range(3)) == 72
    assert len({int(plan[layer, "neuron"].sum()) for layer in range(3)}) > 1
