"""Scorers that see the very input that they decide about."""

from collections.abc import Sequence

from torch import Tensor

from shadow.data.batches import pooled
from shadow.models.sites import Kind, Point, Site, SiteKey
from shadow.scorers.recipe import TrainingFree
from shadow.signals import Signal


class InputMagnitude(TrainingFree):
    """TEAL (arXiv 2408.14690): a channel, an input of a projection, matters as much as its |x|.

    With sparsity.scope=threshold as the authors have it: a threshold for each input, of the same share in all
    of them. Theirs come from a histogram taken to be symmetric, ours are quantiles of |x| on the calibration;
    q, k and v share one threshold here, as do gate and up, for they read one input.
    """

    kinds: frozenset[Kind] = frozenset({"channel"})
    points: frozenset[Point] = frozenset({"site"})
    compiled = True

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [Signal(site.layer, "site", site.slot) for site in sites if site.kind == "channel"]

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        return {(signal.layer, signal.slot): pooled(x.float().abs(), pool)}
