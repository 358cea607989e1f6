"""TEAL's greedy budgets: each step is that of a slow search by hand, and the level is one of weights."""

import json
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from families import tiny

from shadow.data.batches import collate, logits_of
from shadow.errors import UserError
from shadow.fit import block_budgets
from shadow.fit.block_budgets import extend, levels_along
from shadow.front import sparse
from shadow.jobs import checks, ingredients, keys, loading, policies
from shadow.models.kinds import find_sites, weights_of
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.inputs import InputMagnitude

HALF = SparsityPolicy(0.5, kinds=("channel",), dense_layers=(0,))
JOB = ("model=tiny-llama", "predictor=teal", "sparsity=threshold", "sparsity.budgets=block", "data.windows=6")
SMALL = (*JOB, "data.tokens=12", "sparsity.block.windows=3", "sparsity.block.step=0.1", "make_missing=true")


def by_hand(model, layer, batch, path):
    """How far layer `layer` is from its dense output where these slots have lost their steps of a tenth."""
    module, sites = model.model.layers[layer], find_sites(model, ["channel"])
    here = {site.slot: site for site in sites if site.layer == layer}
    total = sum(site.units * site.cost for site in here.values())
    calls, inputs = {}, {}

    def note(module, args, kwargs, output):
        calls["args"], calls["kwargs"] = args, kwargs
        calls["dense"] = output[0] if isinstance(output, tuple) else output

    late = torch.zeros(batch.ids.shape, dtype=torch.bool)
    for row, length in enumerate(batch.lengths.tolist()):
        late[row, length // 2 : length] = True
    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        for slot, site in here.items():
            read = site.readers[0].register_forward_pre_hook(
                lambda module, args, slot=slot: inputs.__setitem__(slot, args[0].view(*late.shape, -1)[late])
            )
            stack.callback(read.remove)
        logits_of(model, batch)
    with ExitStack() as stack:
        for slot in set(path):
            share = path.count(slot) * 0.1 * total / (here[slot].units * here[slot].cost)
            values = sorted(inputs[slot].abs().flatten().tolist())
            cut = values[round(share * len(values)) - 1]
            for reader in here[slot].readers:
                dropped = reader.register_forward_pre_hook(
                    lambda module, args, cut=cut: (args[0] * (args[0].abs() > cut),)
                )
                stack.callback(dropped.remove)
        found = module(*calls["args"], **calls["kwargs"])
    found = found[0] if isinstance(found, tuple) else found
    return float((found - calls["dense"])[late].norm(dim=-1).mean())


@torch.no_grad()
def test_each_step_is_the_one_that_changes_the_layer_least(examples):
    model, batch = tiny("llama"), collate(examples([12, 9, 10]))
    paths = extend(model, InputMagnitude(), HALF, Zero(), [batch], 0.1, {})
    assert paths.keys() == {1, 2}
    for layer, path in paths.items():
        assert len(path) == 5
        for step in range(5):
            slots = ("qkv", "o", "gate_up", "down")
            costs = {slot: by_hand(model, layer, batch, [*path[:step], slot]) for slot in slots}
            assert costs[path[step]] == pytest.approx(min(costs.values()), rel=1e-4)


@pytest.mark.parametrize("family", ["opt-350m", "gemma2", "phi3", "falcon-40b"])
@pytest.mark.parametrize("level", [0.3, 0.45])
def test_the_weights_that_go_are_the_level_of_each_layer_and_a_longer_path_begins_with_the_shorter(
    family, level, examples, hooks_on
):
    model, batches = tiny(family), [collate(examples([12, 9])), collate(examples([7]))]
    policy = replace(HALF, level=level)
    short = extend(model, InputMagnitude(), replace(HALF, level=0.2), Zero(), batches, 0.1, {})
    paths = extend(model, InputMagnitude(), policy, Zero(), batches, 0.1, short)
    assert paths == extend(model, InputMagnitude(), policy, Zero(), batches, 0.1, {})
    assert all(path[:2] == short[layer] for layer, path in paths.items())
    assert hooks_on(model) == 0
    levels = levels_along(model, InputMagnitude(), policy, 0.1, paths)
    sites = {site.key: site for site in find_sites(model, ["channel"])}
    for layer in (1, 2):
        here = [site for site in sites.values() if site.layer == layer]
        gone = sum(levels[site.key] * site.units * site.cost for site in here)
        assert gone == pytest.approx(level * sum(site.units * site.cost for site in here))
    with sparse(model, InputMagnitude(), replace(policy, levels=levels)) as run:
        run.logits(batches[0])
    pruned = sum(site.units * site.cost for site in sites.values() if site.layer in (1, 2))
    asked = level * pruned / weights_of(model).layers
    assert run.bytes()["skipped_of_layers"] == pytest.approx(asked, abs=0.03)  # whole units of 32 go


def test_a_job_learns_paths_once_for_all_levels_and_thresholds_for_each(compose, monkeypatch):
    cfg = compose("evaluate", *SMALL, "sparsity.level=0.5")
    checks.check_method(cfg)
    lm = loading.load_lm(cfg)
    scorer = ingredients.get_scorer(cfg, lm)
    first = policies.get_policy(cfg, lm, scorer, Zero())
    pruned = {key for key, level in first.levels.items() if level > 0}
    assert first.thresholds.keys() == pruned
    assert len({round(level, 6) for level in first.levels.values()}) > 1
    kept = json.loads(keys.paths_file(cfg).read_text())
    assert {len(path) for path in kept["paths"].values()} == {5}
    monkeypatch.setattr(block_budgets, "extend", None)
    assert policies.get_policy(cfg, lm, scorer, Zero()) == first
    for lower in (
        compose("evaluate", *SMALL, "sparsity.level=0.3"),
        compose("evaluate", *SMALL, "sparsity.level=0.3", "sparsity.scope=layer"),
    ):
        levels = policies.get_policy(lower, lm, scorer, Zero()).levels
        assert sum(levels.values()) < sum(first.levels.values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sparsity.level=0.97"], r"takes at most 0\.95 of a site, and sparsity\.level must be no more"),
        (
            ["sparsity.decided_at=prompt"],
            r"at each token: predictor=teal reads \['site'\], decided at prompt",
        ),
        (["sparsity.slot_probes=[0.5,1.0]"], r"sparsity\.slot_probes must be parts .* one of them above 1"),
        (["sparsity.slot_probes=null"], r"sparsity\.slot_probes must be parts .* got None"),
        (["sparsity.block.windows=0"], r"sparsity\.block\.windows must be a whole number of at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_out_is_refused(compose, overrides, message):
    with pytest.raises(UserError, match=message):
        checks.check_method(compose("evaluate", *SMALL, *overrides))
