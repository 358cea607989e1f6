"""Scorers that see the very input that they decide about."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import pooled
from shadow.models.kinds import find_sites
from shadow.models.sites import Kind, Point, Site, SiteKey, column_norms_of
from shadow.scorers.recipe import Ingredients, TrainingFree
from shadow.scorers.scaled import Scaled
from shadow.signals import Signal


class InputMagnitude(TrainingFree):
    """TEAL (arXiv 2408.14690): a channel, an input of a projection, matters as much as its |x|.

    With sparsity.scope=threshold as the authors have it: a threshold for each input, of the same share in all
    of them, or with sparsity.budgets=block of their greedy shares. Theirs come from a histogram taken to be
    symmetric, ours are quantiles of |x| on the calibration; q, k and v share one threshold here, as do gate
    and up, for they read one input.
    """

    kinds: frozenset[Kind] = frozenset({"channel"})
    points: frozenset[Point] = frozenset({"site"})
    compiled = True

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [Signal(site.layer, "site", site.slot) for site in sites if site.kind == "channel"]

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> dict[SiteKey, Tensor]:
        return {(signal.layer, signal.slot): pooled(x.float().abs(), pool)}


class InputNorm(TrainingFree):
    """WINA (arXiv 2505.19427): a channel matters as much as |x| times the norm of the column that reads it.

    As the paper's rule has it, of all seven projections: the authors' code takes the norms of gate and k
    alone unless it rotates the weights first, which is left out here. Those that read one input are one
    matrix here and have one choice; the authors choose for each. Theirs is a share of each token's own
    channels, sparsity=layer here; sparsity=threshold is TEAL's way.
    """

    kinds: frozenset[Kind] = frozenset({"channel"})
    points: frozenset[Point] = frozenset({"site"})
    compiled = True
    scaled = True

    def build(self, model: PreTrainedModel, have: Ingredients) -> Scaled:
        sites = find_sites(model, ["channel"])
        return Scaled("channel", "site", {site.key: column_norms_of(site) for site in sites})
