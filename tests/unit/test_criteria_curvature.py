"""`grasp` against the whole Hessian, and that its second backward mixes nothing up."""

import pytest
import torch
import torch.nn.functional as F
from observed import drawn_means, seen_of
from torch.nn.attention import SDPBackend, sdpa_kernel

from shadow.criteria import CRITERIA
from shadow.criteria.one_pass import score
from shadow.criteria.statistics import STATISTICS
from shadow.data.batches import collate
from shadow.models.load import random_llama, random_opt

LAYERS, HIDDEN, HEADS, NEURONS = 2, 8, 4, 6
UNITS = {"head": (HEADS, HIDDEN // HEADS), "neuron": (NEURONS, 1)}


@pytest.fixture(params=["opt", "llama"])
def tiny64(request):
    """So small that its Hessian is a matrix of 112 rows; Llama's 4 heads share 2 keys."""
    if request.param == "opt":
        lm = random_opt(LAYERS, HIDDEN, HEADS, NEURONS, 64, 3, torch.float64, None)
    else:
        lm = random_llama(LAYERS, HIDDEN, HEADS, 2, NEURONS, 64, 3, torch.float64, None)
    lm.model.eval().requires_grad_(False)
    return lm


def readers(model):
    """-> {(layer, kind): the projection that reads the units}, not by the layout table."""
    places = {}
    for index in range(LAYERS):
        if model.config.model_type == "opt":
            layer = model.model.decoder.layers[index]
            places[index, "head"], places[index, "neuron"] = layer.self_attn.out_proj, layer.fc2
        else:
            layer = model.model.layers[index]
            places[index, "head"], places[index, "neuron"] = layer.self_attn.o_proj, layer.mlp.down_proj
    return places


class Shifted:
    """The loss of one sample as a function of shifts added to what the projections read, in one vector."""

    def __init__(self, lm, example, start):
        self.model, self.ids, self.start = lm.model, torch.tensor(example.ids), start
        self.places = readers(lm.model)
        self.acts = {}
        tokens = len(self.ids)
        self.widths = [tokens * (HIDDEN if kind == "head" else NEURONS) for _, kind in self.places]

    def split(self, vector):
        """-> {(layer, kind): [T, U, D]}"""
        parts = vector.split(self.widths)
        return {place: part.view(len(self.ids), *UNITS[place[1]]) for place, part in zip(self.places, parts)}

    def zeros(self):
        return torch.zeros(sum(self.widths), dtype=torch.float64)

    def loss(self, vector):
        shifts, handles = self.split(vector), []

        def hook_of(place):
            def hook(module, args):
                act = args[0].view(shifts[place].shape)
                self.acts[place] = act.detach()
                return ((act + shifts[place]).view(args[0].shape),)

            return hook

        for place, module in self.places.items():
            handles.append(module.register_forward_pre_hook(hook_of(place)))
        with sdpa_kernel(SDPBackend.MATH):  # the only one with second derivatives
            logits = self.model(input_ids=self.ids[None]).logits[0]
        for handle in handles:
            handle.remove()
        return F.cross_entropy(logits[self.start - 1 : -1], self.ids[self.start :])

    def gradient(self, at):
        at = at.clone().requires_grad_(True)
        return torch.autograd.grad(self.loss(at), at)[0]


@pytest.mark.parametrize("loss", ["answer", "next_token"])
def test_grasp_is_the_activation_times_the_hessian_times_the_gradient(tiny64, examples, loss):
    """Of every unit at every token, and over windows; each row of a padded batch has a Hessian of its own."""
    rows = examples([4, 3])
    batch = collate(rows)
    found = seen_of(tiny64, batch, ["grasp"], loss)
    for row, example in enumerate(rows):
        shifted = Shifted(tiny64, example, example.prompt if loss == "answer" else 1)
        hessian = torch.autograd.functional.hessian(shifted.loss, shifted.zeros())
        products = shifted.split(hessian @ shifted.gradient(shifted.zeros()))
        for place, product in products.items():
            expected = (shifted.acts[place] * product).sum(-1).float()
            share = 1e-6 * float(expected.abs().max())  # of the loss and of Llama's norm, in float32
            seen = found["grasp", *place]
            torch.testing.assert_close(
                seen.tokens()[row, : len(example.ids)], expected, rtol=1e-5, atol=share
            )
            for inside in (batch.real(), batch.in_prompt(), batch.real() & ~batch.in_prompt()):
                total = expected[inside[row, : len(example.ids)]].sum(0)
                torch.testing.assert_close(seen.window(inside)[row], total, rtol=1e-5, atol=4 * share)


def test_grasp_has_both_signs(tiny64, examples):
    batch = collate(examples([4, 3, 6]))
    scores = torch.cat(
        [seen.tokens()[batch.real()].flatten() for seen in seen_of(tiny64, batch, ["grasp"]).values()]
    )
    assert (scores > 0).sum() > 20
    assert (scores < 0).sum() > 20


def test_less_of_a_unit_changes_half_the_squared_gradient_by_minus_grasp(examples):
    """What the sign means, by finite differences; `less` is a shift by a share of the activation."""
    lm = random_opt(LAYERS, HIDDEN, HEADS, NEURONS, 64, 3, torch.float64, None)  # Llama's norm is float32
    lm.model.eval().requires_grad_(False)
    (example,) = examples([4])
    batch, step = collate([example]), 1e-5
    found, shifted = seen_of(lm, batch, ["grasp"]), Shifted(lm, example, example.prompt)
    shifted.gradient(shifted.zeros())
    acts = shifted.acts
    for place, act in acts.items():
        changes = []
        for unit in range(act.shape[1]):
            itself = shifted.zeros()
            shifted.split(itself)[place][:, unit] = act[:, unit]
            less, more = (shifted.gradient(itself * sign * step).square().sum() / 2 for sign in (-1, 1))
            changes.append(float((more - less) / (2 * step)))
        expected = torch.tensor(changes)
        got = found["grasp", *place].window(batch.real())[0]
        # central differences leave step ** 2 and 1e-16 / step; the loss that is scored is float32
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_what_is_asked_for_together_with_grasp_scores_as_without(lm64, batch):
    """The second backward must not reach the hooks of the first. Float32 rounding: attention is another."""
    others = [name for name in CRITERIA if name != "grasp"]
    together, alone = seen_of(lm64, batch, ["grasp", *others]), seen_of(lm64, batch, others)
    assert len(alone) == 8 * len(others)
    for (name, *place), seen in alone.items():
        other = together[name, *place]
        if name in STATISTICS:
            pairs = [(other.values[batch.real()], seen.values[batch.real()])]
        else:
            pairs = [(other.tokens()[batch.real()], seen.tokens()[batch.real()])]
            pairs.append((other.window(batch.in_prompt()), seen.window(batch.in_prompt())))
        for got, expected in pairs:
            share = 5e-7 * float(expected.abs().max())
            torch.testing.assert_close(got, expected, rtol=2e-6, atol=share)


def test_grasp_scores_alone_as_together_with_all_others(lm, batch):
    together, alone = seen_of(lm, batch, list(CRITERIA)), seen_of(lm, batch, ["grasp"])
    for key, seen in alone.items():
        assert torch.equal(together[key].tokens(), seen.tokens())
        assert torch.equal(together[key].window(batch.real()), seen.window(batch.real()))


def test_every_criterion_is_received_once_at_every_site(lm, batch):
    """Two backward passes run through the same hooks."""
    calls = []

    def receive(name, site, seen):
        calls.append((name, site.layer, site.kind))

    score(lm.model, batch, list(CRITERIA), receive, means=drawn_means(lm))
    assert len(calls) == len(set(calls)) == 8 * len(CRITERIA)
