"""Every formula against a slow and obvious reference, and what must not change a score."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from shadow.batches import Example, collate
from shadow.criteria import CRITERIA
from shadow.scores import row_losses, score

NAMES = ["plainact", "l2_norm", "grad_norm", "fisher"]
LENGTHS = [6, 4, 7]


def scores_of(lm, batch, names=NAMES):
    """-> {(criterion, layer, kind): [B, T, U]}"""
    found = {}

    def receive(name, site, per_token):
        found[name, site.layer, site.kind] = per_token

    score(lm.model, batch, names, receive)
    return found


def readers(model):
    """The reading projections by their own paths, not by the layout table."""
    for index in range(4):
        if model.config.model_type == "opt":
            layer = model.model.decoder.layers[index]
            yield index, "head", layer.self_attn.out_proj
            yield index, "neuron", layer.fc2
        else:
            layer = model.model.layers[index]
            yield index, "head", layer.self_attn.o_proj
            yield index, "neuron", layer.mlp.down_proj


def reference(lm, example):
    """One sample alone, without padding -> {(layer, kind): (activation, gradient)}, each [T, channels].

    The gradient is that of a shift added to what the projection reads; the loss is the mean over the answer.
    """
    model = deepcopy(lm.model).requires_grad_(True)
    acts, shifts, handles = {}, {}, []

    def hook_of(place):
        def hook(module, args):
            x = args[0]
            acts[place] = x.detach().reshape(len(example.ids), -1)
            shifts[place] = torch.zeros_like(x, requires_grad=True)
            return (x + shifts[place],)

        return hook

    for layer, kind, module in readers(model):
        handles.append(module.register_forward_pre_hook(hook_of((layer, kind))))
    ids = torch.tensor([example.ids])
    logits = model(input_ids=ids).logits[0]
    start = example.prompt
    loss = F.cross_entropy(logits[start - 1 : -1], ids[0, start:])
    loss.backward()
    return {place: (acts[place], shifts[place].grad.reshape(len(example.ids), -1)) for place in acts}


def by_hand(name, act, grad, start, width):
    """One unit at one token, in plain Python floats."""
    total = 0.0
    for channel in range(start, start + width):
        a, g = float(act[channel]), float(grad[channel])
        total += {"plainact": a * g, "l2_norm": a * a, "grad_norm": g * g, "fisher": (a * g) ** 2}[name]
    return {"plainact": abs(total), "l2_norm": total**0.5, "grad_norm": total**0.5, "fisher": total}[name]


def test_there_are_the_four_criteria():
    assert set(NAMES) == set(CRITERIA)


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_formula_computed_sample_by_sample_and_unit_by_unit(lm64, examples, name):
    """The model runs in float64, so what is left is the criteria's own float32."""
    rows = examples(LENGTHS)
    found = scores_of(lm64, collate(rows), [name])
    for row, example in enumerate(rows):
        for (layer, kind), (act, grad) in reference(lm64, example).items():
            width = 8 if kind == "head" else 1
            expected = torch.tensor(
                [
                    [
                        by_hand(name, act[t], grad[t], unit * width, width)
                        for unit in range(4 if width == 8 else 64)
                    ]
                    for t in range(len(example.ids))
                ]
            )
            got = found[name, layer, kind][row, : len(example.ids)]
            # absolute: |sum a·g| may cancel to nothing, so what float32 drops is a share of the terms
            torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-7 * float(expected.max()))


def test_plainact_is_the_derivative_of_the_loss_by_a_mask_on_the_unit(lm64, examples):
    """What the criterion is for: the first-order change of the loss when the unit goes."""
    example = examples([7])[0]
    model, masks = lm64.model, {}

    def hook_of(place, width):
        def hook(module, args):
            x = args[0]
            masks[place] = torch.ones(7, x.shape[-1] // width, dtype=x.dtype, requires_grad=True)
            return ((x.view(7, -1, width) * masks[place][..., None]).view(x.shape),)

        return hook

    handles = [
        module.register_forward_pre_hook(hook_of((layer, kind), 8 if kind == "head" else 1))
        for layer, kind, module in readers(model)
    ]
    logits = model(input_ids=torch.tensor([example.ids])).logits[0]
    F.cross_entropy(logits[example.prompt - 1 : -1], torch.tensor(example.ids[example.prompt :])).backward()
    for handle in handles:
        handle.remove()
    for (_, layer, kind), per_token in scores_of(lm64, collate([example]), ["plainact"]).items():
        expected = masks[layer, kind].grad.abs().float()
        torch.testing.assert_close(per_token[0], expected, rtol=2e-6, atol=2e-7 * float(expected.max()))


@pytest.mark.parametrize("name", NAMES)
def test_the_score_of_a_window_adds_up_its_tokens(name):
    """Sums of plainact and fisher; norms over all values of l2_norm and grad_norm. Padding does not count."""
    draw = torch.Generator().manual_seed(0)
    act, grad = (torch.randn(3, 5, 4, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    criterion = CRITERIA[name]
    got = criterion.reduce(criterion.per_token(act, grad), real)
    for row in range(3):
        a, g = act[row, real[row]], grad[row, real[row]]  # [t, U, D]
        expected = {
            "plainact": (a * g).sum(2).abs().sum(0),
            "l2_norm": a.square().sum((0, 2)).sqrt(),
            "grad_norm": g.square().sum((0, 2)).sqrt(),
            "fisher": (a * g).square().sum((0, 2)),
        }[name]
        torch.testing.assert_close(got[row], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_of_one_token_scores_as_the_token(name):
    values = torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(0))
    first = torch.tensor([[True, False, False]] * 2)
    # a norm squares and takes the root again
    torch.testing.assert_close(CRITERIA[name].reduce(values, first), values[:, 0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_values_at_padding_do_not_reach_a_window_score(name):
    values = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[True, True, False, False], [True, True, True, True]])
    expected = CRITERIA[name].reduce(values, real)
    values[0, 2:] = torch.nan
    assert torch.equal(CRITERIA[name].reduce(values, real), expected)


# Batches


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_batch_size_do_not_change_a_score(lm, examples, name):
    """Alone and unpadded, or a row among longer ones: other kernels, so equal up to float32 rounding."""
    rows = examples([12, 5, 9, 16, 7, 13, 10, 3])
    together = scores_of(lm, collate(rows), [name])
    for row, example in enumerate(rows):
        for key, alone in scores_of(lm, collate([example]), [name]).items():
            got = together[key][row, : len(example.ids)]
            # ~20 operations deep: a few units of float32 rounding (6e-8) of the largest score
            torch.testing.assert_close(got, alone[0], rtol=1e-4, atol=2e-6 * float(alone.max()))


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_batch_size_do_not_change_a_score_beyond_rounding(lm64, examples, name):
    """In float64 what is left is the float32 of the criteria."""
    rows = examples([12, 5, 9, 16, 7, 13, 10, 3])
    together = scores_of(lm64, collate(rows), [name])
    for row, example in enumerate(rows):
        for key, alone in scores_of(lm64, collate([example]), [name]).items():
            got = together[key][row, : len(example.ids)]
            torch.testing.assert_close(got, alone[0], rtol=1e-6, atol=2e-7 * float(alone.max()))


def test_scores_do_not_depend_on_the_other_rows(lm, examples):
    """Bit for bit: the shapes are the same, and only what stands in the other rows differs."""
    mine, others = examples([9], seed=1), examples([9, 9], seed=2)
    prompts = [Example(other.ids, 2) for other in others]  # longer answers too
    first = scores_of(lm, collate([*mine, *others]))
    second = scores_of(lm, collate([*mine, *prompts[::-1]]))
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key][0], second[key][0])
        assert not torch.equal(first[key][1], second[key][1])


def test_the_loss_of_a_row_is_the_mean_over_its_own_answer(lm, examples, dense):
    batch = collate(examples([9, 5, 7], prompts=[3, 4, 1]))
    logits = dense(lm, batch)
    expected = [
        F.cross_entropy(logits[0, 2:8], batch.ids[0, 3:9]),
        F.cross_entropy(logits[1, 3:4], batch.ids[1, 4:5]),
        F.cross_entropy(logits[2, 0:6], batch.ids[2, 1:7]),
    ]
    # means of at most 6 numbers: rounding alone
    torch.testing.assert_close(row_losses(logits, batch.labels), torch.stack(expected), rtol=1e-6, atol=0)


def test_a_row_without_an_answer_has_no_loss_and_gradient_scores_of_zero(lm, examples):
    found = scores_of(lm, collate(examples([6, 8], prompts=[6, 4])), ["plainact", "fisher"])
    for per_token in found.values():
        assert not per_token[0].any()
        assert per_token[1].any()


# Precision and cost


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_fisher_of_a_half_precision_model_does_not_underflow(make_lm, examples, family, dtype):
    """(a·g)^2 falls below the smallest float16, 6e-8, where a·g is below 2.4e-4: at most tokens."""
    lm = make_lm(family, dtype=dtype)
    batch = collate(examples([40]))
    found = scores_of(lm, batch, ["fisher", "plainact"])
    tiny = 0
    for layer in range(4):
        fisher, plain = found["fisher", layer, "neuron"], found["plainact", layer, "neuron"]
        assert fisher.dtype == torch.float32
        # a neuron is one channel wide: fisher is plainact squared, exactly so but for one rounding each
        torch.testing.assert_close(fisher, plain.square(), rtol=1e-6, atol=1e-44)
        tiny += int(((fisher > 0) & (fisher < 6e-8)).sum())
    assert tiny > 100


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_criteria_of_a_half_precision_model_are_computed_in_float32(make_lm, examples, name, dtype):
    for per_token in scores_of(make_lm("llama", dtype=dtype), collate(examples([10])), [name]).values():
        assert per_token.dtype == torch.float32
        assert torch.isfinite(per_token).all()


def test_one_forward_and_at_most_one_backward(lm, examples):
    batch, calls = collate(examples([6, 4])), {"forward": 0, "backward": 0}

    def backward(module, grad_input, grad_output):
        calls["backward"] += 1

    handles = [
        lm.model.register_forward_pre_hook(lambda *args: calls.update(forward=calls["forward"] + 1)),
        lm.model.lm_head.register_full_backward_hook(backward),
    ]
    scores_of(lm, batch, NAMES)
    assert calls == {"forward": 1, "backward": 1}
    scores_of(lm, batch, ["l2_norm"])
    assert calls == {"forward": 2, "backward": 1}
    for handle in handles:
        handle.remove()


def test_all_criteria_together_score_as_each_alone(lm, batch):
    together = scores_of(lm, batch)
    for name in NAMES:
        for key, alone in scores_of(lm, batch, [name]).items():
            assert torch.equal(alone, together[key])


def test_scoring_leaves_no_hook_and_no_gradient_on_the_model(lm, batch, hooks_on):
    scores_of(lm, batch)
    assert hooks_on(lm.model) == 0
    assert all(weight.grad is None and not weight.requires_grad for weight in lm.model.parameters())


def test_scoring_returns_the_input_states_of_the_taps(lm, batch):
    states = score(lm.model, batch, ["plainact"], lambda *args: None, taps=[0, 2])
    hidden = lm.model(
        input_ids=batch.ids, attention_mask=batch.real().long(), output_hidden_states=True
    ).hidden_states
    assert set(states) == {0, 2}
    for tap, state in states.items():
        assert torch.equal(state, hidden[tap])
        assert not state.requires_grad
