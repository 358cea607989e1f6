"""|x - centre| of a signal, times a factor of each unit: what most rules without training come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from shadow.data.batches import pooled
from shadow.models.sites import Kind, Point, Site, SiteKey
from shadow.plans.stand_ins import StandIn
from shadow.signals import Signal


@dataclass(frozen=True)
class Scaled:
    """kind: of the units; point: where they are seen. factors: [U] of each site; none: 1. centres: one number
    of each site; none: 0."""

    kind: Kind
    point: Point
    factors: Mapping[SiteKey, Tensor] = field(default_factory=dict)
    centres: Mapping[SiteKey, float] = field(default_factory=dict)

    @property
    def compiled(self) -> bool:
        """Whether a compiled step can ask it."""
        return type(self) is Scaled and (self.kind, self.point) == ("channel", "site") and not self.centres

    @property
    def scaled(self) -> bool:
        return bool(self.factors)

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset({self.kind})

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [seen_at(site, self.point) for site in sites if site.kind == self.kind]

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        key = signal.layer, signal.slot or self.kind
        x = (x.float() - self.centres.get(key, 0.0)).abs()
        if key in self.factors:
            x = x * self.factors[key].to(x.device)
        return {key: pooled(x, pool)}

    def weights_at(self, site: Site) -> float:
        """A factor of each unit that a token can read."""
        return site.active if site.key in self.factors else 0


@dataclass(frozen=True, kw_only=True)
class Backed(Scaled):
    """With a stand-in of its own."""

    stand_in: StandIn


def seen_at(site: Site, point: Point) -> Signal:
    return Signal(site.layer, point, site.slot if point == "site" else "")
