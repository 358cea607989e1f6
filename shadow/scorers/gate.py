"""Scorers that see the gate of the FFN before what it gates is read."""

from collections.abc import Sequence

from torch import Tensor

from shadow.data.batches import pooled
from shadow.models.sites import Kind, Point, Site, SiteKey
from shadow.scorers.recipe import TrainingFree
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
