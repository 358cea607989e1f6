"""Each model family against its plain model, on tiny random weights made from its own config."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from families import FAMILIES
from observed import seen_of
from transformers import AutoConfig

from shadow.criteria.one_pass import row_losses
from shadow.data.batches import Batch, collate
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.front import sparse
from shadow.jobs.estimate import estimate_of
from shadow.jobs.resources import forward_flops, weightless
from shadow.jobs.stores import get_traces
from shadow.models.kinds import find_sites, structure_of
from shadow.models.layouts import LAYOUTS
from shadow.models.load import LM, byte_tokenizer, random_weights
from shadow.models.neuron_paths import find_neuron_paths
from shadow.models.sites import column_norms, count_units
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.low_rank import LowRankCopy
from shadow.scorers.oracle import Oracle
from shadow.signals import Signal, hook_signals, hook_sites

DENSE = SparsityPolicy(0.0)
EVERY = pytest.mark.parametrize("family", FAMILIES)
WITHOUT_EXPERTS = pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].experts == 1])
# those whose norm is not where the table says
PATHS = pytest.mark.parametrize(
    "family", [f for f in FAMILIES if FAMILIES[f].experts == 1 and f != "opt-350m"]
)


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def tiny(family, made) -> LM:
    """A frozen model of the family, made once and left as it was."""
    if family not in made:
        config = AutoConfig.for_model(**deepcopy(FAMILIES[family].config))
        made[family] = LM(
            random_weights(config, 0, torch.float32).eval().requires_grad_(False), byte_tokenizer()
        )
    return made[family]


@pytest.fixture(scope="module")
def small(examples) -> Batch:
    return collate(examples([9, 4, 11]))


def layer_of(model, family, index):
    return model.get_submodule(FAMILIES[family].stack)[index]


@torch.no_grad()
def zeroed(lm, family, layer, kind, unit, width):
    """A copy whose reader of the units has zeros for this unit's columns."""
    model = deepcopy(lm.model)
    paths = FAMILIES[family]
    reader = layer_of(model, family, layer).get_submodule(paths.head if kind == "head" else paths.neuron)
    if kind == "neuron" and paths.experts > 1:
        each = reader.down_proj.shape[2]
        reader.down_proj[unit // each, :, unit % each] = 0
    else:
        reader.weight[:, unit * width : (unit + 1) * width] = 0
    return lm._replace(model=model)


@EVERY
def test_units_are_query_heads_and_what_is_read_of_the_ffn(family, tiny):
    assert count_units(find_sites(tiny.model)) == {"head": 4, "neuron": 48}
    assert structure_of(tiny.model) == (FAMILIES[family].group, FAMILIES[family].experts)
    norms = column_norms(find_sites(tiny.model))
    assert {kind: found.shape for kind, found in norms.items()} == {"head": (3, 4), "neuron": (3, 48)}


def test_every_layout_is_tested():
    assert {family.config["model_type"] for family in FAMILIES.values()} == set(LAYOUTS)


@EVERY
@pytest.mark.parametrize(("kind", "unit"), [("head", 1), ("head", 2), ("neuron", 7), ("neuron", 40)])
def test_masking_a_unit_in_some_rows_equals_zeroing_its_columns_for_them(
    family, tiny, small, dense, kind, unit
):
    site = next(s for s in find_sites(tiny.model) if (s.layer, s.kind) == (1, kind))
    plain, without = dense(tiny, small), dense(zeroed(tiny, family, 1, kind, unit, site.width), small)
    keep = torch.ones(3, site.units, dtype=torch.bool)
    keep[:2, unit] = False
    with sparse(tiny.model, Fixed({}), DENSE) as run:
        run.planner.plan = {(1, kind): keep}
        masked = run.logits(small)
    assert not torch.equal(without[:2], plain[:2])
    # which rows an expert multiplies together depends on the others' routes, and with it the rounding
    rounding = 1e-5 if FAMILIES[family].experts > 1 else 0
    torch.testing.assert_close(masked[:2], without[:2], rtol=rounding, atol=rounding)
    torch.testing.assert_close(masked[2], plain[2], rtol=rounding, atol=rounding)


@EVERY
def test_level_0_is_the_dense_model_bit_for_bit_and_nothing_is_left(family, tiny, small, dense, hooks_on):
    before = dense(tiny, small)
    with sparse(tiny.model, Oracle("l2_norm"), DENSE) as run:
        assert torch.equal(run.logits(small), before)
    with sparse(tiny.model, Oracle("l2_norm"), SparsityPolicy(0.5)) as run:
        assert not torch.equal(run.logits(small), before)
        assert run.achieved("head") == run.achieved("neuron") == pytest.approx(1 / 3)
    assert torch.equal(dense(tiny, small), before)
    assert hooks_on(tiny.model) == 0
    assert not any("_apply_gate" in vars(module) for module in tiny.model.modules())


@EVERY
@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_a_row_of_a_batch_is_what_it_is_alone(family, tiny, examples, make_scorer, decided_at):
    """Padded to the longest, and pruned by what its own states say."""
    rows = examples([9, 4, 11])
    with sparse(tiny.model, make_scorer(tiny), SparsityPolicy(0.5), decided_at) as run:
        together = run.logits(collate(rows))
        alone = [run.logits(collate([row]))[0] for row in rows]
    for row, found in enumerate(alone):
        torch.testing.assert_close(together[row, : len(found)], found, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def make_scorer(examples):
    """Scores that are a random map of the state that enters layer 1."""

    class Mapped:
        kinds = frozenset({"head", "neuron"})

        def __init__(self, lm):
            draw = torch.Generator().manual_seed(1)
            self.maps = {
                (site.layer, site.kind): torch.randn(32, site.units, generator=draw)
                for site in find_sites(lm.model)
                if site.layer
            }

        def signals(self, sites):
            return [Signal(1, "layer_input")]

        def scores(self, signal, state, pool):
            if pool is not None:
                state = (state * pool[..., None]).sum(1) / pool.sum(1, keepdim=True)
            return {unit: state @ values for unit, values in self.maps.items()}

    return Mapped


@EVERY
def test_the_state_of_a_tap_is_what_enters_the_layer(family, tiny, small):
    seen = {}
    with hook_signals(
        tiny.model,
        [Signal(0, "layer_input"), Signal(2, "layer_input")],
        lambda signal, x: seen.__setitem__(signal.layer, x),
    ):
        found = tiny.model(
            input_ids=small.ids,
            attention_mask=small.real().long(),
            use_cache=False,
            output_hidden_states=True,
        )
    assert set(seen) == {0, 2}
    for layer, state in seen.items():
        assert torch.equal(state, found.hidden_states[layer])


@EVERY
def test_activation_and_gradient_of_a_unit_give_its_scores(family, tiny, small):
    """plainact and l2_norm of the last layer, from the loss by hand with a leaf in the place of the units."""
    found = seen_of(tiny, small, ["plainact", "l2_norm"])
    for kind in ("head", "neuron"):
        leaf = {}

        def swap(site, x, kind=kind, leaf=leaf):
            if (site.layer, site.kind) != (2, kind):
                return None
            leaf["x"] = x.detach().clone().requires_grad_(True)
            return leaf["x"]

        with hook_sites(tiny.model, find_sites(tiny.model), swap):
            logits = tiny.model(
                input_ids=small.ids, attention_mask=small.real().long(), use_cache=False
            ).logits
        row_losses(logits, small.labels).sum().backward()
        act, slope = leaf["x"].detach(), leaf["x"].grad
        real = small.real()
        expected = {"plainact": (act * slope).sum(-1).abs(), "l2_norm": act.norm(dim=-1)}
        for name, scores in expected.items():
            assert scores[real].abs().sum() > 0
            got = found[name, 2, kind].tokens()
            torch.testing.assert_close(got[real], scores[real], rtol=1e-4, atol=1e-6)


@WITHOUT_EXPERTS
def test_criteria_on_weights_are_those_of_autograd(family, tiny, examples):
    """Of one row: |w dL/dw| and the gradient's norm, of each neuron's rows in what writes it."""
    batch = collate(examples([9]))
    names = ["plainact_weight", "grad_norm_weight", "l2_norm_pre"]
    found = seen_of(tiny, batch, names)
    model = deepcopy(tiny.model)
    site = next(s for s in find_sites(model) if (s.layer, s.kind) == (1, "neuron"))
    gates = []
    site.writers[0].register_forward_hook(lambda module, args, y: gates.append(y.reshape(1, 9, -1)[..., :48]))
    for writer in site.writers:
        writer.weight.requires_grad_(True)
    logits = model(input_ids=batch.ids, attention_mask=batch.real().long(), use_cache=False).logits
    row_losses(logits, batch.labels).sum().backward()
    plain = sum((w.weight * w.weight.grad).abs().sum(1).view(-1, 48).sum(0) for w in site.writers)
    norms = sum(w.weight.grad.square().sum(1).view(-1, 48).sum(0) for w in site.writers).sqrt()
    expected = {"plainact_weight": plain, "grad_norm_weight": norms, "l2_norm_pre": gates[0][0].norm(dim=0)}
    for name, scores in expected.items():
        got = found[name, 1, "neuron"].window(batch.real())[0]
        torch.testing.assert_close(got, scores.detach(), rtol=1e-3, atol=1e-6)


@PATHS
def test_low_rank_copies_at_full_rank_are_the_neurons_where_attention_adds_nothing(family, tiny, small):
    """The norm, the writers and the non-linearity are the family's own."""
    model = deepcopy(tiny.model)
    for site in find_sites(model):
        if site.kind == "head":
            site.module.weight.zero_()
            if site.module.bias is not None:
                site.module.bias.zero_()
    lm = tiny._replace(model=model)
    copy = LowRankCopy(model, 32, {layer: torch.zeros(4) for layer in range(3)})
    states, read = {}, {}
    with (
        hook_signals(
            model, [Signal(1, "layer_input")], lambda signal, x: states.__setitem__(signal.layer, x)
        ),
        hook_sites(model, find_sites(model), lambda site, x: read.__setitem__((site.layer, site.kind), x)),
        torch.no_grad(),
    ):
        lm.model(input_ids=small.ids, attention_mask=small.real().long(), use_cache=False)
    said = copy.scores(Signal(1, "layer_input"), states[1], None)[1, "neuron"]
    torch.testing.assert_close(said, read[1, "neuron"][..., 0].abs(), rtol=1e-3, atol=1e-4)


# What is refused


@pytest.mark.parametrize("family", ["opt-350m", "mixtral"])
def test_neurons_without_a_path_of_their_own_are_refused(family, tiny):
    with pytest.raises(UserError, match=r"norms after|another scorer than svd"):
        find_neuron_paths(tiny.model)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "phi3", "pythia", "falcon-7b", "mixtral"])
def test_the_gathered_executor_refuses_families_that_it_does_not_know(family, tiny):
    scorer = Fixed(random_scores(find_sites(tiny.model), 0))
    with (
        pytest.raises(UserError, match=r"executor=gathered knows the families .* use executor=masked"),
        sparse(tiny.model, scorer, level=0.5, executor=Gathered()),
    ):
        pass


# Neurons of experts


MIXTURES = pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])


@MIXTURES
def test_neurons_of_experts_are_what_their_down_projection_reads(family, tiny, small):
    """Of the experts that a token is sent to, by the layer's own weights; 0 of the others."""
    found, sent = {}, {}
    experts = layer_of(tiny.model, family, 1).mlp.experts
    handle = experts.register_forward_pre_hook(lambda module, args: sent.update(x=args[0], to=args[1]))
    with hook_sites(
        tiny.model, find_sites(tiny.model), lambda site, x: found.__setitem__((site.layer, site.kind), x)
    ):
        tiny.model(input_ids=small.ids, attention_mask=small.real().long(), use_cache=False)
    handle.remove()
    seen = found[1, "neuron"].view(-1, 4, 12)
    for token in range(len(seen)):
        for expert in range(4):
            if expert in sent["to"][token]:
                gate, up = F.linear(sent["x"][token], experts.gate_up_proj[expert]).chunk(2)
                torch.testing.assert_close(seen[token, expert], F.silu(gate) * up, rtol=1e-4, atol=1e-5)
            else:
                assert not seen[token, expert].any()


@MIXTURES
def test_every_expert_loses_the_same_share(family, tiny, small):
    with sparse(tiny.model, Oracle("plainact"), SparsityPolicy(0.5, dense_layers=())) as run:
        run.logits(small)
    keep = run.plan[1, "neuron"].unflatten(-1, (4, 12))
    assert (keep.sum(-1) == 6).all()
    assert run.achieved("neuron") == 0.5


@MIXTURES
def test_both_orders_of_rows_give_the_same_model(family, tiny, small):
    """grouped_mm sorts rows by expert, batched_mm does not."""
    scorer = Fixed(random_scores(find_sites(tiny.model), 0))
    found = {}
    for implementation in ("grouped_mm", "batched_mm"):
        tiny.model.set_experts_implementation(implementation)
        with sparse(tiny.model, scorer, level=0.5) as run:
            found[implementation] = run.logits(small)
    tiny.model.set_experts_implementation("eager")
    with (
        pytest.raises(UserError, match=r"experts_implementation in .*grouped_mm.*eager"),
        sparse(tiny.model, scorer, level=0.5),
    ):
        pass
    tiny.model.set_experts_implementation("grouped_mm")
    torch.testing.assert_close(found["grouped_mm"], found["batched_mm"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mixtral"])
@pytest.mark.parametrize("criterion", ["plainact_weight", "grad_norm_weight", "l2_norm_pre", "l2_deviation"])
def test_criteria_that_do_not_see_neurons_of_experts_are_refused(family, tiny, small, criterion):
    with pytest.raises(UserError, match=f"criterion={criterion}.*experts"):
        seen_of(tiny, small, [criterion])


@pytest.mark.parametrize("family", ["mixtral"])
def test_the_default_criterion_is_refused_before_anything_is_collected(family, tiny, compose, artifacts):
    cfg = compose("train", "criterion=l2_deviation")
    with pytest.raises(UserError, match=r"criterion=l2_deviation.*experts.*l2_norm"):
        get_traces(cfg, tiny)
    assert not list(artifacts.rglob("*.safetensors"))


@pytest.mark.parametrize("family", ["mixtral"])
def test_plans_that_do_not_fit_experts_are_refused(family, tiny):
    scorer = Fixed(random_scores(find_sites(tiny.model), 0))
    heads = {(layer, "head"): torch.zeros(4, 8) for layer in range(3)}
    for policy in (SparsityPolicy(0.5, "global"), SparsityPolicy(0.5, "threshold")):
        with (
            pytest.raises(UserError, match=r"experts.*sparsity\.scope=layer"),
            sparse(tiny.model, scorer, policy),
        ):
            pass
    with (
        pytest.raises(UserError, match=r"experts.*sparsity\.stand_in=zero"),
        sparse(tiny.model, scorer, level=0.5, stand_in=heads),
    ):
        pass
    with sparse(tiny.model, scorer, SparsityPolicy(0.5, "global", kinds=("head",))):
        pass


@pytest.mark.parametrize("family", ["mixtral"])
def test_operations_of_experts_are_those_of_the_ones_that_a_token_is_sent_to(family, tiny):
    """Two of four experts a token: doubling their number changes nothing."""
    config = deepcopy(FAMILIES[family].config) | {"num_local_experts": 8}
    wider = random_weights(AutoConfig.for_model(**config), 0, torch.float32)
    assert forward_flops(wider, 10) == forward_flops(tiny.model, 10)
    one = 3 * 32 * 12  # weights of an expert
    attention = 32 * 32 * 2 + 32 * 16 * 2
    expected = 2 * 10 * (3 * (2 * one + attention) + 257 * 32) + 3 * 4 * 32 * 10**2
    assert forward_flops(tiny.model, 10) == expected


# The sizes people use


CONF = Path(__file__).parents[2] / "conf" / "model"
PARAMETERS = {  # as the hub counts them, in millions
    "opt-350m": 331,
    "llama-3.2-1b": 1236,
    "llama-3.2-3b": 3213,
    "llama-3.1-8b": 8030,
    "llama-3.1-70b": 70554,
    "mistral-7b": 7248,
    "qwen2.5-0.5b": 494,
    "qwen2.5-1.5b": 1544,
    "qwen2.5-7b": 7616,
    "qwen3-0.6b": 596,
    "qwen3-8b": 8191,
    "gemma-2-2b": 2614,
    "gemma-2-9b": 9242,
    "gemma-3-270m": 268,
    "gemma-3-1b": 1000,
    "phi-3-mini": 3821,
    "pythia-160m": 162,
    "pythia-1.4b": 1415,
    "pythia-6.9b": 6857,
    "falcon-7b": 6922,
    "mixtral-8x7b": 46703,
    "qwen3-30b-a3b": 30532,
}


@pytest.mark.parametrize("option", PARAMETERS)
def test_a_shape_has_as_many_parameters_as_the_model_on_the_hub(option):
    shape = yaml.safe_load((CONF / f"{option}.yaml").read_text())["shape"]
    model = weightless(AutoConfig.for_model(**shape))
    assert round(model.num_parameters() / 1e6) == PARAMETERS[option]
    assert len(find_sites(model)) == 2 * model.config.num_hidden_layers


NEURONS = {"falcon-7b": 18176, "phi-3-mini": 8192, "mixtral-8x7b": 114688}


@pytest.mark.parametrize("option", NEURONS)
def test_an_estimate_of_a_family_is_made_without_the_hub(compose, option):
    found = estimate_of(compose("train", f"model={option}"))
    assert found["layers"] == 32
    assert found["units"]["neuron"] == NEURONS[option]
    # of 47 billion weights a token meets 13 billion
    a_token = found["forward_flops"] / found["tokens"] / 2e9
    assert {"falcon-7b": 6, "phi-3-mini": 3, "mixtral-8x7b": 12}[option] < a_token < 14
