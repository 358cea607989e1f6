"""A call's own state: its positions, its plan, and what it counts. Calls never share one."""

from collections import Counter
from functools import cached_property

from torch import Tensor

from shadow.errors import UserError
from shadow.executors.positions import Positions
from shadow.models.sites import Site, SiteKey
from shadow.plans.rules import Plan


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
        return self.last if site.behind else self.positions

    def keep_of(self, site: Site) -> Tensor:
        """The plan of a site: bool [U] or [B, 1 or T, U]. What does not fit the call never reaches a site:
        compiled code would read beyond its end."""
        keep = found = self.plan[site.key]
        if keep.dim() == 2:  # [B, U]
            keep = keep[:, None]
        rows, tokens = self.at(site).real.shape
        if self.shown is not None and site.behind and keep.shape[1:2] == self.positions.real.shape[1:]:
            keep = keep[:, self.shown]
        shape = keep.shape
        here = len(shape) == 1 or (len(shape) == 3 and shape[0] in (1, rows) and shape[1] in (1, tokens))
        if not here or shape[-1] != site.units:
            raise UserError(
                f"the plan of the {site.slot}s of layer {site.layer} is {list(found.shape)}, and the call "
                f"has {rows} rows of {tokens} positions: it must be [1 or {rows}, 1 or {tokens}, "
                f"{site.units}], so let the scorer score this call, or begin without past_key_values"
            )
        return keep
