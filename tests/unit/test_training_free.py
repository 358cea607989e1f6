"""Scorers that nobody trains: what they have seen, and that they compute what they say."""

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import silu

from shadow.criteria import CONTEXTUAL, REMOVAL, STATISTICS, needs_gradient
from shadow.criteria.one_pass import score
from shadow.data.batches import Example, collate
from shadow.errors import UserError
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.low_rank import LowRankCopy, truncated
from shadow.scorers.prompt import PromptActivation
from shadow.signals import Signal

HALF = SparsityPolicy(0.5)
FULL = 64  # more than the width of the tiny models
NO_POOL = torch.zeros(0, 0, 32)


def layers_of(model):
    """Not by the layout table."""
    return model.model.decoder.layers if model.config.model_type == "opt" else model.model.layers


def outputs_of(layer):
    """-> what writes attention's share of the stream, what reads the neurons."""
    return (
        (layer.self_attn.out_proj, layer.fc2)
        if hasattr(layer, "fc2")
        else (layer.self_attn.o_proj, layer.mlp.down_proj)
    )


def states_of(model, batch):
    return model(
        input_ids=batch.ids, attention_mask=batch.real().long(), output_hidden_states=True
    ).hidden_states


# What a prompt tells


@pytest.fixture
def prompts(examples):
    """Eight rows whose prompts are long enough for every criterion."""
    return collate(examples([12, 5, 9, 16, 7, 13, 10, 4]))


def looked(lm, criterion, batch):
    scorer = PromptActivation(criterion)
    scorer.look(lm.model, batch)
    return scorer.scores(Signal(0, "layer_input"), NO_POOL, batch.in_prompt())


@pytest.mark.parametrize("criterion", CONTEXTUAL)
def test_a_row_has_the_criterions_scores_of_its_prompt_run_by_itself(lm64, examples, criterion):
    """One by one, as texts of their own whose every next token counts for the loss."""
    rows = examples([12, 5, 9], prompts=[7, 2, 4])
    found = looked(lm64, criterion, collate(rows))
    assert found.keys() == {(site.layer, site.kind) for site in find_sites(lm64.model)}
    for row, example in enumerate(rows):
        prompt = collate([Example(example.ids[: example.prompt], 1)])

        def receive(name, site, seen, row=row, prompt=prompt):
            expected = seen.window(prompt.real())[0]
            # the model runs in float64; the criteria are float32, summed in another order
            torch.testing.assert_close(
                found[site.layer, site.kind][row],
                expected,
                rtol=1e-5,
                atol=1e-6 * float(expected.abs().max()),
            )

        score(lm64.model, prompt, [criterion], receive, loss="next_token")


@pytest.mark.parametrize("criterion", ["griffin", "plainact", "grad_norm_weight", "grasp"])
def test_no_token_of_the_answer_is_seen(lm, examples, criterion):
    """Bit for bit: other answers, longer and shorter ones, give the same scores."""
    first, second = examples([12, 9], prompts=[5, 4])
    others = [Example(first.ids[:5] + [7] * 20, 5), Example([*second.ids[:4], 9], 4)]
    one, other = (looked(lm, criterion, collate(rows)) for rows in ([first, second], others))
    for unit in one:
        assert torch.equal(one[unit], other[unit])


@pytest.mark.parametrize("criterion", ["griffin", "fisher"])
def test_a_row_has_one_plan_and_another_prompt_another(lm, prompts, criterion):
    with sparse(lm.model, PromptActivation(criterion), HALF, "prompt") as run:
        run.logits(prompts)
    assert run.achieved("head") == run.achieved("neuron") == 0.375
    for (_, kind), keep in run.plan.items():
        assert keep.shape == (8, 4 if kind == "head" else 64)
    assert any((keep != keep[:1]).any() for keep in run.plan.values())


@pytest.mark.parametrize("criterion", ["griffin", "fisher"])
def test_batch_size_1_and_8_give_the_same_plans_of_prompts(lm64, examples, criterion):
    rows = examples([12, 5, 9, 16, 7, 13, 10, 4])
    plans = []
    for batches in ([rows], [[row] for row in rows]):
        with sparse(lm64.model, PromptActivation(criterion), HALF, "prompt") as run:
            found = []
            for some in batches:
                run.logits(collate(some))
                found.append(dict(run.plan))
        plans.append({unit: torch.cat([plan[unit] for plan in found]) for unit in found[0]})
    for unit in plans[0]:
        assert torch.equal(plans[0][unit], plans[1][unit])


def test_the_prompts_pass_counts_for_nothing_and_leaves_no_hook(lm, prompts, hooks_on):
    with sparse(lm.model, PromptActivation("plainact"), HALF, "prompt") as run:
        run.logits(prompts)
    assert run.planner.total[0, "head"] == 4 * int(prompts.lengths.sum())
    assert hooks_on(lm.model) == 0
    assert all(weight.grad is None for weight in lm.model.parameters())


def test_at_level_0_nobody_looks_at_the_prompt(lm, batch, dense):
    with sparse(lm.model, PromptActivation("griffin"), SparsityPolicy(0.0), "prompt") as run:
        assert torch.equal(run.logits(batch), dense(lm, batch))
    assert not run.scorer.seen


@pytest.mark.parametrize("decided_at", ["token", "sequence"])
def test_of_tokens_and_answers_a_prompt_tells_nothing(lm, batch, decided_at):
    with (
        pytest.raises(UserError, match=r"knows the prompt alone: use sparsity\.decided_at=prompt"),
        sparse(lm.model, PromptActivation("griffin"), HALF, decided_at) as run,
    ):
        run.logits(batch)


@pytest.mark.parametrize("criterion", CONTEXTUAL)
def test_a_prompt_too_short_to_be_scored_is_refused(lm, examples, hooks_on, criterion):
    least = 2 if needs_gradient(criterion) else 1
    scorer = PromptActivation(criterion)
    rows = examples([6, 5], prompts=[3, least - 1])
    with (
        pytest.raises(
            UserError, match=rf"{criterion} needs at least {least} tokens? .*prompt of {least - 1}"
        ),
        sparse(lm.model, scorer, HALF, "prompt") as run,
    ):
        run.logits(collate(rows))
    assert hooks_on(lm.model) == 0
    scorer.look(lm.model, collate(examples([6, 5], prompts=[3, least])))


def test_a_prompt_that_was_not_looked_at_is_asked_for(lm, batch):
    with (
        pytest.raises(UserError, match=r"must see the prompt first.*`Run\.logits`"),
        sparse(lm.model, PromptActivation("griffin"), HALF, "prompt"),
    ):
        lm.model(batch.ids)


@pytest.mark.parametrize("criterion", [REMOVAL, *STATISTICS, "magnitude"])
def test_what_says_nothing_of_one_prompt_is_refused_naming_what_does(criterion):
    with pytest.raises(UserError, match=rf"must be in .*'griffin'.*, got '{criterion}'"):
        PromptActivation(criterion)


# Low-rank copies


def heads_of(model):
    return {layer: torch.randn(4, generator=torch.Generator().manual_seed(layer)) for layer in range(4)}


def copy_of(model, rank):
    return LowRankCopy(model, rank, heads_of(model))


def with_deaf_attention(model):
    """A copy in which attention adds nothing to the stream."""
    model = deepcopy(model)
    for layer in layers_of(model):
        for values in outputs_of(layer)[0].parameters():
            values.zero_()
    return model


def neurons_read(model, batch):
    """-> {layer: what its neurons' reader reads, [B, T, U]}"""
    read, handles = {}, []
    for index, layer in enumerate(layers_of(model)):

        def hook(module, args, index=index):
            read[index] = args[0].view(*batch.ids.shape, -1)

        handles.append(outputs_of(layer)[1].register_forward_pre_hook(hook))
    states_of(model, batch)
    for handle in handles:
        handle.remove()
    return read


@torch.no_grad()
def test_beside_means_a_copy_scores_how_far_activations_are_from_them(lm, batch):
    deaf = with_deaf_attention(lm.model)
    states, read = states_of(deaf, batch), neurons_read(deaf, batch)
    means = {tap: read[tap].mean((0, 1)) for tap in read}
    scorer = LowRankCopy(lm.model, FULL, heads_of(lm.model), means)
    for tap in scorer.layers:
        expected = (read[tap] - means[tap]).abs()
        got = scorer.scores(Signal(tap, "layer_input"), states[tap], None)[tap, "neuron"]
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6 * float(read[tap].abs().max()))


@torch.no_grad()
def test_at_full_rank_scores_are_the_activations_of_a_model_whose_attention_adds_nothing(lm, batch):
    deaf = with_deaf_attention(lm.model)
    states, read, scorer = states_of(deaf, batch), neurons_read(deaf, batch), copy_of(lm.model, FULL)
    assert list(scorer.layers) == [1, 2, 3]
    for tap in scorer.layers:
        got = scorer.scores(Signal(tap, "layer_input"), states[tap], None)[tap, "neuron"]
        # sums of 32 products in two steps: a few roundings of 6e-8 of the largest
        torch.testing.assert_close(got, read[tap].abs(), rtol=0, atol=2e-6 * float(read[tap].abs().max()))
        assert got.any()


@torch.no_grad()
def test_what_attention_adds_is_ignored(lm, batch):
    """The model's own activations are others, in every layer."""
    states, read, scorer = states_of(lm.model, batch), neurons_read(lm.model, batch), copy_of(lm.model, FULL)
    for tap in scorer.layers:
        got = scorer.scores(Signal(tap, "layer_input"), states[tap], None)[tap, "neuron"]
        assert (got - read[tap].abs()).norm() > 1e-3 * read[tap].norm()


def compose_weights(projection, seed):
    """Make its weight a sum of outer products of known size and direction -> these, float64 [32, 64, 32]."""
    draw = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, 32, generator=draw, dtype=torch.float64))[0].T for n in (64, 32))
    parts = 0.8 ** torch.arange(32.0)[:, None, None] * u[:, :, None] * v[:, None]
    projection.weight.copy_(parts.sum(0))
    return parts


@pytest.mark.parametrize("rank", [1, 5, 31])
@torch.no_grad()
def test_at_a_lower_rank_the_weights_are_their_truncated_svd(lm, batch, rank):
    """By hand in float64: the largest so many outer products, with the projection's own bias."""
    parts = {}
    for layer in layers_of(lm.model):
        for projection in [layer.fc1] if hasattr(layer, "fc1") else [layer.mlp.gate_proj, layer.mlp.up_proj]:
            parts[projection] = compose_weights(projection, len(parts))
    scorer, states = copy_of(lm.model, rank), states_of(lm.model, batch)

    def low(projection, x):
        weight = parts[projection][:rank].sum(0)
        return x @ weight.T + (0 if projection.bias is None else projection.bias.double())

    for tap in scorer.layers:
        layer = layers_of(lm.model)[tap]
        if lm.model.config.model_type == "opt":
            x = layer.final_layer_norm(states[tap]).double()
            expected = low(layer.fc1, x).relu()
        else:
            x = layer.post_attention_layernorm(states[tap]).double()
            expected = (silu(low(layer.mlp.gate_proj, x)) * low(layer.mlp.up_proj, x)).abs()
        got = scorer.scores(Signal(tap, "layer_input"), states[tap], None)[tap, "neuron"].double()
        # float32 singular vectors, of values each 0.8 of the one before: tens of roundings of the largest
        torch.testing.assert_close(got, expected, rtol=0, atol=5e-6 * float(expected.max()))


def test_a_bias_is_the_projections_own(tiny_opt):
    fc1 = layers_of(tiny_opt.model)[1].fc1
    fc1.bias.copy_(torch.arange(64.0))
    assert torch.equal(truncated(fc1.weight, fc1.bias, 3)(torch.zeros(1, 32)), torch.arange(64.0)[None])


@pytest.mark.parametrize(("family", "projections"), [("opt", 1), ("llama", 2)])
@pytest.mark.parametrize(("rank", "used"), [(1, 1), (8, 8), (32, 32), (1000, 32)])
def test_the_parameters_are_the_factors_of_every_layer_but_the_first(
    make_lm, family, projections, rank, used
):
    assert copy_of(make_lm(family).model, rank).weights == 3 * projections * used * (32 + 64)


def test_positions_that_decide_together_have_their_mean(lm, batch):
    scorer, state = copy_of(lm.model, 8), states_of(lm.model, batch)[2]
    pool = batch.in_prompt()
    tokens, pooled = (
        scorer.scores(Signal(2, "layer_input"), state, where)[2, "neuron"] for where in (None, pool)
    )
    for row in range(8):
        torch.testing.assert_close(pooled[row], tokens[row, pool[row]].mean(0))


def test_heads_have_the_scores_that_were_given(lm, batch):
    scorer, states = copy_of(lm.model, 8), states_of(lm.model, batch)
    for tap in scorer.layers:
        found = scorer.scores(Signal(tap, "layer_input"), states[tap], None)
        assert found.keys() == {(tap, "head"), (tap, "neuron")}
        assert torch.equal(found[tap, "head"], heads_of(lm.model)[tap])


@pytest.mark.parametrize("decided_at", ["token", "prompt", "sequence"])
def test_a_copy_makes_a_model_sparse_in_one_pass(lm, batch, decided_at):
    calls = []
    handle = lm.model.register_forward_hook(lambda *args: calls.append(1))
    with sparse(lm.model, copy_of(lm.model, 8), HALF, decided_at) as run:
        run.logits(batch)
    handle.remove()
    assert len(calls) == 1
    assert run.achieved("head") == run.achieved("neuron") == 0.375


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_of_a_half_precision_model_factors_and_scores_are_float32(make_lm, batch, family, dtype):
    lm = make_lm(family, dtype=dtype)
    scorer, state = copy_of(lm.model, FULL), states_of(lm.model, batch)[1]
    exact = copy_of(deepcopy(lm.model).float(), FULL).scores(Signal(1, "layer_input"), state.float(), None)[
        1, "neuron"
    ]
    got = scorer.scores(Signal(1, "layer_input"), state, None)[1, "neuron"]
    assert got.dtype == torch.float32
    # only the norm's output is rounded to the model's dtype: 5e-4 of itself in float16, 4e-3 in bfloat16
    assert (got - exact).norm() < (0.002 if dtype == torch.float16 else 0.02) * exact.norm()


def test_the_same_weights_have_the_same_copy_bit_for_bit(lm, batch):
    state = states_of(lm.model, batch)[1]
    one, other = (
        copy_of(lm.model, 8).scores(Signal(1, "layer_input"), state, None)[1, "neuron"] for _ in range(2)
    )
    assert torch.equal(one, other)


def test_a_model_that_norms_after_its_sublayers_is_refused(tiny_opt):
    tiny_opt.model.config.do_layer_norm_before = False
    with pytest.raises(UserError, match=r"shadow\.models\.layouts\.LAYOUTS.*norms after"):
        copy_of(tiny_opt.model, 8)
