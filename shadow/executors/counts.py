"""What was really skipped: units of each site, at the real tokens of all calls."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import get_args

from transformers import PreTrainedModel

from shadow.errors import UserError, require_choice
from shadow.executors.call import Call
from shadow.executors.costs import Added
from shadow.models.kinds import weights_of
from shadow.models.sites import BEHIND, Kind, Site, SiteKey, kind_of


class Counts:
    """kept: units that stayed, at each site; total: all of them.

    whole: of the total, at positions that are not sparse. tokens: real ones that calls have brought.
    """

    def __init__(self, sites: Mapping[SiteKey, Site]) -> None:
        self.sites = sites
        self.kept: Counter[SiteKey] = Counter()
        self.total: Counter[SiteKey] = Counter()
        self.whole: Counter[SiteKey] = Counter()
        self.tokens = 0

    def add(self, call: Call) -> None:
        self.tokens += call.positions.n_real
        for key, kept in call.kept.items():
            site = self.sites[key]
            here = call.at(site)
            self.kept[key] += kept
            self.total[key] += here.n_real * site.active
            self.whole[key] += here.n_whole * site.active

    def achieved(self, kind: str) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        require_choice("the kind of achieved(kind)", kind, get_args(Kind))
        if not self.tokens:
            raise UserError(
                "achieved is of the tokens that ran inside the block, and none did: call the model first"
            )
        keys = [key for key in self.total if self.sites[key].kind == kind]
        total = sum(self.total[key] for key in keys)
        return 1 - sum(self.kept[key] for key in keys) / total if total else 0.0

    def doubt(self) -> str | None:
        """One sentence where not all tokens that were run were counted at all sites of layers."""
        for key, site in self.sites.items():
            counted = self.total[key] // site.active
            if counted != self.tokens and not site.behind:  # that reads what logits are asked for
                return (
                    f"the model was called with {self.tokens} tokens, and {counted} of them were counted at "
                    f"the {site.slot}s of layer {site.layer}: what achieved and bytes say is not what was run"
                )
        return None

    def bytes(
        self, model: PreTrainedModel, added: Added, cost_of: Callable[[Site], int]
    ) -> dict[str, float | dict[str, float]]:
        """Shares of the weight bytes that a dense token reads, which a token at a sparse position does not.

        skipped: of all projections and the lm_head; skipped_of_layers: of the layers' alone; by_kind: what
        each kind of unit leaves unread, of all; added: what the scorer reads instead. In one storage type.
        """
        weights = weights_of(model)
        unread: Counter[str] = Counter()
        for key, total in self.total.items():
            site, whole = self.sites[key], self.whole[key]
            if total > whole:
                absent = 1 - (self.kept[key] - whole) / (total - whole)
                unread[site.slot] += absent * site.active * cost_of(site)  # type: ignore[assignment]
        by_kind: Counter[str] = Counter()
        for slot, count in unread.items():
            by_kind[kind_of(slot)] += count
        of_layers = sum(count for slot, count in unread.items() if slot not in BEHIND)
        return {
            "skipped": (sum(unread.values()) - sum(added)) / weights.all,
            "skipped_of_layers": (of_layers - added.layers) / weights.layers,
            "by_kind": {kind: count / weights.all for kind, count in by_kind.items()},
            "added": sum(added) / weights.all,
        }
