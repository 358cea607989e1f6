"""Two methods at once, each for units of its own kinds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.models.sites import Kind, Site, SiteKey
from shadow.plans.facts import Facts, Traits
from shadow.plans.stand_ins import Guesses, Reads, StandIn, Zero
from shadow.scorers.protocol import Brings, Scorer
from shadow.scorers.recipe import Ingredients, Needs, Recipe
from shadow.signals import Signal


class Joined:
    """parts: recipes that score different kinds, as TEAL channels and a two-step head rows."""

    def __init__(self, parts: Sequence[Recipe]) -> None:
        self.parts = parts
        kinds = [kind for part in parts for kind in part.traits("", 1).kinds]
        if len(parts) < 2 or len(set(kinds)) < len(kinds):
            raise UserError(
                f"predictor.parts must be several methods that score different kinds, got {sorted(kinds)}"
            )

    def traits(self, criterion: str, layers: int) -> Traits:
        each = [part.traits(criterion, layers) for part in self.parts]
        return Traits(
            name=" and ".join(one.name for one in each),
            kinds=frozenset[Kind]().union(*(one.kinds for one in each)),
            points=frozenset().union(*(one.points for one in each)),
            looks=any(one.looks for one in each),
            steps=sum(one.steps for one in each),
            first=max(one.first for one in each),
            pooled=any(one.pooled for one in each),
            by_criterion=any(one.by_criterion for one in each),
            stands_in=ByKind.__name__,
        )

    def needs(self, criterion: str) -> Needs:
        each = [part.needs(criterion) for part in self.parts]
        return Needs(
            traces=any(one.traces for one in each),
            means=any(one.means for one in each),
            sample=any(one.sample for one in each),
        )

    def refuses(self, criterion: str, facts: Facts) -> str | None:
        if any(part.needs(criterion).fit or part.traits(criterion, 1).looks for part in self.parts):
            return (
                f"{facts.scorer.name} joins methods that are not fitted and look at no sample: give such a "
                "one by itself"
            )
        found = (part.refuses(criterion, facts) for part in self.parts)
        return next((sentence for sentence in found if sentence is not None), None)

    def build(self, model: PreTrainedModel, have: Ingredients) -> "JoinedScorers":
        scorers = [part.build(model, have) for part in self.parts]
        return JoinedScorers(scorers, find_sites(model, sorted({k for one in scorers for k in one.kinds})))


class JoinedScorers:
    """sites: all that there are of their kinds."""

    def __init__(self, parts: Sequence[Scorer], sites: Sequence[Site]) -> None:
        self.parts = parts
        self.kinds: frozenset[Kind] = frozenset().union(*(part.kinds for part in parts))
        self.asked = [frozenset(part.signals(sites)) for part in parts]
        own = {kind: part.stand_in for part in parts if isinstance(part, Brings) for kind in part.kinds}
        self.stand_in = ByKind(own)

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        each = [part.signals([site for site in sites if site.kind in part.kinds]) for part in self.parts]
        return list(dict.fromkeys(signal for signals in each for signal in signals))

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> Mapping[SiteKey, Tensor]:
        found: dict[SiteKey, Tensor] = {}
        for part, asked in zip(self.parts, self.asked, strict=True):
            if signal in asked:
                found |= part.scores(signal, x, pool)
        return found

    def weights_at(self, site: Site) -> float:
        each = [part for part in self.parts if site.kind in part.kinds]
        return sum(part.weights_at(site) for part in each if isinstance(part, Reads))


@dataclass(frozen=True)
class ByKind:
    """The stand-in of each kind that has one; nothing for others."""

    own: Mapping[Kind, StandIn]

    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        return self.own.get(site.kind, Zero())(site, x, keep)

    def guesses(self, site: Site, x: Tensor) -> Tensor:
        found = self.own.get(site.kind)
        assert isinstance(found, Guesses), "a scorer of rows brings one"
        return found.guesses(site, x)

    def weights_at(self, site: Site) -> float:
        found = self.own.get(site.kind)
        return found.weights_at(site) if isinstance(found, Reads) else 0
