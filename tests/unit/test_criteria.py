"""Formulas of activations and gradients against slow and obvious ones, and what must not change a score."""

import gc
import weakref
from copy import deepcopy
from dataclasses import replace
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from observed import drawn_means, seen_of
from torch import nn

from shadow.criteria import CONTEXTUAL, CRITERIA, needs_gradient, require
from shadow.criteria import one_pass as scores
from shadow.criteria.activation import SUMMABLE, Summed
from shadow.criteria.one_pass import row_losses, score
from shadow.criteria.statistics import STATISTICS
from shadow.data.batches import IGNORED, Example, collate
from shadow.errors import UserError

FIRST_ORDER = [name for name in CONTEXTUAL if needs_gradient(name) and name != "grasp"]
FLASH = [name for name in CONTEXTUAL if name != "grasp"]  # which makes attention take another kernel
FORWARD_ALONE = ["l2_norm", "l2_deviation", "l2_norm_pre", "griffin", "nwot", "random"]
LENGTHS = [6, 4, 7]


def dot(one, other):
    return sum(x * y for x, y in zip(one, other))


# Of one unit: its activations, its values before the non-linearity and its gradients, [[channel] of token];
# and of all units of its layer and kind the length of their activations, [of token]
FORMULAS = {
    "l2_norm": lambda act, pre, grad, layer: sqrt(sum(dot(a, a) for a in act)),
    "l2_norm_pre": lambda act, pre, grad, layer: sqrt(sum(dot(z, z) for z in pre)),
    "griffin": lambda act, pre, grad, layer: sqrt(sum(dot(a, a) / n**2 for a, n in zip(act, layer))),
    "plainact": lambda act, pre, grad, layer: sum(abs(dot(a, g)) for a, g in zip(act, grad)),
    "snip": lambda act, pre, grad, layer: abs(sum(dot(a, g) for a, g in zip(act, grad))),
    "grad_norm": lambda act, pre, grad, layer: sqrt(sum(dot(g, g) for g in grad)),
    "fisher": lambda act, pre, grad, layer: sum(
        (x * y) ** 2 for a, g in zip(act, grad) for x, y in zip(a, g)
    ),
}


def both(seen, inside):
    """-> [B, T + 1, U]: the scores at each position, and those over the positions inside."""
    return torch.cat([seen.tokens(), seen.window(inside)[:, None]], 1)


def projections(model):
    """-> layer, kind, what reads the units, what writes them; not by the layout table."""
    for index in range(model.config.num_hidden_layers):
        if model.config.model_type == "opt":
            layer = model.model.decoder.layers[index]
            yield index, "head", layer.self_attn.out_proj, None
            yield index, "neuron", layer.fc2, layer.fc1
        else:
            layer = model.model.layers[index]
            yield index, "head", layer.self_attn.o_proj, None
            yield index, "neuron", layer.mlp.down_proj, layer.mlp.gate_proj


def reference(lm, ids, labels):
    """One sample alone, without padding -> {(layer, kind): (act, pre, grad)}, each [T, U, D].

    The gradient is that of a shift added to what the projection reads. Heads are their own `pre`.
    """
    acts, shifts, pres, handles = {}, {}, {}, []

    def reads(place):
        def hook(module, args):
            shifts[place] = torch.zeros_like(args[0], requires_grad=True)
            acts[place] = args[0].detach()
            return (args[0] + shifts[place],)

        return hook

    def writes(place):
        def hook(module, args, output):
            pres[place] = output.detach()

        return hook

    for layer, kind, reader, writer in projections(lm.model):
        handles.append(reader.register_forward_pre_hook(reads((layer, kind))))
        if writer is not None:
            handles.append(writer.register_forward_hook(writes((layer, kind))))
    logits = lm.model(input_ids=torch.tensor([ids])).logits[0]
    F.cross_entropy(logits, torch.tensor(labels)).backward()
    for handle in handles:
        handle.remove()
    return {
        place: [
            values.reshape(len(ids), -1, 8 if place[1] == "head" else 1)
            for values in (acts[place], pres.get(place, acts[place]), shifts[place].grad)
        ]
        for place in acts
    }


def answer_of(example):
    """The labels of the loss that criteria have unless told otherwise: of what follows the prompt."""
    following = [*example.ids[1:], IGNORED]
    return [IGNORED] * (example.prompt - 1) + following[example.prompt - 1 :]


def by_hand(name, seen, positions):
    """-> [U]: the formula over these positions, unit by unit in Python's floats."""
    act, pre, grad = ([values[t].tolist() for t in positions] for values in seen)
    layer = [sqrt(sum(dot(channels, channels) for channels in token)) for token in act]
    units = range(seen[0].shape[1])
    return torch.tensor(
        [
            FORMULAS[name](*([token[unit] for token in values] for values in (act, pre, grad)), layer)
            for unit in units
        ]
    )


def assert_near(got, expected, rtol, share, place=None):
    """share: of the largest score; where terms of a sum cancel, rounding is a share of the terms."""
    atol = share * float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, msg=lambda text: f"{place}: {text}")


def every_other(batch):
    """bool [B, T]: every other real position, beginning with the first or the second."""
    position = torch.arange(batch.ids.shape[1])
    return batch.real() & ((position + torch.arange(len(batch.ids))[:, None]) % 2 == 0)


# Formulas


def test_every_criterion_has_a_test_of_its_formula():
    """Here or in test_criteria_<its file or subject>.py."""
    elsewhere = {"plainact_weight", "grad_norm_weight", "grasp", "nwot", "jacov", "epenas", "random"}
    elsewhere.add("l2_deviation")
    assert {*FORMULAS, *elsewhere} == set(CRITERIA)


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_equal_the_formula_computed_sample_by_sample_and_unit_by_unit(lm64, examples, name):
    """At every token, and over windows with gaps. The model runs in float64, the criteria in float32."""
    rows = examples(LENGTHS)
    batch = collate(rows)
    inside = every_other(batch)
    found = seen_of(lm64, batch, [name])
    for row, example in enumerate(rows):
        length = len(example.ids)
        for place, seen in reference(lm64, example.ids, answer_of(example)).items():
            got = both(found[name, *place], inside)[row]
            windows = [[t] for t in range(length)] + [inside[row].nonzero()[:, 0].tolist()]
            expected = torch.stack([by_hand(name, seen, window) for window in windows])
            # sums of at most 8 channels at 4 tokens, each term rounded to 6e-8 of itself
            assert_near(got[[*range(length), -1]], expected, rtol=2e-6, share=2e-7)


def test_l2_deviation_is_the_length_of_what_differs_from_the_means_unit_by_unit(lm64, examples):
    rows = examples(LENGTHS)
    batch = collate(rows)
    inside = every_other(batch)
    found, means = seen_of(lm64, batch, ["l2_deviation"]), drawn_means(lm64)
    for row, example in enumerate(rows):
        length = len(example.ids)
        for place, (act, _, _) in reference(lm64, example.ids, answer_of(example)).items():
            got = both(found["l2_deviation", *place], inside)[row]
            mean = means[place].tolist()
            windows = [[t] for t in range(length)] + [inside[row].nonzero()[:, 0].tolist()]
            for window, values in zip(windows, got[[*range(length), -1]]):
                for unit, value in enumerate(values.tolist()):
                    squares = [(float(a) - m) ** 2 for t in window for a, m in zip(act[t, unit], mean[unit])]
                    # activations are rounded to float32 before the mean is taken off
                    assert value == pytest.approx(sqrt(sum(squares)), rel=1e-5, abs=1e-6)


def test_l2_deviation_from_means_of_zero_is_l2_norm(lm, batch):
    found = {}
    zeros = {unit: torch.zeros_like(mean) for unit, mean in drawn_means(lm).items()}

    def receive(name, site, seen):
        found[name, site.layer, site.kind] = both(seen, batch.real())

    score(lm.model, batch, ["l2_norm", "l2_deviation"], receive, means=zeros)
    for (name, *place), scores_of in found.items():
        if name == "l2_norm":
            assert torch.equal(found["l2_deviation", *place], scores_of)


def test_l2_deviation_without_means_is_refused(lm, batch):
    with pytest.raises(UserError, match=r"l2_deviation needs the calibration's means"):
        score(lm.model, batch, ["l2_norm", "l2_deviation"], lambda *args: None)


@pytest.mark.parametrize("name", ["plainact", "snip", "grad_norm", "fisher"])
def test_the_loss_may_be_that_of_every_next_token(lm64, examples, name):
    rows = examples(LENGTHS)
    found = seen_of(lm64, collate(rows), [name], "next_token")
    for row, example in enumerate(rows):
        length = len(example.ids)
        for place, seen in reference(lm64, example.ids, [*example.ids[1:], IGNORED]).items():
            expected = torch.stack([by_hand(name, seen, [t]) for t in range(length)])
            assert_near(found[name, *place].tokens()[row, :length], expected, rtol=2e-6, share=2e-7)


def test_an_answer_token_that_only_the_labels_know_counts_for_both_losses(lm64, examples):
    """As lm-eval gives rows: an answer's last token is predicted and never read."""
    (example,) = examples([7])
    known = collate([example])
    labels = torch.cat([known.labels[:, :-1], torch.tensor([[200]])], 1)
    for loss, first in (("answer", example.prompt - 1), ("next_token", 0)):
        found = seen_of(lm64, known._replace(labels=labels), ["plainact"], loss)
        own = [IGNORED] * first + [*example.ids[1:], 200][first:]
        for place, seen in reference(lm64, example.ids, own).items():
            expected = torch.stack([by_hand("plainact", seen, [t]) for t in range(7)])
            assert_near(found["plainact", *place].tokens()[0], expected, rtol=2e-6, share=2e-7)


@pytest.mark.parametrize(
    ("name", "index"), [("nwot", 0), ("jacov", 2), ("epenas", 2)], ids=["nwot", "jacov", "epenas"]
)
def test_a_statistic_is_shown_what_it_compares(lm64, examples, name, index):
    """nwot activations, jacov and epenas gradients."""
    rows = examples(LENGTHS)
    found = seen_of(lm64, collate(rows), [name])
    for row, example in enumerate(rows):
        for place, seen in reference(lm64, example.ids, answer_of(example)).items():
            values = found[name, *place].values[row, : len(example.ids)]
            assert values.dtype == torch.float32
            # the loss is computed in float32: gradients keep its rounding
            assert_near(values, seen[index].float(), rtol=2e-6, share=2e-7)


def mended(model):
    """A copy that computes in float64 throughout: Llama's own norm goes through float32."""
    model = deepcopy(model)
    for path, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(module.weight.shape, module.variance_epsilon, dtype=torch.float64)
            norm.weight.data = module.weight.data
            model.set_submodule(path, norm.requires_grad_(False))
    return model


@torch.no_grad()
@pytest.mark.parametrize("where", ["window", "token"])
def test_snip_is_how_the_loss_changes_when_the_unit_is_multiplied_by_a_little_more_or_less(
    lm64, examples, where
):
    """By finite differences: row u of a batch of copies of the sample has unit u multiplied."""
    (example,) = examples([7])
    model, factor = mended(lm64.model), 1e-5
    batch = collate([example])
    inside = every_other(batch) if where == "window" else batch.real() & (torch.arange(7) == 4)
    found = seen_of(lm64, batch, ["snip"])
    for layer, kind, reader, _ in projections(model):
        units = 4 if kind == "head" else 64
        ids = torch.tensor([example.ids]).expand(units, -1)
        losses = []
        for change in (1 + factor, 1 - factor):

            def multiply(module, args, units=units, change=change):
                x = args[0].view(units, 7, units, -1).clone()
                for unit in range(units):
                    x[unit, inside[0], unit] *= change
                return (x.view(args[0].shape),)

            handle = reader.register_forward_pre_hook(multiply)
            logits = model(input_ids=ids).logits
            handle.remove()
            labels = ids[:, example.prompt :]
            answers = F.cross_entropy(logits[:, example.prompt - 1 : -1].mT, labels, reduction="none")
            losses.append(answers.mean(1))
        expected = ((losses[0] - losses[1]) / (2 * factor)).abs().float()
        # central differences leave factor ** 2 = 1e-10 and 1e-16 / factor; the criterion is float32
        assert_near(found["snip", layer, kind].window(inside)[0], expected, rtol=2e-6, share=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_at_a_single_token_a_window_scores_as_the_token(lm, batch, name):
    for seen in seen_of(lm, batch, [name]).values():
        for position in (0, 2):
            inside = torch.zeros_like(batch.real())
            inside[:, position] = True
            assert torch.equal(seen.window(inside), seen.tokens()[:, position])  # zeros are added to it


def spoilt(seen, inside):
    """The same, with other numbers outside, which padding may hold."""
    if isinstance(seen, Summed):
        return replace(seen, parts=seen.parts.masked_fill(~inside[..., None], 1e6))
    reads = [
        replace(
            read,
            own=read.own.masked_fill(~inside[..., None, None], 1e6),
            other=read.other.masked_fill(~inside[..., None], 1e6),
        )
        for read in seen.reads
    ]
    return replace(seen, reads=reads)


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_values_outside_a_window_do_not_reach_its_score(lm, batch, name):
    inside = batch.in_prompt()
    for seen in seen_of(lm, batch, [name]).values():
        assert torch.equal(spoilt(seen, inside).window(inside), seen.window(inside))


@pytest.mark.parametrize("name", [name for name in CONTEXTUAL if name != "random"])
def test_a_window_of_no_tokens_scores_zero(lm, batch, name):
    for seen in seen_of(lm, batch, [name]).values():
        assert not seen.window(torch.zeros_like(batch.real())).any()


def test_at_a_token_griffins_shares_are_of_length_1_and_in_the_order_of_l2_norm(lm, batch):
    found = seen_of(lm, batch, ["griffin", "l2_norm"])
    for (name, *place), seen in found.items():
        if name == "griffin":
            shares, sizes = seen.tokens(), found["l2_norm", *place].tokens()
            length = torch.linalg.vector_norm(sizes, dim=-1, keepdim=True)
            torch.testing.assert_close(shares, sizes / length, rtol=2e-6, atol=0)  # a few roundings of 6e-8


def test_every_token_counts_alike_for_griffin(lm, batch):
    """A window's squares sum to the number of its tokens, whatever the tokens' sizes."""
    for seen in seen_of(lm, batch, ["griffin"]).values():
        total = seen.window(batch.real()).square().sum(-1)
        torch.testing.assert_close(total, batch.lengths.float(), rtol=2e-6, atol=0)  # sums of 64 roundings


def test_a_layer_that_is_silent_at_a_token_has_griffin_scores_of_zero_there():
    act = torch.tensor([0.0, 0.0, 3.0, 4.0]).view(1, 2, 2, 1)
    criterion = SUMMABLE["griffin"]
    expected = torch.tensor([[[0.0, 0.0], [0.6, 0.8]]])
    torch.testing.assert_close(criterion.finish(criterion.part(act, None)), expected, rtol=2e-7, atol=0)


def test_random_is_the_same_for_every_sample_and_token_and_differs_between_sites(lm, batch):
    seen = {(layer, kind): seen for (_, layer, kind), seen in seen_of(lm, batch, ["random"]).items()}
    assert len(seen) == 8
    for place, one in seen.items():
        values = one.tokens()[0, 0]
        assert values.shape == (4 if place[1] == "head" else 64,)
        assert torch.equal(one.tokens(), values.expand_as(one.tokens()))
        for windows in (one.window(batch.real()), one.window(batch.in_prompt())):  # sums of as many as it has
            assert torch.equal(windows.argsort(), values.argsort().expand_as(windows))
    every = torch.cat([one.tokens()[0, 0] for one in seen.values()])
    assert every.unique().numel() == every.numel()


def test_random_does_not_depend_on_the_model_nor_on_the_seed_of_the_process(make_lm, batch):
    torch.manual_seed(1)
    one = seen_of(make_lm("opt"), batch, ["random"])
    torch.manual_seed(2)
    other = seen_of(make_lm("llama", seed=5), batch, ["random"])
    assert all(torch.equal(one[key].tokens(), other[key].tokens()) for key in one)


def test_criteria_that_do_not_exist_are_refused_naming_those_that_do():
    for names in (["l2_norm", "magnitude"], []):
        with pytest.raises(UserError, match=r"criterion must name some of .*'l2_norm'.*'epenas'"):
            require("criterion", names)
    require("criterion", list(CRITERIA))


# Batches


@pytest.mark.parametrize("names", [FLASH, ["grasp"]], ids=["all but grasp", "grasp"])
def test_padding_and_batch_size_do_not_change_a_score(lm, examples, names):
    """Alone and unpadded, or a row among longer ones: other kernels, so equal up to float32 rounding."""
    # ~20 operations deep, twice as many for curvature: a few roundings (6e-8) of the largest score
    assert_rows_score_alone_as_together(lm, examples, names, rtol=1e-4, share=1e-5)


@pytest.mark.parametrize("names", [FLASH, ["grasp"]], ids=["all but grasp", "grasp"])
def test_padding_and_batch_size_do_not_change_a_score_beyond_rounding(lm64, examples, names):
    """In float64 what is left is the float32 of the criteria, of the loss and of Llama's norm."""
    assert_rows_score_alone_as_together(lm64, examples, names, rtol=2e-6, share=5e-7)


def assert_rows_score_alone_as_together(lm, examples, names, rtol, share):
    rows = examples([12, 5, 9, 16, 7, 13, 10, 3])
    batch = collate(rows)
    inside = every_other(batch)
    together = seen_of(lm, batch, names)
    for row, example in enumerate(rows):
        length = len(example.ids)
        for key, alone in seen_of(lm, collate([example]), names).items():
            expected = both(alone, inside[row : row + 1, :length])[0]
            assert_near(both(together[key], inside)[row][[*range(length), -1]], expected, rtol, share, key)


def test_scores_do_not_depend_on_the_other_rows(lm, examples):
    """Bit for bit: the shapes are the same, and only what stands in the other rows differs."""
    mine, others = examples([9], seed=1), examples([9, 9], seed=2)
    prompts = [Example(other.ids, 2) for other in others]  # longer answers too
    one, other = collate([*mine, *others]), collate([*mine, *prompts[::-1]])
    names = [name for name in CONTEXTUAL if name != "random"]
    first, second = (seen_of(lm, batch, names) for batch in (one, other))
    assert first.keys() == second.keys()
    for key in first:
        a, b = both(first[key], one.in_prompt()), both(second[key], other.in_prompt())
        assert torch.equal(a[0], b[0])
        assert not torch.equal(a[1], b[1])


def test_scores_do_not_depend_on_the_order_of_the_rows(lm64, examples):
    """Up to float32: matrices are cut into blocks by their rows."""
    rows = examples([12, 5, 9, 16])
    forth, back = collate(rows), collate(rows[::-1])
    first, second = seen_of(lm64, forth, CONTEXTUAL), seen_of(lm64, back, CONTEXTUAL)
    for key in first:
        for row, example in enumerate(rows):
            real = [*range(len(example.ids)), -1]
            expected = both(first[key], forth.real())[row][real]
            assert_near(both(second[key], back.real())[3 - row][real], expected, 2e-6, 5e-7, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_the_same_batch_has_the_same_scores_bit_for_bit(make_lm, batch, family, dtype):
    lm = make_lm(family, dtype=dtype)
    first, second = seen_of(lm, batch, CONTEXTUAL), seen_of(lm, batch, CONTEXTUAL)
    for key in first:
        assert torch.equal(both(first[key], batch.real()), both(second[key], batch.real()))


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


@pytest.mark.parametrize("name", [*FIRST_ORDER, "grasp"])
def test_a_row_without_an_answer_has_no_loss_and_gradient_scores_of_zero(lm, examples, name):
    batch = collate(examples([6, 8], prompts=[6, 4]))
    for seen in seen_of(lm, batch, [name]).values():
        first, second = both(seen, batch.real())
        assert not first.any()
        assert second.any()


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_half_precision_model_scores_nearly_as_the_same_model_in_float32(make_lm, batch, family, dtype):
    lm = make_lm(family, dtype=dtype)
    exact = lm._replace(model=deepcopy(lm.model).float())
    names = [name for name in CONTEXTUAL if name != "grasp" or dtype == torch.bfloat16]
    got, expected = seen_of(lm, batch, names), seen_of(exact, batch, names)
    for key in expected:
        one, other = (both(found[key], batch.real())[:, :-1][batch.real()] for found in (got, expected))
        windows = [found[key].window(batch.real()) for found in (got, expected)]
        for x, y in ((one, other), windows):
            assert x.dtype == torch.float32
            # of ~40 operations each is rounded to 5e-4 of itself in float16, to 4e-3 in bfloat16
            assert (x - y).norm() <= (0.02 if dtype == torch.float16 else 0.2) * y.norm(), key


def final_norm(lm):
    return (
        lm.model.model.decoder.final_layer_norm if hasattr(lm.model.model, "decoder") else lm.model.model.norm
    )


@pytest.mark.parametrize("name", ["grad_norm", "grad_norm_weight"])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_gradients_that_float16_cannot_hold_are_kept(make_lm, examples, monkeypatch, family, name):
    """The last norm makes all gradients small: the plain float16 ones are 0."""
    lm, batch = make_lm(family, dtype=torch.float16), collate(examples([40]))
    final_norm(lm).weight.fill_(2**-20)
    expected = seen_of(lm._replace(model=deepcopy(lm.model).float()), batch, [name])
    got = seen_of(lm, batch, [name])
    monkeypatch.setattr(scores, "LOSS_SCALES", (1.0,))
    unscaled = seen_of(lm, batch, [name])
    for key, seen in expected.items():
        assert not unscaled[key].tokens().any()
        # rounding of ~40 operations, and ReLUs that it turns over
        assert (got[key].tokens() - seen.tokens()).norm() < 0.1 * seen.tokens().norm()


@pytest.mark.parametrize(("factor", "passes"), [(1, 1), (8, 2), (256, 3)])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_loss_scale_that_overflows_gives_way_to_one_that_gives_the_same_scores(
    make_lm, examples, monkeypatch, family, factor, passes
):
    """The last norm makes all gradients large."""
    lm, batch, calls = make_lm(family, dtype=torch.float16), collate(examples([12, 7])), []
    final_norm(lm).weight.mul_(factor)
    expected = seen_of(lm._replace(model=deepcopy(lm.model).float()), batch, FIRST_ORDER)
    handle = lm.model.register_forward_hook(lambda *args: calls.append(1))
    got = seen_of(lm, batch, FIRST_ORDER)
    assert len(calls) == passes
    handle.remove()
    for key, seen in expected.items():
        one, other = (both(x, batch.real())[:, :-1][batch.real()] for x in (got[key], seen))
        assert (one - other).norm() < 0.25 * other.norm(), key  # as above, where the softmax is steeper
    monkeypatch.setattr(scores, "LOSS_SCALES", scores.LOSS_SCALES[passes - 1 :])
    alone = seen_of(lm, batch, FIRST_ORDER)
    for key in alone:
        assert torch.equal(got[key].tokens(), alone[key].tokens())


def test_bfloat16_and_float32_need_no_loss_scale(lm, make_lm, batch, monkeypatch):
    monkeypatch.setattr(scores, "LOSS_SCALES", ())
    for model in (lm, make_lm("opt", dtype=torch.bfloat16)):
        assert seen_of(model, batch, FIRST_ORDER)


@pytest.mark.parametrize("name", ["l2_norm", "l2_norm_pre", "plainact", "grad_norm_weight", "nwot", "jacov"])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_activations_that_are_not_finite_are_refused_naming_the_setting(
    make_lm, batch, hooks_on, family, name
):
    lm = make_lm(family, dtype=torch.float16)
    for layer, kind, reader, writer in projections(lm.model):
        if (layer, kind) == (1, "neuron"):
            (writer or reader).weight.mul_(60000)
    with pytest.raises(UserError, match=r"not finite in model\.dtype=float16: try bfloat16 or float32"):
        seen_of(lm, batch, [name])
    assert hooks_on(lm.model) == 0


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_float32_model_whose_activations_are_not_finite_is_refused_too(make_lm, batch, family):
    lm = make_lm(family)
    lm.model.get_input_embeddings().weight[int(batch.ids[0, 0])] = torch.inf
    for name in ("l2_norm", "plainact", "plainact_weight", "grasp"):
        with pytest.raises(UserError, match=r"model\.dtype=float32"):
            seen_of(lm, batch, [name])


def test_curvature_of_a_float16_model_is_refused(make_lm, batch):
    with pytest.raises(
        UserError, match=r"criterion=grasp needs model\.dtype=float32 or bfloat16, got float16"
    ):
        seen_of(make_lm("opt", dtype=torch.float16), batch, ["l2_norm", "grasp"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_fisher_of_a_half_precision_model_does_not_underflow(make_lm, examples, family, dtype):
    """(a·g)^2 falls below the smallest float16, 6e-8, where a·g is below 2.4e-4: at most tokens."""
    lm = make_lm(family, dtype=dtype)
    batch = collate(examples([40]))
    found = seen_of(lm, batch, ["fisher", "plainact"])
    tiny = 0
    for layer in range(4):
        fisher, plain = (found[name, layer, "neuron"].tokens() for name in ("fisher", "plainact"))
        # a neuron is one channel wide: fisher is plainact squared, exactly so but for one rounding each
        torch.testing.assert_close(fisher, plain.square(), rtol=1e-6, atol=1e-44)
        tiny += int(((fisher > 0) & (fisher < 6e-8)).sum())
    assert tiny > 100


# Cost


@pytest.mark.parametrize(
    ("names", "backwards"),
    [([*FIRST_ORDER, *FORWARD_ALONE, "jacov", "epenas"], 1), (["grasp"], 2), (list(CRITERIA), 2)],
    ids=["first order", "grasp", "all"],
)
def test_one_forward_and_one_backward_and_one_more_for_curvature(lm, batch, names, backwards):
    calls = {"forward": 0, "backward": 0}

    def backward(grad):
        calls["backward"] += 1

    def forward(module, args, output):
        calls["forward"] += 1
        output.logits.register_hook(backward)

    handle = lm.model.register_forward_hook(forward)
    found = seen_of(lm, batch, names)
    handle.remove()
    assert calls == {"forward": 1, "backward": backwards}
    assert len(found) == len(names) * 8


@pytest.mark.parametrize("name", CRITERIA)
def test_only_criteria_that_need_gradients_record_a_graph(lm, batch, name):
    graphs = []

    def forward(module, args, output):
        graphs.append((torch.is_grad_enabled(), output.logits.requires_grad))

    handle = lm.model.register_forward_hook(forward)
    seen_of(lm, batch, [name])
    handle.remove()
    needs = name not in FORWARD_ALONE
    assert needs_gradient(name) == needs
    assert graphs == [(needs, needs)]


def test_all_criteria_together_score_as_each_alone(lm, batch):
    """Bit for bit; `grasp`, which takes another attention, has a test with a tolerance."""
    names = [name for name in CRITERIA if name != "grasp"]
    together = seen_of(lm, batch, names)
    for name in names:
        alone = seen_of(lm, batch, [name])
        assert len(alone) == 8
        for key, seen in alone.items():
            if name in STATISTICS:
                assert torch.equal(seen.values, together[key].values)
            else:
                assert torch.equal(both(seen, batch.real()), both(together[key], batch.real()))


def test_a_graph_is_recorded_where_the_caller_wants_none(lm, batch):
    expected = seen_of(lm, batch, ["plainact"])
    with torch.no_grad():
        got = seen_of(lm, batch, ["plainact"])
    assert all(torch.equal(got[key].tokens(), expected[key].tokens()) for key in expected)


@pytest.mark.parametrize(
    "names", [["l2_norm"], FIRST_ORDER, list(CRITERIA)], ids=["one", "first order", "all"]
)
def test_scoring_leaves_no_hook_and_no_gradient_on_the_model(lm, batch, hooks_on, names):
    found = seen_of(lm, batch, names)
    assert hooks_on(lm.model) == 0
    assert all(weight.grad is None and not weight.requires_grad for weight in lm.model.parameters())
    for (name, _, _), seen in found.items():
        assert not (seen.values if name in STATISTICS else both(seen, batch.real())).requires_grad


@pytest.mark.parametrize("name", ["l2_norm", "l2_norm_pre", "plainact", "plainact_weight", "grasp"])
def test_an_exception_on_the_way_comes_through_and_leaves_no_hook(lm, batch, hooks_on, name):
    """Forwards, in hooks of the first backward, and after the second."""

    def fail(name, site, seen):
        if site.layer == 2:
            raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"):
        score(lm.model, batch, [name], fail)
    assert hooks_on(lm.model) == 0
    assert all(weight.grad is None for weight in lm.model.parameters())


@pytest.mark.parametrize(
    "names",
    [["plainact"], ["grasp"], FIRST_ORDER, list(CRITERIA)],
    ids=["one", "grasp", "first order", "all"],
)
def test_scoring_lets_go_of_the_graph(lm, batch, names):
    """What is saved for the backward is as large as all activations: kept, it adds up batch by batch."""

    class Saved:
        def __init__(self, values):
            self.values = values

    held = weakref.WeakSet()

    def save(values):
        saved = Saved(values.detach())  # or what is saved would itself hold the graph
        held.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.values):
        score(lm.model, batch, names, lambda *args: None, means=drawn_means(lm))
    gc.collect()
    assert len(held) == 0


def test_scoring_returns_the_input_states_of_the_taps(lm, batch):
    hidden = lm.model(
        input_ids=batch.ids, attention_mask=batch.real().long(), output_hidden_states=True
    ).hidden_states
    for name in ("l2_norm", "plainact"):
        states = score(lm.model, batch, [name], lambda *args: None, taps=[0, 2])
        assert set(states) == {0, 2}
        for tap, state in states.items():
            assert torch.equal(state, hidden[tap])
            assert not state.requires_grad
