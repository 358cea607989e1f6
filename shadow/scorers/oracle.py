"""The scorer that knows the true scores of the sample: a bound, not a method."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.criteria import BESIDE_MEANS, CONTEXTUAL, REMOVAL, Seen
from shadow.criteria.one_pass import score
from shadow.criteria.removal import Exact, removal
from shadow.criteria.statistics import Shown
from shadow.data.batches import Batch, Loss
from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.models.sites import KINDS, Kind, Site, SiteKey
from shadow.signals import Signal


class Oracle:
    """The sample's own criterion, from a dense pass over the sample: a bound, not a method."""

    kinds: frozenset[Kind] = frozenset(KINDS)

    def __init__(
        self, criterion: str, loss: Loss = "answer", means: Mapping[SiteKey, Tensor] | None = None
    ) -> None:
        """means: [U, D] of every site's activation over the calibration, for `l2_deviation`."""
        allowed = [*CONTEXTUAL, *BESIDE_MEANS, REMOVAL]
        if criterion not in allowed:
            raise UserError(f"an oracle's criterion must be in {allowed}, got {criterion!r}")
        self.criterion, self.loss, self.means = criterion, loss, means
        self.seen: dict[SiteKey, Seen] = {}

    def look(self, model: PreTrainedModel, batch: Batch) -> None:
        def receive(name: str, site: Site, seen: Seen | Shown) -> None:
            assert not isinstance(seen, Shown)
            self.seen[site.key] = seen

        if self.criterion != REMOVAL:
            score(model, batch, [self.criterion], receive, loss=self.loss, means=self.means)
            return
        units = {site: torch.arange(site.units) for site in find_sites(model)}
        for site, change in removal(model, batch, units, self.loss).items():
            self.seen[site.key] = Exact(change)

    def signals(self, sites: Sequence[Site]) -> list[Signal]:
        return [Signal(0, "layer_input")]

    def scores(self, signal: Signal, x: Tensor, pool: Tensor | None) -> Mapping[SiteKey, Tensor]:
        if not self.seen:
            raise UserError("the oracle must see the sample first: run batches through `Run.logits`")
        return {
            unit: seen.tokens() if pool is None else seen.window(pool) for unit, seen in self.seen.items()
        }
