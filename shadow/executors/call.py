"""A call's own state: its positions, its plan, and what it counts. Calls never share one."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

from shadow.errors import UserError
from shadow.models.sites import Site, SiteKey
from shadow.plans.rules import Plan


class Positions:
    """real: bool [B, T], what is no padding; whole: bool [B, T], where every unit stays; None: nowhere."""

    def __init__(self, real: Tensor, whole: Tensor | None) -> None:
        self.real, self.whole = real, whole
        self.n_real = int(real.count_nonzero())
        self.n_whole = 0 if whole is None else int((whole & real).count_nonzero())
        self.untouched = whole is not None and self.n_whole == self.n_real


class Call:
    """pool: bool [B, T], positions that decide together; None: each by itself. plan: as far as it is decided;
    decided: whether an earlier call has made it. shown: of T, the positions that logits are asked for."""

    def __init__(
        self,
        positions: Positions,
        pool: Tensor | None,
        plan: Plan,
        decided: bool = False,
        shown: slice | Tensor | None = None,
    ) -> None:
        self.positions, self.pool, self.plan, self.decided, self.shown = positions, pool, plan, decided, shown
        self.kept: Counter[SiteKey] = Counter()

    @cached_property
    def last(self) -> Positions:
        """Those that the last projection reads."""
        all_, shown = self.positions, self.shown
        if shown is None:
            return all_
        return Positions(all_.real[:, shown], None if all_.whole is None else all_.whole[:, shown])

    def at(self, site: Site) -> Positions:
        return self.last if site.slot == "lm_head" else self.positions

    def keep_of(self, site: Site) -> Tensor:
        """The plan of a site: bool [U] or [B, 1 or T, U]. What does not fit the call never reaches a site:
        compiled code would read beyond its end."""
        keep = found = self.plan[site.key]
        if keep.dim() == 2:  # [B, U]
            keep = keep[:, None]
        rows, tokens = self.at(site).real.shape
        if keep.dim() == 3 and site.slot == "lm_head" and keep.shape[1] == self.positions.real.shape[1] > 1:
            keep = keep if self.shown is None else keep[:, self.shown]
        allowed = ((1, rows), (1, tokens), (site.units,))[-keep.dim() :]
        if keep.dim() not in (1, 3) or any(n not in known for n, known in zip(keep.shape, allowed)):
            raise UserError(
                f"the plan of the {site.slot}s of layer {site.layer} is {list(found.shape)}, and the call has "
                f"{rows} rows of {tokens} positions: it must be [1 or {rows}, 1 or {tokens}, {site.units}], "
                "so let the scorer score this call, or begin without past_key_values"
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
        self.tokens += call.positions.n_real
        for key, kept in call.kept.items():
            site = self.sites[key]
            here = call.at(site)
            self.kept[key] += kept
            self.total[key] += here.n_real * site.active
            self.whole[key] += here.n_whole * site.active

    def achieved(self, kind: str) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        keys = [key for key in self.total if self.sites[key].kind == kind]
        total = sum(self.total[key] for key in keys)
        return 1 - sum(self.kept[key] for key in keys) / total if total else 0.0

    def doubt(self) -> str | None:
        """One sentence where not all tokens that were run were counted at all sites of layers."""
        for key, site in self.sites.items():
            counted = self.total[key] // site.active
            if counted != self.tokens and site.slot != "lm_head":  # that reads what logits are asked for
                return (
                    f"the model was called with {self.tokens} tokens, and {counted} of them were counted at "
                    f"the {site.slot}s of layer {site.layer}: what achieved and bytes say is not what was run"
                )
        return None
