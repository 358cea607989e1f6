"""Budgets by spectra, angles and divergences of slots, against their formulas written out."""

import math

import pytest
import torch
from families import tiny

from shadow.data.batches import collate
from shadow.fit import slot_budgets
from shadow.fit.given_budgets import by_angle, by_tails, scaled, tail_exponent
from shadow.front import sparse
from shadow.jobs import checks, ingredients, loading, policies
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.gate import GateMagnitude
from shadow.scorers.inputs import InputMagnitude

CHANNELS = SparsityPolicy(0.5, kinds=("channel",))
PROBES = (0.5, 0.75, 1.0, 1.25, 1.5)
NEURONS = SparsityPolicy(0.5, kinds=("neuron",))


def total(model, kind, levels):
    sites = {site.key: site.units * site.cost for site in find_sites(model, [kind])}
    return sum(sites[key] * level for key, level in levels.items()) / sum(sites[key] for key in levels)


def test_a_tail_is_hills_estimate_and_a_heavier_one_has_a_smaller_exponent():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 16, generator=draw)
    values = sorted((torch.linalg.svdvals(weight).double() ** 2).tolist())
    by_hand = 1 + 8 / sum(math.log(value / values[7]) for value in values[8:])
    assert tail_exponent(weight) == pytest.approx(by_hand, rel=1e-3)
    heavy = weight * torch.logspace(0, 2, 16)
    assert tail_exponent(heavy) < tail_exponent(weight)


def test_of_weights_with_a_heavier_tail_less_goes_at_the_same_total():
    model = tiny("llama")
    heavy = model.model.layers[2].mlp.down_proj.weight
    heavy.data *= torch.logspace(0, 2, heavy.shape[1])
    levels = by_tails(model, InputMagnitude(), CHANNELS)
    assert levels.keys() == {(n, slot) for n in (1, 2) for slot in ("qkv", "o", "gate_up", "down")}
    assert min(levels, key=levels.__getitem__) == (2, "down")
    assert total(model, "channel", levels) == pytest.approx(0.5)
    assert max(levels.values()) / min(levels.values()) == pytest.approx(1.3 / 0.7, rel=1e-3)


def test_a_layer_that_turns_the_stream_further_keeps_more(examples):
    model, batches = tiny("llama"), [collate(examples([12, 9])), collate(examples([7]))]
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    levels = by_angle(model, GateMagnitude(), NEURONS, batches)
    angles = torch.zeros(3)
    for batch in batches:
        states = model(batch.ids, attention_mask=batch.real().long(), output_hidden_states=True)
        last = {}
        hook = model.model.layers[2].register_forward_hook(lambda m, a, y, last=last: last.update(y=y))
        model(batch.ids, attention_mask=batch.real().long())
        hook.remove()
        after = last["y"] if isinstance(last["y"], torch.Tensor) else last["y"][0]
        streams = [*states.hidden_states[:3], after]  # the last of the model's own is normed
        for layer in range(3):
            for row, column in batch.real().nonzero().tolist():
                one, other = streams[layer][row, column], streams[layer + 1][row, column]
                angles[layer] += torch.dot(one / one.norm(), other / other.norm()).arccos() / math.pi
    angles /= 28
    kept = [1 / (1 + math.exp(-26.2144 * float(angle - angles.mean()))) for angle in angles]
    assert levels[1, "neuron"] > levels[2, "neuron"]
    ratio = (1 - levels[1, "neuron"]) / (1 - levels[2, "neuron"])
    assert ratio == pytest.approx(max(kept[1] / kept[2], 0.05 / 0.95), rel=0.02)
    assert total(model, "neuron", levels) == pytest.approx(0.5)


def test_shares_stay_in_their_bounds_at_the_total():
    found = scaled({"a": 0.1, "b": 1.0, "c": 4.0}, {"a": 1, "b": 2, "c": 1}, 0.5, 0.0, 0.95)
    assert found["c"] == 0.95
    assert found["b"] / found["a"] == pytest.approx(10)
    assert found["a"] + 2 * found["b"] + found["c"] == pytest.approx(2)


@pytest.mark.parametrize("budgets", ["tails", "angular", "divergence"])
def test_a_job_finds_them_for_thresholds_too(compose, budgets):
    job = ("model=tiny-llama", "predictor=teal", "sparsity=threshold", "data.windows=6", "data.tokens=12")
    cfg = compose("evaluate", *job, "make_missing=true", f"sparsity.budgets={budgets}")
    checks.check_method(cfg)
    lm = loading.load_lm(cfg)
    policy = policies.get_policy(cfg, lm, ingredients.get_scorer(cfg, lm), Zero())
    assert policy.thresholds.keys() == policy.levels.keys()
    assert total(lm.model, "channel", policy.levels) == pytest.approx(0.5, abs=1e-3)


def test_slots_cost_the_divergence_of_pruning_them_in_all_layers_and_the_weights_are_the_level(examples):
    model, batches = tiny("llama"), [collate(examples([12, 9])), collate(examples([10, 12, 7]))]
    found = slot_budgets.learn(model, InputMagnitude(), CHANNELS, "token", Zero(), batches, PROBES)
    assert total(model, "channel", found.levels) == pytest.approx(0.5, abs=1e-3)
    by_slot = {slot: {found.levels[layer, slot] for layer in (1, 2)} for _, slot in found.levels}
    assert all(len(levels) == 1 for levels in by_slot.values())
    assert found.passes == 1 + 4 * 5

    far = []
    for batch in batches:
        dense = model(batch.ids, attention_mask=batch.real().long()).logits.double().log_softmax(-1)
        with sparse(model, InputMagnitude(), SparsityPolicy(0.5, kinds=("channel",), slots=("down",))) as run:
            pruned = run.logits(batch).double().log_softmax(-1)
        far += (dense.exp() * (dense - pruned)).sum(-1)[batch.real()].tolist()
    (cost,) = [cost for cost in found.costs[0, "down"] if cost.removed == 48 * 32]  # half of both layers'
    assert cost.loss == pytest.approx(sum(far) / len(far), rel=1e-4)


def test_what_nothing_reads_goes_first(examples):
    model, batches = tiny("llama"), [collate(examples([12, 9, 10, 12]))]
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    found = slot_budgets.learn(model, InputMagnitude(), CHANNELS, "token", Zero(), batches, PROBES)
    assert max(cost.loss for cost in found.costs[0, "o"]) == pytest.approx(0, abs=1e-6)
    assert found.levels[1, "o"] >= 0.5
