"""A call's own state: its positions, its plan, and what it counts. Calls never share one."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from shadow.errors import UserError
from shadow.models.sites import Site, SiteKey
from shadow.plans.rules import Plan


@dataclass
class Call:
    """real: bool [B, T], what is no padding. pool: bool [B, T], positions that decide together; None: each by
    itself. whole: bool [B, T], where every unit stays; None: nowhere. plan: as far as it is decided; decided:
    whether an earlier call has made it. shown: of T, the positions that logits are asked for.
    """

    real: Tensor
    pool: Tensor | None
    whole: Tensor | None
    plan: Plan
    decided: bool = False
    shown: slice | Tensor = field(default_factory=lambda: slice(None))
    kept: Counter[SiteKey] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.n_real = int(self.real.count_nonzero())
        self.n_whole = 0 if self.whole is None else int((self.whole & self.real).count_nonzero())
        self.untouched = self.whole is not None and self.n_whole == self.n_real

    def keep_of(self, site: Site) -> Tensor:
        """The plan of a site: bool [U] or [B, 1 or T, U]. What does not fit the call never reaches a site:
        compiled code would read beyond its end."""
        keep = self.plan[site.key]
        if keep.dim() == 2:  # [B, U]
            keep = keep[:, None]
        rows, tokens = self.real.shape
        allowed = ((1, rows), (1, tokens), (site.units,))[-keep.dim() :]
        if keep.dim() not in (1, 3) or any(n not in known for n, known in zip(keep.shape, allowed)):
            found = list(self.plan[site.key].shape)
            raise UserError(
                f"the plan of the {site.slot}s of layer {site.layer} is {found}, and the call has {rows} "
                f"rows of {tokens} positions: it must be [1 or {rows}, 1 or {tokens}, {site.units}], so "
                "let the scorer score this call, or begin without past_key_values"
            )
        return keep


class Counts:
    """Units of each site at the real tokens of all calls: those that stayed, and all.

    whole: of the total, at positions that are not sparse. tokens: real ones that calls have brought.
    """

    def __init__(self, sites: Mapping[SiteKey, Site]) -> None:
        self.sites = sites
        self.kept: Counter[SiteKey] = Counter()
        self.total: Counter[SiteKey] = Counter()
        self.whole: Counter[SiteKey] = Counter()
        self.tokens = 0

    def add(self, call: Call) -> None:
        self.tokens += call.n_real
        for key, kept in call.kept.items():
            units = self.sites[key].active
            self.kept[key] += kept
            self.total[key] += call.n_real * units
            self.whole[key] += call.n_whole * units

    def achieved(self, kind: str) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        keys = [key for key in self.total if self.sites[key].kind == kind]
        total = sum(self.total[key] for key in keys)
        return 1 - sum(self.kept[key] for key in keys) / total if total else 0.0

    def doubt(self) -> str | None:
        """One sentence where not all tokens that were run were counted at all sites."""
        for key, site in self.sites.items():
            counted = self.total[key] // site.active
            if counted != self.tokens:
                return (
                    f"the model was called with {self.tokens} tokens, and {counted} of them were counted at "
                    f"the {site.slot}s of layer {site.layer}: what achieved and bytes say is not what was run"
                )
        return None
