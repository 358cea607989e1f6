"""Weight forms against gradients that autograd leaves on the weights themselves."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from observed import seen_of

from shadow.criteria.weight import WEIGHT_FORMS
from shadow.data.batches import collate

FORMS = {
    "plainact_weight": lambda pairs: sum(float((w * g).abs().sum()) for w, g in pairs),
    "grad_norm_weight": lambda pairs: sum(float((g * g).sum()) for _, g in pairs) ** 0.5,
}
LENGTHS = [6, 4, 7]


def owned(model):
    """-> {(layer, kind): the projections whose weights the units own}, not by the layout table."""
    places = {}
    for index in range(4):
        if model.config.model_type == "opt":
            layer = model.model.decoder.layers[index]
            places[index, "head"], places[index, "neuron"] = [layer.self_attn.out_proj], [layer.fc1]
        else:
            layer = model.model.layers[index]
            places[index, "head"] = [layer.self_attn.o_proj]
            places[index, "neuron"] = [layer.mlp.gate_proj, layer.mlp.up_proj]
    return places


def of_unit(kind, unit, matrix):
    """Its rows of what writes neurons; its columns of what reads heads, which are 8 wide."""
    return matrix[unit] if kind == "neuron" else matrix[:, 8 * unit : 8 * (unit + 1)]


def reference(lm, example, inside, start):
    """One sample alone; inside: the positions at which the weights count -> {(layer, kind): (weight, grad)s}.

    Elsewhere a copy of the weights is used that no gradient reaches, so every weight's `.grad` is what one
    backward leaves for these positions. The loss is that of the tokens from `start` on.
    """
    model = deepcopy(lm.model)
    places = owned(model)
    where = torch.zeros(len(example.ids), 1, dtype=torch.bool)
    where[inside] = True

    def only_inside(module, args, output):
        return torch.where(where, output, F.linear(args[0], module.weight.detach(), module.bias))

    for modules in places.values():
        for module in modules:
            module.weight.requires_grad_(True)
            module.register_forward_hook(only_inside)
    ids = torch.tensor(example.ids)
    F.cross_entropy(model(input_ids=ids[None]).logits[0, start - 1 : -1], ids[start:]).backward()
    return {
        place: [(module.weight.detach(), module.weight.grad) for module in modules]
        for place, modules in places.items()
    }


def by_hand(name, kind, pairs):
    """-> [U], unit by unit."""
    return torch.tensor(
        [
            FORMS[name]([(of_unit(kind, unit, w), of_unit(kind, unit, g)) for w, g in pairs])
            for unit in range(4 if kind == "head" else 64)
        ]
    )


def assert_near(got, expected):
    # the criteria's float32: sums of at most 7 tokens, in which what cancels is a share of the largest
    torch.testing.assert_close(got, expected, rtol=5e-6, atol=5e-7 * float(expected.max()))


def test_every_weight_form_has_a_test():
    assert FORMS.keys() == WEIGHT_FORMS.keys()


@pytest.mark.parametrize("name", FORMS)
def test_a_windows_scores_are_of_the_gradient_that_one_backward_leaves_on_the_weights(lm64, examples, name):
    """Of a window of all tokens, of one with gaps, and of the prompt."""
    rows = examples(LENGTHS)
    batch = collate(rows)
    found = seen_of(lm64, batch, [name])
    gaps = batch.real() & (torch.arange(batch.ids.shape[1]) % 2 == 1)
    for inside in (batch.real(), gaps, batch.in_prompt()):
        for row, example in enumerate(rows):
            positions = inside[row].nonzero()[:, 0]
            for place, pairs in reference(lm64, example, positions, example.prompt).items():
                assert_near(found[name, *place].window(inside)[row], by_hand(name, place[1], pairs))


@pytest.mark.parametrize("name", FORMS)
def test_a_tokens_scores_are_of_the_gradient_that_reaches_the_weights_there(lm64, examples, name):
    rows = examples(LENGTHS)
    found = seen_of(lm64, collate(rows), [name])
    for row, example in enumerate(rows):
        for position in range(len(example.ids)):
            for place, pairs in reference(lm64, example, [position], example.prompt).items():
                assert_near(found[name, *place].tokens()[row, position], by_hand(name, place[1], pairs))


@pytest.mark.parametrize("name", FORMS)
def test_the_loss_may_be_that_of_every_next_token(lm64, examples, name):
    (example,) = examples([7])
    batch = collate([example])
    found = seen_of(lm64, batch, [name], "next_token")
    for place, pairs in reference(lm64, example, range(7), 1).items():
        assert_near(found[name, *place].window(batch.real())[0], by_hand(name, place[1], pairs))


@pytest.mark.parametrize("name", FORMS)
def test_at_a_single_token_a_window_scores_as_the_token(lm64, batch, name):
    for seen in seen_of(lm64, batch, [name]).values():
        for position in (0, 2):
            inside = torch.zeros_like(batch.real())
            inside[:, position] = True
            assert_near(seen.window(inside), seen.tokens()[:, position])


@pytest.mark.parametrize("name", FORMS)
def test_what_cancels_over_tokens_cancels_in_a_windows_score(lm64, batch, name):
    """A window scores below the sum of its tokens, unlike plainact: the weight's gradient is a sum."""
    below = []
    for seen in seen_of(lm64, batch, [name]).values():
        window = seen.window(batch.real())
        total = seen.tokens().masked_fill(~batch.real()[..., None], 0).sum(1)
        assert (window <= total * (1 + 1e-6)).all()  # float32
        below.append((window < 0.9 * total)[total > 0].float().mean())
    assert min(below) > 0.5


def test_a_neuron_that_relu_silences_everywhere_scores_zero(make_lm, batch):
    lm = make_lm("opt")
    for modules in owned(lm.model).values():
        if modules[0].out_features == 64:
            modules[0].bias[5] = -100.0
    for (name, layer, kind), seen in seen_of(lm, batch, list(FORMS)).items():
        if kind == "neuron":
            for values in (seen.tokens()[batch.real()], seen.window(batch.real())):
                assert not values[:, 5].any(), (name, layer)
                assert values.any()
