"""Scorers that say the same of every prompt: the mean over calibration, or random numbers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shadow.models.sites import Kind, Site, SiteKey, kind_of
from shadow.plans.stand_ins import StandIn
from shadow.signals import Signal


class Fixed:
    """scores: [U] of each site that it scores."""

    def __init__(self, scores: Mapping[SiteKey, Tensor]) -> None:
        self.fixed = dict(scores)

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(kind_of(slot) for _, slot in self.fixed)

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return []

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> Mapping[SiteKey, Tensor]:
        return self.fixed


class Compensated(Fixed):
    """With a stand-in of its own."""

    def __init__(self, scores: Mapping[SiteKey, Tensor], stand_in: StandIn) -> None:
        super().__init__(scores)
        self.stand_in = stand_in


def random_scores(sites: Sequence[Site], seed: int) -> dict[SiteKey, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {site.key: torch.rand(site.units, generator=draw, dtype=torch.float32) for site in sites}
