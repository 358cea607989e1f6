"""What a scorer is: signals in, scores of units out; higher stays longer."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import Batch
from shadow.models.sites import Kind, Site, SiteKey
from shadow.plans.facts import Traits
from shadow.plans.stand_ins import StandIn, kind_of_stand_in
from shadow.signals import Signal


class Scorer(Protocol):
    """kinds: those that it scores; to plan another raises."""

    @property
    def kinds(self) -> frozenset[Kind]: ...

    def signals(self, sites: Sequence[Site]) -> Sequence[Signal]:
        """The tensors that it must see to score these sites; none: it is asked once, with an empty one."""
        ...

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> Mapping[SiteKey, Tensor]:
        """x: [B, T, N] at this signal -> scores of every unit of the sites that it decides.

        They are [B, T, U] per token, or with pool: bool [B, T], the positions that decide together, [B, U];
        of a scorer that sees nothing, [U].
        """
        ...


@runtime_checkable
class Brings(Protocol):
    """A scorer that goes with a stand-in of its own, which `stand_in="auto"` takes."""

    @property
    def stand_in(self) -> StandIn: ...


@runtime_checkable
class Looks(Protocol):
    """A scorer that runs a dense pass over the sample, or over its prompt, before the sparse one."""

    def look(self, model: PreTrainedModel, batch: Batch) -> None: ...


def traits_of(scorer: Scorer, sites: Sequence[Site]) -> Traits:
    """By its signals at these sites, and by `first`, `pooled`, `compiled` and `scaled` where it has them."""
    signals = scorer.signals(sites)
    behind = {site.layer for site in sites if site.behind}
    first = min({signal.layer for signal in signals} - behind, default=0)
    return Traits(
        name=type(scorer).__name__,
        kinds=scorer.kinds,
        points=frozenset(signal.point for signal in signals),
        looks=isinstance(scorer, Looks),
        steps=len(signals),
        first=getattr(scorer, "first", first),
        pooled=getattr(scorer, "pooled", False),
        compiled=getattr(scorer, "compiled", False),
        scaled=getattr(scorer, "scaled", False),
        stands_in=brought_by(scorer),
    )


def brought_by(scorer: object) -> str:
    """What kind of stand-in it brings; empty: none."""
    return kind_of_stand_in(scorer.stand_in) if isinstance(scorer, Brings) else ""


ONCE = Signal(0, "layer_input")  # what a scorer that sees nothing is asked with
