"""Scorers of neurons that read what the FFN reads, and guess what it will write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from shadow.data.batches import pooled
from shadow.errors import require_whole
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers, require_layout
from shadow.models.sites import Kind, Point, Site, SiteKey, values_of
from shadow.plans.facts import Facts
from shadow.scorers.gate import without_gate
from shadow.scorers.low_rank import LowRank, copies_of
from shadow.scorers.recipe import Ingredients, TrainingFree
from shadow.signals import Signal

ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "activation")  # names of one setting
STORED = 16  # bits of a weight; a sign is one of them


class OfOwnInput(TrainingFree):
    """Of what all of them are."""

    kinds: frozenset[Kind] = frozenset({"neuron"})
    points: frozenset[Point] = frozenset({"site"})

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        if facts.experts == 1:
            return None
        return (
            f"{facts.scorer.name} copies the projections that write neurons, and experts have none of their "
            "own: use predictor=cats or teal"
        )


class SignBits(OfOwnInput):
    """SparseInfer (arXiv 2411.12692): a neuron behind a ReLU fires if most products x_i W_ji are above 0.

    The score is how many are, less how many are below, from signs alone: one bit of each weight of the gate
    is read. The authors' alpha of a layer, which has more stay, is a threshold on it: sparsity=threshold
    learns one for the level. A bias is left out, as there. Bits are counted of weights of 16.
    """

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        name = activation_of(facts.config)
        if name is not None and name.startswith("relu"):
            return super().refuses(criterion, facts)
        return (
            f"{facts.scorer.name} guesses which neurons a ReLU silences, and this model's activation is "
            f"{name}: use predictor=svdp, cats or teal"
        )

    def build(self, model: PreTrainedModel, have: Ingredients) -> "Signs":
        sites = find_sites(model, ["neuron"])
        return Signs({site.layer: values_of(site.writers[0])[: site.units].float().sign() for site in sites})


class TruncatedGate(OfOwnInput):
    """SVDP (arXiv 2603.14110): |act(gate)| of the gate's truncated singular value decomposition.

    Where the activation is a ReLU, the gate itself, so that what is silenced most goes first. The authors'
    models have ReLUs alone, and their thresholds a recall on calibration; here the level decides.
    """

    def __init__(self, rank: int) -> None:
        require_whole("predictor.rank", rank, 1)
        self.rank = rank

    def build(self, model: PreTrainedModel, have: Ingredients) -> "Copies":
        sites = find_sites(model, ["neuron"])
        relu = str(activation_of(model.config)).startswith("relu")
        gates = {site.layer: copies_of(site.writers[:1], site.units, self.rank)[:1] for site in sites}
        return Copies(gates, {} if relu else nonlinearities_of(model), signed=relu)


class TruncatedNeurons(OfOwnInput):
    """D-COUNTDOWN (EMNLP 2025): |act(gate) * up|, what down is read by, predicted from the FFN's input.

    The authors train a net of low rank for it; here it is truncated singular value decompositions of both
    projections, with no training. As the paper's account has it; its code was not read.
    """

    def __init__(self, rank: int) -> None:
        require_whole("predictor.rank", rank, 1)
        self.rank = rank

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return without_gate(facts) or super().refuses(criterion, facts)

    def build(self, model: PreTrainedModel, have: Ingredients) -> "Copies":
        sites = find_sites(model, ["neuron"])
        copies = {site.layer: copies_of(site.writers, site.units, self.rank) for site in sites}
        return Copies(copies, nonlinearities_of(model), signed=False)


@dataclass(frozen=True)
class Signs:
    """signs: [F, E] of the gate's weights, of each layer."""

    signs: Mapping[int, Tensor]
    kinds: frozenset[Kind] = frozenset({"neuron"})

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return inputs_of(sites)

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        signs = self.signs[signal.layer].to(x.device)
        return {(signal.layer, "neuron"): pooled((x.sign().to(signs) @ signs.T).float(), pool)}

    def weights_at(self, site: Site) -> float:
        return self.signs[site.layer].numel() / STORED


@dataclass(frozen=True)
class Copies:
    """copies: of the gate, and of what multiplies it, in low rank, of each layer; nonlinearities: what the
    gate meets in each, if anything; signed: whether the product itself is the score, or its size."""

    copies: Mapping[int, Sequence[LowRank]]
    nonlinearities: Mapping[int, nn.Module]
    signed: bool
    kinds: frozenset[Kind] = frozenset({"neuron"})

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return inputs_of(sites)

    @torch.no_grad()
    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        gate, *others = (copy(x.float()) for copy in self.copies[signal.layer])
        found = self.nonlinearities[signal.layer](gate) if self.nonlinearities else gate
        for other in others:
            found = found * other
        return {(signal.layer, "neuron"): pooled(found if self.signed else found.abs(), pool)}

    def weights_at(self, site: Site) -> float:
        return sum(copy.down.numel() + copy.up.numel() for copy in self.copies[site.layer])


def inputs_of(sites: Sequence[Site]) -> list[Signal]:
    """What the FFNs of these neurons read."""
    return [Signal(site.layer, "site", "gate_up") for site in sites if site.kind == "neuron"]


def nonlinearities_of(model: PreTrainedModel) -> dict[int, nn.Module]:
    path = require_layout(model.config.model_type).nonlinearity
    return {number: layer.get_submodule(path) for number, layer in enumerate(find_layers(model))}


def activation_of(config: PretrainedConfig) -> str | None:
    """As the text model's config names it."""
    config = config.get_text_config()
    return next((getattr(config, name) for name in ACTIVATIONS if getattr(config, name, None)), None)
