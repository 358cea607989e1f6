"""Whoever meets a model that lies elsewhere brings tensors there: a walk on torch's `meta` device."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from families import tiny
from having import Have
from one_device import OneDevice

from shadow.criteria import CONTEXTUAL, STATISTICS
from shadow.criteria.one_pass import score, token_losses
from shadow.data.batches import Batch, collate
from shadow.data.calibration import Numbered
from shadow.data.texts import Question
from shadow.fit import block_budgets, budgets, given_budgets, slot_budgets, thresholds
from shadow.fit.module import Descent, PredictorModule
from shadow.fit.objectives import Active, Cutoff, Listwise, LogSquares, Pairwise
from shadow.fit.routers import BlockRouter, RouterModule
from shadow.fit.rows import Sample
from shadow.fit.stand_ins import StandInModule, divergence
from shadow.front import sparse
from shadow.measures.criterion_quality import criterion_quality, sample_units
from shadow.measures.divergence import Divergence
from shadow.measures.evaluation import choice_accuracy, perplexity
from shadow.measures.rank_variance import rank_variances
from shadow.measures.sparse_hf import SparseHFLM
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, Mean, Zero
from shadow.scorers.fixed import Fixed
from shadow.scorers.gate import GateMagnitude, GateTimesMeanUp, UpMagnitude
from shadow.scorers.inputs import InputMagnitude, InputNorm
from shadow.scorers.joined import Joined
from shadow.scorers.low_rank import LowRankCopy
from shadow.scorers.modes import ModeDistance
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.oracle import Oracle
from shadow.scorers.own_input import SignBits, TruncatedGate, TruncatedNeurons
from shadow.scorers.paper_nets import MinMax
from shadow.scorers.predicted import Predicted
from shadow.scorers.prompt import PromptActivation
from shadow.scorers.rank_aware import RankAware
from shadow.scorers.rotated import RotatedInput
from shadow.scorers.statics import ActivationNorm, Fluctuation, Magnitude, WandaSp
from shadow.scorers.two_step import TwoStepHead
from shadow.traces.collector import CriterionCollector, Keeping
from shadow.traces.shards import CONTEXTS, EMBEDDINGS, FEATURES, MEANS
from shadow.traces.sparse_states import PrunedStates

UNITS = {"head": 4, "neuron": 48}
HALF = SparsityPolicy(0.5)


def on_cpu(model):
    """As a predictor that was loaded: its numbers lie on the CPU."""
    return Predicted(TapNet([1, 2], 3, 32, UNITS, NetShape(4, 8, 1)).eval(), "scores")


RECIPES = {
    "teal": ("llama", InputMagnitude()),
    "teal-experts": ("qwen3_moe", InputMagnitude()),
    "wina": ("llama", InputNorm()),
    "scap": ("llama", ModeDistance(0.5, 64)),
    "r_sparse": ("llama", RankAware(0.5, 0.8)),
    "larosa": ("llama", RotatedInput()),
    "chess": ("llama", GateTimesMeanUp()),
    "chess-experts": ("qwen3_moe", GateTimesMeanUp()),
    "cats": ("llama", GateMagnitude()),
    "m_countdown": ("llama", UpMagnitude()),
    "d_countdown": ("llama", TruncatedNeurons(8)),
    "svdp": ("llama", TruncatedGate(8)),
    "sparse_infer": ("opt-350m", SignBits()),
    "magnitude": ("llama", Magnitude()),
    "cfsp": ("llama", ActivationNorm()),
    "flap": ("llama", Fluctuation()),
    "wanda_sp": ("llama", WandaSp()),
    "two_step_head": ("llama", TwoStepHead(8)),
    "joined": ("llama", Joined([InputMagnitude(), TwoStepHead(8)])),
}
SCORERS = {
    "net": (on_cpu, {}),
    "net-prompt": (on_cpu, {"decided_at": "prompt"}),
    "svd": (lambda model: LowRankCopy(model, 8, dict.fromkeys(range(3), torch.rand(4))), {}),
    "static": (lambda model: Fixed({site.key: torch.rand(site.units) for site in find_sites(model)}), {}),
    "oracle": (lambda model: Oracle("l2_norm", "answer"), {"decided_at": "prompt"}),
    "prompt_activation": (lambda model: PromptActivation("l2_norm"), {"decided_at": "prompt"}),
}


PARTS = [FEATURES, CONTEXTS, EMBEDDINGS, MEANS, *CONTEXTUAL[:2], "l2_deviation", *STATISTICS]
CRITERIA = [name for name in (*CONTEXTUAL, *STATISTICS) if name != "removal"]
OBJECTIVES = {
    "log_squares": LogSquares(0.0),
    "listwise": Listwise(0.0),
    "pairwise": Pairwise(0.0),
    "cutoff": Cutoff(0.0, [0.5]),
    "active": Active([0.5]),
    "min_max": MinMax("layer"),
}
DESCENT = Descent(0.01, 0.0, 0.0, 0.98, 0.1, "cosine")


@pytest.fixture(autouse=True)
def _moved(monkeypatch):
    """Of weights on disk accelerate takes inputs from anywhere, and a batch stays: not here."""
    monkeypatch.setattr(Batch, "for_model", lambda self, model: self.to(model.device))


@pytest.fixture(scope="module")
def small(examples):
    return collate(examples([9, 5, 12]))


def there(family):
    model = tiny(family).to("meta")
    if family == "qwen3_moe":
        model.set_experts_implementation("batched_mm")  # the other has no float32 on `meta`
    return model


def walk(model, small, scorer, policy=HALF, **others):
    with sparse(model, scorer, policy, **others) as run:
        logits = run.logits(small)
        assert logits.is_meta
        token_losses(logits.cpu(), small.labels)
        run.bytes()


def test_the_walk_finds_what_a_gpu_would(small):
    """Products and look-ups of two devices too, which `meta` itself lets pass."""
    with OneDevice(), pytest.raises(AssertionError, match=r"mm.* joins tensors of \['cpu', 'meta'\]"):
        torch.ones(2, 2) @ torch.ones(2, 2, device="meta")
    with OneDevice(), pytest.raises(AssertionError, match=r"embedding.* joins"):
        there("llama")(small.ids)


@pytest.mark.parametrize("name", RECIPES)
def test_methods_are_built_and_decide_where_the_model_lies(name, small):
    family, recipe = RECIPES[name]
    model = there(family)
    with OneDevice() as seen:
        walk(model, small, recipe.build(model, Have([small])))
    assert seen.joined > 100


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_whose_numbers_lie_on_the_cpu_bring_them(name, small):
    make, others = SCORERS[name]
    model = there("llama")
    with OneDevice():
        walk(model, small, make(model), **others)


def test_stand_ins_and_generation_bring_theirs(small):
    model = there("llama")
    means = {site.key: torch.rand(site.units, site.width) for site in find_sites(model)}
    with OneDevice():
        walk(model, small, on_cpu(model), stand_in=Mean(means))
        with sparse(model, on_cpu(model), level=0.5):
            model.generation_config.eos_token_id = None
            ids = small.ids[:1].to("meta")
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)


def test_thresholds_budgets_and_learnt_stand_ins_are_found_there(small):
    model, scorer = there("llama"), InputMagnitude()
    policy = SparsityPolicy(0.5, "threshold", kinds=("channel",))
    with OneDevice():
        thresholds.learn(model, scorer, policy, "token", Zero(), [small])
        block_budgets.extend(model, scorer, SparsityPolicy(0.2), Zero(), [small], 0.2, {})
        slot_budgets.learn(model, scorer, policy, "token", Zero(), [small], (0.5, 1.5))
        heads = SparsityPolicy(0.5, dense_layers=[0, 1], kinds=("head",))
        budgets.learn(model, on_cpu(model), heads, "token", Zero(), [small])
        given_budgets.by_tails(model, scorer, HALF)
        given_budgets.by_angle(model, scorer, HALF, [small])
        learnt = Learnt([one for one in find_sites(model, ["channel"]) if HALF.corrects(one)], Zero())
        batch = small.to("meta")
        with (
            sparse(model, scorer, HALF, stand_in=learnt) as run,
            run.planner.calling(batch.real(), batch.in_prompt()),
        ):
            said = model(**batch.arguments()).logits
        divergence(said.detach(), said, batch.real()).backward()


def test_a_store_is_collected_where_the_model_lies(small):
    """Every part of it in one batch, and the states that a pruned pass leaves; arrays come to the CPU."""
    model, numbers = there("llama"), [Numbered(0, small.to("meta"), PARTS, PARTS)]
    means = {site.key: torch.rand(site.units, site.width) for site in find_sites(model)}
    keeping = Keeping((0, 1, 2), 5, 4, "answer", "all", "float16", None, 3)
    pruned = PrunedStates(model, keeping, on_cpu(model), HALF, Zero())
    with OneDevice() as seen:
        found = CriterionCollector(model, keeping, means).predict_step(numbers[0], 0)
        pruned.predict_step(numbers[0], 0)
    assert set(found) == set(PARTS)
    assert not any(values.is_meta for arrays in found.values() for values in arrays.values())
    assert seen.joined > 100


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_net_is_fitted_where_its_rows_lie(name):
    """Its loss and what is reported of it, with norms on the CPU as they are read from the model."""
    objective = OBJECTIVES[name]
    norms = {kind: torch.rand(3, units) for kind, units in UNITS.items()}
    net = TapNet([1, 2], 3, 32, UNITS, NetShape(4, 8, 1))
    module = PredictorModule(net, dict.fromkeys(UNITS, objective), DESCENT, norms).to("meta")
    scores = {kind: torch.rand(6, 2, units, device="meta") for kind, units in UNITS.items()}
    sample = Sample(torch.rand(6, 2, 32, device="meta"), scores)
    with OneDevice() as seen:
        said, targets = net(sample.states, None), module.targets(sample)
        module.loss(said, targets).backward()
        if objective.alone:
            module.loss_by_layers(sample).backward()
        for kind in UNITS:
            static = torch.cat([net.reader(tap).static[kind] for tap in net.taps])
            module.ranked(kind, sample, said[kind], static)
    assert seen.joined > 50


def test_learnt_stand_ins_are_fitted_where_the_model_lies_and_thresholds_move(small, monkeypatch):
    model = there("llama")
    sites = [site for site in find_sites(model, ["channel"]) if HALF.corrects(site)]
    learnt = Learnt(sites, Zero())
    policy = SparsityPolicy(0.5, "threshold", kinds=("channel",), thresholds={s.key: 0.1 for s in sites})
    monkeypatch.setattr(StandInModule, "log", lambda *args, **named: None)
    with OneDevice(), sparse(model, InputMagnitude(), policy, stand_in=learnt) as run:
        module = StandInModule(run, learnt, 0.01, moves=True)
        module.training_step(small.to("meta"), 0).backward()
        module.on_train_epoch_end()
    assert all(values.grad is not None and values.grad.is_meta for values in learnt.parameters())


def test_criteria_of_a_batch_come_from_where_the_model_lies(small):
    model, found = there("llama"), set()

    def receive(name, site, seen):
        seen.window(small.to("meta").real()) if hasattr(seen, "window") else None
        found.add(name)

    means = {site.key: torch.rand(site.units, site.width) for site in find_sites(model)}
    names = [*CRITERIA, "l2_deviation"]
    with OneDevice():
        score(model, small.to("meta"), names, receive, means=means)
    assert found == set(names)


class Steps(Have):
    """Fits a net by a step on each window: a trainer would bring them."""

    seed = 0

    def fitted(self, module, net, schedule):
        for batch in self.windows:
            module.training_step(batch.to("meta"), 0).backward()
        assert all(values.grad.is_meta for values in net.parameters())


def test_routers_of_blocks_are_fitted_and_decide_where_the_model_lies(small, monkeypatch):
    model = there("llama")
    blocks = SparsityPolicy(0.5, "threshold", dense_layers=[0], kinds=["block"])
    monkeypatch.setattr(RouterModule, "log", lambda *args, **named: None)
    with OneDevice() as seen:
        routers = BlockRouter(0.5, [0], 8, 1, 1, 3, 0.01).build(model, Steps([small]))
        cuts = thresholds.learn(model, routers, blocks, "token", Zero(), [small])
        walk(model, small, routers.to("cpu"), replace(blocks, thresholds=cuts))
    assert seen.joined > 100


def test_every_measure_brings_what_it_compares(examples, make_lm, monkeypatch):
    """But for latency, which is of the gathered executor."""
    monkeypatch.setattr("torch.autocast", lambda *args, **named: nullcontext())  # `meta` has none
    lm = LM(there("llama"), make_lm("llama").tokenizer)
    model, windows = lm.model, examples([9, 5, 12])
    asked = [Question([3, 4, 5], [[6, 7], [8, 9]], 0)]
    units = sample_units(model, 2, {"head": 2, "neuron": 3}, 0)
    told = [(("some", "text"), [1, 1, 1], [1, 1])]  # as `meta` tells tokens
    with OneDevice() as seen, sparse(model, on_cpu(model), HALF) as run:
        beside = Divergence(run)
        perplexity(run, lm, windows, 3, beside.add)
        beside.metrics()
        choice_accuracy(run, asked, 2)
        SparseHFLM(run, lm, 2)._loglikelihood_tokens(told, disable_tqdm=True)
    with OneDevice():
        criterion_quality(model, windows, CRITERIA, "next_token", units, 3)
        rank_variances(model, windows, ["l2_norm", "plainact"], "next_token", 3)
    assert seen.joined > 100
