"""Blocks: a layer's attention or FFN that a token skips, and the routers that say which."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from families import FAMILIES, tiny

from shadow.artifacts import learnt_numbers
from shadow.data.batches import collate, logits_of
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.fit import slot_budgets
from shadow.fit.routers import BlockRouter, Gated
from shadow.fit.stand_ins import divergence, loader
from shadow.fit.thresholds import learn
from shadow.front import sparse
from shadow.jobs import checks, ingredients, keys, loading, missing
from shadow.models.kinds import find_sites, weights_of
from shadow.models.layouts import find_layers
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, Zero
from shadow.scorers.fixed import Fixed
from shadow.scorers.routers import Routers
from shadow.signals import Signal

ALL = SparsityPolicy(0.5, "threshold", dense_layers=[], kinds=["block"])
JOB = (
    *("model=tiny-llama", "predictor=ftp", "sparsity=threshold", "data.windows=12", "data.tokens=12"),
    *("predictor.windows=8", "predictor.epochs=1", "predictor.batch_size=4", "callbacks.progress=null"),
    *("+trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"),
)


class Chosen:
    """Says of every token what was chosen for it. runs: bool [B, T] of each block."""

    kinds = frozenset({"block"})

    def __init__(self, runs):
        self.runs = runs

    def signals(self, sites):
        return [Signal(layer, "layer_input") for layer in dict.fromkeys(site.layer for site in sites)]

    def scores(self, signal, x, pool):
        return {key: runs[..., None].float() for key, runs in self.runs.items() if key[0] == signal.layer}


class Fits:
    """Ingredients of a router alone, which is fitted on these windows."""

    seed = 0

    def __init__(self, windows):
        self.windows = windows

    def fitted(self, module, net, schedule):
        self.module = module
        settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_epochs=schedule.epochs, accelerator="cpu", log_every_n_steps=1, **settings)
        trainer.fit(module, loader(self.windows, schedule.batch_size, 0))


def cuts(runs, at=0.5):
    return replace(ALL, thresholds=dict.fromkeys(runs, at))


def chosen(model, batch, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        site.key: torch.rand(batch.ids.shape, generator=draw) > 0.4 for site in find_sites(model, ["block"])
    }


@pytest.fixture(scope="module")
def small(examples):
    return collate(examples([9, 5, 12]))


def router_of(model, windows, level=0.4, epochs=1, lr=0.01):
    have = Fits(windows)
    routers = BlockRouter(level, [0], 8, len(windows), epochs, 4, lr).build(model, have)
    return routers, have.module.gated


@pytest.mark.parametrize(
    "family",
    ["opt-350m", "llama", "gemma2", "gemma3", "phi3", "pythia", "falcon-rw", "falcon-40b", "mixtral"],
)
def test_a_token_that_skips_a_block_is_given_nothing_by_its_module(family, small):
    """By hand: what the attention module gives back, and the FFN's, is 0 at the tokens that skip it."""
    model, by_hand = tiny(family), tiny(family)
    for one in (model, by_hand):
        draw = torch.Generator().manual_seed(1)
        for name, bias in one.named_parameters():
            if name.endswith("bias"):  # of random models they are 0
                bias.data += 0.1 * torch.randn(bias.shape, generator=draw)
    runs, where = chosen(model, small), FAMILIES[family]
    opt = family.startswith("opt")  # it has no module around its FFN
    paths = {
        "attention": where.head.rpartition(".")[0],
        "ffn": where.neuron if opt else where.neuron.rpartition(".")[0],
    }

    def without(stays):
        def hook(module, args, output):
            first = output[0] if isinstance(output, tuple) else output
            first = first * stays.view(*first.shape[:-1], 1)
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return hook

    with ExitStack() as stack:
        for (layer, slot), stays in runs.items():
            module = find_layers(by_hand)[layer].get_submodule(paths[slot])
            stack.callback(module.register_forward_hook(without(stays)).remove)
        expected = logits_of(by_hand, small)
    with sparse(model, Chosen(runs), cuts(runs)) as run:
        found = run.logits(small)
    torch.testing.assert_close(found[small.real()], expected[small.real()], rtol=1e-5, atol=1e-6)
    gone = sum(int((~stays & small.real()).sum()) for stays in runs.values())
    assert run.achieved("block") == pytest.approx(gone / len(runs) / int(small.real().sum()))


@pytest.mark.parametrize("family", ["opt-350m", "llama", "phi3", "qwen3_moe"])
def test_an_absent_block_leaves_its_own_weights_unread(family, small):
    """Of one FFN all but what chooses experts, of one attention all but keys and values."""
    model = tiny(family)
    config = model.config
    heads = getattr(config, "head_dim", None) or 8
    queries = 2 * config.hidden_size * config.num_attention_heads * heads
    ffn = {"opt-350m": 2, "qwen3_moe": 3 * config.hidden_size * 12 * 2}.get(family, 3)
    ffn = ffn if ffn > 3 else ffn * config.hidden_size * 48
    total = weights_of(model).layers
    for slot, cost in (("attention", queries), ("ffn", ffn)):
        runs = {
            site.key: torch.full(small.ids.shape, site.key != (1, slot))
            for site in find_sites(model, ["block"])
        }
        with sparse(model, Chosen(runs), cuts(runs)) as run:
            run.logits(small)
        assert run.bytes()["skipped_of_layers"] == pytest.approx(cost / total)


def test_one_ranking_of_all_layers_skips_the_same_blocks_for_every_token(tiny_llama, small):
    model = tiny_llama.model
    scores = {site.key: torch.tensor([float(site.layer)]) for site in find_sites(model, ["block"])}
    with sparse(model, Fixed(scores), replace(ALL, scope="global")) as run:
        run.logits(small)
    assert {key for key, keep in run.plan.items() if not keep} == {
        (layer, slot) for layer in (0, 1) for slot in ("attention", "ffn")
    }


def test_a_learnt_stand_in_speaks_for_a_skipped_block(tiny_llama, small):
    """Of nothing, what is left is its addend."""
    model = tiny_llama.model
    runs = {
        site.key: torch.full(small.ids.shape, site.key != (2, "ffn")) for site in find_sites(model, ["block"])
    }
    stand_in = Learnt([site for site in find_sites(model, ["block"]) if site.key == (2, "ffn")], Zero())
    stand_in.addends["2/ffn/0"].data.fill_(0.25)
    seen = []
    policy = replace(cuts(runs), dense_layers=[0, 1, 3], slots=["ffn"])
    with sparse(model, Chosen(runs), policy, stand_in=stand_in) as run, ExitStack() as stack:
        mlp = find_layers(model)[2].mlp
        stack.callback(mlp.register_forward_hook(lambda m, args, y: seen.append(y)).remove)
        run.logits(small)
    assert bool((seen[0] == 0.25).all())


def test_gates_shut_for_the_level_and_open_for_what_is_said_most():
    said, real = torch.randn(2, 10, 1, requires_grad=True), torch.ones(2, 10, dtype=torch.bool)
    real[1, 6:] = False
    gate = Gated(None, [], 0.25).gate(said, real)
    assert int((gate[real] == 0).sum()) == 4
    assert gate.detach().unique().tolist() == [0, 1]
    assert said[real][gate[real] == 0].max() < said[real][gate[real] == 1].min()
    gate.sum().backward()
    assert bool((said.grad[real] > 0).all())


def test_a_fit_brings_the_model_that_skips_nearer_to_the_dense_one(tiny_llama, examples):
    model, windows = tiny_llama.model, examples([12] * 8)
    batch, far = collate(windows), {}
    for epochs, lr in ((1, 1e-9), (6, 0.03)):
        routers, gated = router_of(model, windows, epochs=epochs, lr=lr)
        with torch.no_grad():
            far[epochs] = divergence(logits_of(model, batch), gated.logits(routers, batch), batch.real())
    assert far[6] < 0.9 * far[1]
    assert all(weight.grad is None for weight in model.parameters())


def test_thresholds_and_budgets_of_blocks_take_the_level(tiny_llama, examples):
    model, batches = tiny_llama.model, [collate(examples([12] * 8))]
    routers, _ = router_of(model, examples([12] * 4))
    policy = replace(ALL, level=0.4, dense_layers=[0])
    given = model, routers, policy, "token", Zero(), batches
    levels = slot_budgets.learn(*given, [0.5, 1.5]).levels
    weights = {site.key: site.cost for site in find_sites(model, ["block"]) if site.layer}
    taken = sum(level * weights[key] for key, level in levels.items())
    assert taken == pytest.approx(0.4 * sum(weights.values()), rel=1e-3)
    thresholds = learn(*given)
    with sparse(model, routers, replace(policy, thresholds=thresholds)) as run:
        run.logits(batches[0])
    assert run.achieved("block") == pytest.approx(0.4 * 3 / 4, abs=0.005)
    numbers = sum(values.numel() for values in routers.parameters())
    assert run.bytes()["added"] == pytest.approx(numbers / weights_of(model).all)
    with sparse(model, routers, level=0.0) as run:
        assert torch.equal(run.logits(batches[0]), logits_of(model, batches[0]))


def test_a_job_fits_routers_once_and_finds_them_again(compose, artifacts):
    cfg, other = compose("evaluate", *JOB), compose("evaluate", *JOB, "predictor.lr=0.01")
    with pytest.raises(UserError, match=r"there are no routers .*train\.py .*predictor=ftp"):
        missing.check_made(cfg)
    lm = loading.load_lm(cfg)
    first = ingredients.get_scorer(cfg, lm, [])
    folder = keys.router_folder(cfg)
    made = (folder / learnt_numbers.CONFIG).stat().st_mtime_ns
    again = ingredients.get_scorer(cfg, lm, [])
    assert isinstance(first, Routers)
    assert (folder / learnt_numbers.CONFIG).stat().st_mtime_ns == made
    assert all(torch.equal(first.state_dict()[name], values) for name, values in again.state_dict().items())
    assert keys.router_folder(other) != folder
    assert keys.method_settings(other) != keys.method_settings(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sparsity.scope=layer", r"one attention and one FFN, of which no share goes"),
        ("sparsity.scope=global", r"ranks over layers that predictor=ftp"),
        ("sparsity.stand_in=mean", r"a block that is skipped adds nothing to the stream"),
        ("sparsity.budgets=greedy", r"skips blocks, of which a site has one"),
        ("sparsity.kinds=[block,head]", r"a block is all of a layer's attention or FFN"),
        ("executor=gathered", r"use executor=masked to skip blocks"),
        ("predictor.level=0.0", r"share of blocks that a router learns to skip"),
        ("predictor.hidden=0", r"predictor\.hidden must be a whole number"),
    ],
)
def test_what_blocks_cannot_be_is_refused(compose, override, message):
    with pytest.raises(UserError, match=message):
        checks.check_method(compose("evaluate", *JOB, override))


def test_the_gathered_executor_refuses_blocks_by_name(tiny_llama, small):
    runs = chosen(tiny_llama.model, small)
    with (
        pytest.raises(UserError, match="use executor=masked to skip blocks"),
        sparse(tiny_llama.model, Chosen(runs), cuts(runs), executor=Gathered()),
    ):
        pass
