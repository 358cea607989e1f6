"""Channels and gates: TEAL and CATS against slow, obvious references, on every family."""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, tiny
from torch import Tensor, nn

from shadow.data.batches import Batch, Example, collate, logits_of
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.executors.positions import whole_positions
from shadow.executors.replaced import replace_method
from shadow.fit.quantiles import Quantiles
from shadow.fit.thresholds import learn
from shadow.front import sparse
from shadow.jobs import checks
from shadow.models.kinds import find_sites, weights_of
from shadow.models.sites import Site
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.fixed import Fixed
from shadow.scorers.gate import GateMagnitude
from shadow.scorers.inputs import InputMagnitude
from shadow.scorers.predicted import DenseFed, Predicted
from shadow.signals import Signal, hook_signals

EVERY = pytest.mark.parametrize("family", FAMILIES)
PLAIN = pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].experts == 1])
CUT = 0.3  # a threshold for all


@pytest.fixture(scope="module")
def small(examples: Callable) -> Batch:
    return collate(examples([9, 5, 12]))


def channels(model: nn.Module) -> list[Site]:
    return find_sites(model, ["channel"])  # type: ignore[arg-type]


def above(sites: list[Site], cut: float = CUT, **others: object) -> SparsityPolicy:
    """Everything that scores no more than the cut goes, in every layer."""
    return SparsityPolicy(
        0.5,
        "threshold",
        min_units=0,
        dense_layers=[],
        thresholds={site.key: cut for site in sites},
        **others,  # type: ignore[arg-type]
    )


@contextmanager
def zeroed(projections: list[nn.Linear], cut: float):
    """The obvious reference: each projection's own input without what is small."""

    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] * (args[0].abs() > cut),)

    with ExitStack() as stack:
        for projection in projections:
            stack.callback(projection.register_forward_pre_hook(hook).remove)
        yield


@EVERY
def test_channels_and_what_they_cost_cover_each_weight_once(family):
    model = tiny(family)
    sites, weights = channels(model), weights_of(model)
    layers = sum(site.active * site.cost for site in sites if site.slot != "lm_head")
    routers = sum(p.numel() for name, p in model.named_parameters() if "mlp.gate.weight" in name)
    assert layers == weights.layers - routers
    head = [site.units * site.cost for site in sites if site.slot == "lm_head"]
    assert head == [weights.head]
    assert weights.head == model.get_output_embeddings().weight.numel()


@EVERY
def test_heads_and_neurons_leave_no_more_unread_than_there_is(family):
    model = tiny(family)
    sites = find_sites(model)
    unread = sum(site.active * site.cost for site in sites)
    config = model.config.get_text_config()
    keys = sum(s.cost * s.active for s in channels(model) if s.slot == "qkv")
    queries = config.hidden_size * sum(s.units * s.width for s in sites if s.kind == "head")
    read_all_the_same = keys - queries  # keys and values
    assert (
        unread == sum(s.active * s.cost for s in channels(model) if s.slot != "lm_head") - read_all_the_same
    )


@PLAIN
def test_teal_is_the_model_whose_projections_read_no_small_input(family, small, hooks_on):
    model = tiny(family)
    sites = [site for site in channels(model) if site.slot != "lm_head"]
    readers = [reader for site in sites for reader in site.readers]
    with zeroed(readers, CUT):
        expected = logits_of(model, small)
    with sparse(model, InputMagnitude(), above(sites)) as run:
        found = run.logits(small)
        assert run.achieved("channel") > 0.05
    real = small.real()
    assert torch.equal(found[real], expected[real])
    assert hooks_on(model) == 0


@PLAIN
def test_cats_is_the_model_whose_neurons_go_where_the_gate_is_small(family, small):
    model = tiny(family)
    sites = find_sites(model, ["neuron"])
    seen: dict[int, Tensor] = {}

    def note(signal: Signal, x: Tensor) -> None:
        seen[signal.layer] = x.abs() > CUT

    def hook_of(layer: int) -> Callable:
        return lambda module, args: ((args[0].view(seen[layer].shape) * seen[layer]).view(args[0].shape),)

    with ExitStack() as stack:
        stack.enter_context(hook_signals(model, [Signal(site.layer, "gate") for site in sites], note))
        for site in sites:
            stack.callback(site.module.register_forward_pre_hook(hook_of(site.layer)).remove)
        expected = logits_of(model, small)
    with sparse(model, GateMagnitude(), above(sites)) as run:
        found = run.logits(small)
        assert run.achieved("neuron") > 0.05
    real = small.real()
    assert torch.equal(found[real], expected[real])


@EVERY
@pytest.mark.parametrize("scorer", [InputMagnitude(), GateMagnitude()], ids=["teal", "cats"])
def test_nothing_small_leaves_the_dense_model_bit_for_bit(family, scorer, small):
    """A threshold that nothing is below, so that scores, plans and drops are all made."""
    model = tiny(family)
    dense = logits_of(model, small)
    sites = find_sites(model, sorted(scorer.kinds))
    with sparse(model, scorer, above(sites, -1.0)) as run:
        assert torch.equal(run.logits(small), dense)
        assert run.bytes()["skipped"] == 0
    with sparse(model, scorer, level=0.0) as run:
        assert torch.equal(run.logits(small), dense)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_lose_what_is_small_of_what_they_are_sent(family, small):
    """The neurons of each expert, against the experts' own parameters with small neurons set to 0 by hand."""
    model = tiny(family)
    down = [site for site in channels(model) if site.slot == "down"]
    policy = above(down, CUT, slots=["down"])
    applied = [site.reader._apply_gate for site in down]

    def cut(neurons: Tensor) -> Tensor:
        return neurons * (neurons.abs() > CUT)

    for site, gate in zip(down, applied, strict=True):
        site.reader._apply_gate = lambda gates, gate=gate: cut(gate(gates))
    expected = logits_of(model, small)
    for site in down:
        del site.reader._apply_gate
    with sparse(model, InputMagnitude(), policy) as run:
        found = run.logits(small)
    real = small.real()
    assert torch.equal(found[real], expected[real])
    assert 0 < run.achieved("channel") < 1


def test_bytes_are_those_of_the_columns_that_are_not_read(tiny_llama, small):
    model = tiny_llama.model
    sites = [site for site in channels(model) if site.slot != "lm_head"]
    policy = SparsityPolicy(0.5, dense_layers=[0])
    with sparse(model, InputMagnitude(), policy) as run:
        run.logits(small)
    skipped = run.bytes()
    unread = sum((site.units // 2) * site.cost for site in sites if site.layer > 0)
    assert skipped["skipped_of_layers"] == pytest.approx(unread / weights_of(model).layers)
    assert skipped["skipped"] == pytest.approx(unread / weights_of(model).all)
    assert skipped["by_kind"] == {"channel": skipped["skipped"]}


def test_cats_reads_every_gate(tiny_llama, small):
    """Half of the neurons leave half of up and down unread, and nothing of the gate."""
    with sparse(tiny_llama.model, GateMagnitude(), SparsityPolicy(0.5, dense_layers=[])) as run:
        run.logits(small)
    ffn = sum(site.units * site.cost for site in find_sites(tiny_llama.model, ["neuron"]))
    assert run.bytes()["skipped_of_layers"] == pytest.approx(ffn / 3 / weights_of(tiny_llama.model).layers)


@pytest.mark.parametrize("scorer", [InputMagnitude(), GateMagnitude()], ids=["teal", "cats"])
def test_thresholds_come_from_one_dense_pass_and_remove_their_level(tiny_llama, batch, scorer):
    calls, model = [], tiny_llama.model
    policy, own = SparsityPolicy(0.4, "threshold"), model.forward
    with replace_method(model, "forward", lambda **given: calls.append(1) or own(**given)):
        learnt = learn(tiny_llama.model, scorer, policy, "token", Zero(), [batch])
    assert len(calls) == 1
    kind = next(iter(scorer.kinds))
    pruned = [s for s in find_sites(tiny_llama.model, [kind]) if policy.prunes(s.key)]
    assert learnt.keys() == {site.key for site in pruned}
    with sparse(tiny_llama.model, scorer, replace(policy, thresholds=learnt)) as run:
        run.logits(batch)
    first = pruned[0].key  # reads what the dense pass reads
    assert 1 - run.planner.kept[first] / run.planner.total[first] == pytest.approx(0.4, abs=0.01)


def test_quantiles_from_bins_are_those_of_the_numbers():
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(200, 500, generator=draw)
    counts = Quantiles()
    for part in values.split(64):
        counts.add(part)
    for share in (0.05, 0.3, 0.5, 0.9):
        exact = float(values.flatten().kthvalue(int(share * values.numel())).values)
        assert counts.quantile(share) == pytest.approx(exact, rel=0.01, abs=1e-3)


def test_zeros_go_together():
    counts = Quantiles()
    counts.add(torch.tensor([0.0] * 6 + [1.0, 2.0, 3.0, 4.0]))
    assert 0 <= counts.quantile(0.5) < 1e-30


@pytest.mark.parametrize(
    ("tokens", "whole"),
    [
        ("all", [[0, 0, 0, 0], [0, 0, 0, 0]]),
        (2, [[1, 1, 0, 0], [1, 1, 0, 0]]),
        (0.5, [[1, 1, 0, 0], [1, 0, 0, 0]]),
    ],
)
def test_tokens_say_which_positions_are_sparse(tiny_llama, tokens, whole):
    """The second row has three real tokens; what padding does is nobody's business."""
    policy = SparsityPolicy(0.5, dense_layers=[], tokens=tokens)
    batch = collate([Example([5, 6, 7, 8], 2), Example([5, 6, 7], 2)])
    with sparse(tiny_llama.model, InputMagnitude(), policy) as run:
        run.logits(batch)
    found = whole_positions(tokens, batch.real(), batch.in_prompt(), batch.real())
    expected = torch.tensor(whole, dtype=torch.bool) & batch.real()
    assert torch.equal(torch.zeros_like(expected) if found is None else found & batch.real(), expected)
    sparse_share = 1 - float(expected.sum()) / float(batch.real().sum())
    assert run.achieved("channel") == pytest.approx(0.5 * sparse_share)
    assert run.bytes()["skipped_of_layers"] == pytest.approx(0.5)  # of a token that is sparse


def test_the_first_tokens_stay_whole_in_generation_too(tiny_llama):
    """tokens=3 with a prompt of two: the first new token is whole, the others are not."""
    ids = torch.tensor([[5, 6]])
    policy = SparsityPolicy(0.5, dense_layers=[], tokens=3)
    with sparse(tiny_llama.model, InputMagnitude(), policy) as run:
        tiny_llama.model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert run.achieved("channel") == pytest.approx(0.5 * 2 / 5)  # five positions are read


def test_a_row_is_planned_alone(tiny_llama, batch):
    """In a batch and by itself, with padding on the left in generation."""
    with sparse(tiny_llama.model, InputMagnitude(), level=0.5) as run:
        together = run.logits(batch)
        for row, length in enumerate(batch.lengths.tolist()):
            alone = Batch(*(values[row : row + 1] for values in batch))
            assert torch.allclose(run.logits(alone)[0, :length], together[row, :length], atol=1e-5)


def test_the_lm_head_is_pruned_where_it_is_asked_for(tiny_llama, small):
    head = channels(tiny_llama.model)[-1]
    policy = SparsityPolicy(0.5, dense_layers=[], slots=["lm_head"])
    with sparse(tiny_llama.model, InputMagnitude(), policy) as run:
        run.logits(small)
        tiny_llama.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
    assert set(run.plan) == {head.key}
    assert run.bytes()["skipped_of_layers"] == 0
    assert run.bytes()["skipped"] == pytest.approx(
        0.5 * head.units * head.cost / weights_of(tiny_llama.model).all
    )


def test_the_gathered_executor_refuses_channels_in_other_storages(tiny_llama):
    with (
        pytest.raises(UserError, match=r"channels in executor\.storage=int8 or int4 alone.*got null"),
        sparse(tiny_llama.model, InputMagnitude(), level=0.5, executor=Gathered()),
    ):
        pass


@pytest.mark.parametrize("scores", [{}, {(1, "head"): torch.arange(4.0)}])
def test_a_scorer_that_leaves_out_what_is_to_go_raises(tiny_llama, small, scores):
    with (
        pytest.raises(UserError, match=r"scores no kind of unit|says nothing of the heads of layer 2"),
        sparse(tiny_llama.model, Fixed(scores), level=0.5) as run,
    ):
        run.logits(small)


def test_channels_are_pruned_alone():
    with pytest.raises(UserError, match=r"sparsity\.kinds: channels .* pruned alone"):
        SparsityPolicy(0.5, kinds=["channel", "head"])


@pytest.mark.parametrize("override", ["sparsity.budgets=global", "sparsity.stand_in=mean"])
def test_what_calibration_knows_of_heads_and_neurons_is_refused_for_channels(compose, override):
    cfg = compose("evaluate", "model=tiny-llama", "predictor=teal", override)
    with pytest.raises(
        UserError, match=r"heads and neurons, and predictor=teal prunes channels: give sparsity"
    ):
        checks.check_evaluate(cfg)


def test_a_predictor_is_counted_however_it_is_fed(tiny_llama, make_net, small):
    """And only where tokens decide: a token that is decoded asks no net that a prompt has asked."""
    scorer = Predicted(make_net(tiny_llama, [1, 2]), "scores")
    added = scorer.weights / weights_of(tiny_llama.model).all
    for one, decided_at, expected in (
        (scorer, "token", added),
        (DenseFed(scorer), "token", added),
        (scorer, "prompt", 0.0),
    ):
        with sparse(tiny_llama.model, one, SparsityPolicy(0.5), decided_at) as run:
            run.logits(small)
        assert run.bytes()["added"] == pytest.approx(expected), (one, decided_at)
