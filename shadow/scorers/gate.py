"""Scorers that see the gate of the FFN, or what it is multiplied by, before the rest is read."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import pooled
from shadow.models.kinds import find_sites
from shadow.models.layouts import is_gated
from shadow.models.sites import Kind, Point, Site, SiteKey
from shadow.plans.facts import Facts
from shadow.scorers.calibrated import mean_magnitudes, sent_elsewhere
from shadow.scorers.recipe import Ingredients, Needs, TrainingFree
from shadow.scorers.scaled import Scaled
from shadow.signals import Signal


class GateMagnitude(TrainingFree):
    """CATS (arXiv 2404.08763): a neuron matters as much as |act(gate)|, which is computed for all of them.

    So up and down are read of the neurons that stay, and the gate whole. With sparsity.scope=threshold as the
    authors have it; their thresholds are learnt on the RefinedWeb, ours on the calibration. Without a gate
    (OPT, GPT-NeoX, Falcon) the neurons themselves are seen, and only what reads them is left unread.
    """

    kinds: frozenset[Kind] = frozenset({"neuron"})
    points: frozenset[Point] = frozenset({"gate"})

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [Signal(site.layer, "gate") for site in sites if site.kind == "neuron"]

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        return {(signal.layer, "neuron"): pooled(x.float().abs(), pool)}


class GateTimesMeanUp(TrainingFree):
    """CHESS (arXiv 2409.01366): a neuron matters as much as |act(gate)| times the calibration's mean |up|.

    The authors' threshold of a neuron, T / E|up|, is one threshold T of this product. They also prune chosen
    inputs of attention, which is left out here, and read the mean of |up| on C4.
    """

    kinds: frozenset[Kind] = frozenset({"neuron"})
    points: frozenset[Point] = frozenset({"gate"})

    def needs(self, criterion: str) -> Needs:
        return Needs(sample=True)

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return without_gate(facts) or sent_elsewhere(facts)

    def build(self, model: PreTrainedModel, have: Ingredients) -> Scaled:
        ups = [Signal(site.layer, "up") for site in find_sites(model, ["neuron"])]
        means = mean_magnitudes(model, ups, have.sample())
        return Scaled("neuron", "gate", {(signal.layer, "neuron"): mean for signal, mean in means.items()})


class UpMagnitude(TrainingFree):
    """M-COUNTDOWN (EMNLP 2025): a neuron matters as much as |up|, which is computed for all of them.

    So gate and down are read of the neurons that stay. As the paper's account has it; its code was not read.
    """

    kinds: frozenset[Kind] = frozenset({"neuron"})
    points: frozenset[Point] = frozenset({"up"})

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        return without_gate(facts)

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [Signal(site.layer, "up") for site in sites if site.kind == "neuron"]

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        return {(signal.layer, "neuron"): pooled(x.float().abs(), pool)}


def without_gate(facts: Facts) -> str | None:
    """Refuses models whose neurons nothing multiplies."""
    if is_gated(facts.config.model_type):
        return None
    return (
        f"{facts.scorer.name} reads what a gate is multiplied by, and the neurons of "
        f"{facts.config.model_type} have no gate: use predictor=cats or teal"
    )
