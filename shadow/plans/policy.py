"""How many units go, and where: from scores to a plan."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, Self, get_args

from torch import Tensor

from shadow.errors import UserError
from shadow.models.sites import BEHIND, BLOCKS, CHANNELS, KINDS, Kind, Site, SiteKey, kind_of
from shadow.plans.rules import Above, OverLayers, Plan, Rule, Statistical, TopK, gone

Scope = Literal["layer", "global", "threshold", "statistical"]
HeadUnit = Literal["query", "group"]
SLOTTED: tuple[Kind, ...] = ("channel", "block")  # kinds of several slots, which `slots` chooses from
Tokens = str | int | float  # `all`, `decode`, a whole number or a share


@dataclass(frozen=True)
class SparsityPolicy:
    """How many units go, and where.

    level: share of units removed, in [0, 1), at each site that is pruned.
    scope: `layer` removes that share in every layer; `global` ranks the units of a slot over all layers;
    `threshold` removes what scores no more than `thresholds` say: more at one token than at another;
    `statistical` what scores no more than its row's mean and deviation say, if scores are normal.
    min_units: units that stay at every site, whatever their scores; of head groups, groups, and of neurons of
    experts, in every expert. Of a site of one block it may be none.
    dense_layers: those that lose nothing.
    kinds: those that are pruned; None: all that the scorer scores.
    levels: of single sites, each in place of `level`: of those with thresholds, what these were learnt for.
    slot_levels: of all sites of a slot, in place of `level` where `levels` has none.
    thresholds: of each site that is pruned, for scope `threshold` alone: `shadow.fit.thresholds` learns those
    that remove `level` on average.
    head_unit: `query` heads stay or go one by one; with `group` those that share a key-value head do so
    together, and a group's score is the mean of what the scorer says of its heads (a predictor: log scores).
    tokens: positions that are sparse: `all`; `decode`, those behind a prompt; a whole number n, all but the
    first n; or a share in (0, 1), the last so much of what a call reads.
    slots: sites of channels or blocks that are pruned; None: all but the lm_head.

    Neurons of experts are ranked within their expert: whichever is chosen, the same share of it goes.
    """

    level: float
    scope: Scope = "layer"
    min_units: int = 1
    dense_layers: Sequence[int] = (0,)
    kinds: Sequence[Kind] | None = None
    levels: Mapping[SiteKey, float] | None = None
    thresholds: Mapping[SiteKey, float] | None = None
    head_unit: HeadUnit = "query"
    tokens: Tokens = "all"
    slots: Sequence[str] | None = None
    slot_levels: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.level, bool) or not isinstance(self.level, int | float) or not 0 <= self.level < 1:
            raise UserError(
                f"sparsity.level is the share of units removed and must be in [0, 1), got {self.level!r}"
            )
        if self.scope not in get_args(Scope):
            raise UserError(f"sparsity.scope must be one of {list(get_args(Scope))}, got {self.scope!r}")
        if isinstance(self.min_units, bool) or not isinstance(self.min_units, int) or self.min_units < 0:
            raise UserError(
                f"sparsity.min_units must be a whole number of at least 0, got {self.min_units!r}"
            )
        self._check_kinds()
        if not are_listed(self.dense_layers, int):
            raise UserError(
                f"sparsity.dense_layers must be numbers of layers in brackets, got {self.dense_layers!r}"
            )
        if self.head_unit not in get_args(HeadUnit):
            raise UserError(
                f"sparsity.head_unit must be one of {list(get_args(HeadUnit))}, got {self.head_unit!r}"
            )
        if self.levels is not None and self.scope == "global":
            raise UserError("levels of single layers need sparsity.scope=layer or threshold, got global")
        if not are_levels(self.levels):
            raise UserError(f"levels of single layers must be in [0, 1), got {self.levels!r}")
        self._check_slot_levels()
        if self.thresholds is not None and self.scope != "threshold":
            raise UserError(f"thresholds need sparsity.scope=threshold, got {self.scope}")
        if not are_tokens(self.tokens):
            raise UserError(
                "sparsity.tokens must be `all`, `decode`, how many at the beginning stay whole, or the share "
                f"in (0, 1) at the end that is sparse, got {self.tokens!r}"
            )

    def _check_kinds(self) -> None:
        known = list(get_args(Kind))
        listed = self.kinds is None or (are_listed(self.kinds, str) and set(self.kinds) <= set(known))
        if not listed or self.kinds == [] or self.kinds == ():
            raise UserError(f"sparsity.kinds must name some of {known} in brackets, got {self.kinds!r}")
        if self.kinds is not None and "channel" in self.kinds and {*self.kinds} & {*KINDS}:
            raise UserError(
                "sparsity.kinds: channels are inputs of the projections that heads and neurons belong to, "
                f"and are pruned alone: give [channel], or others, got {list(self.kinds)}"
            )
        if self.kinds is not None and "block" in self.kinds and {*self.kinds} - {"block", "row"}:
            raise UserError(
                "sparsity.kinds: a block is all of a layer's attention or FFN, and no parts of it are pruned "
                f"beside it: give [block], or others, got {list(self.kinds)}"
            )
        slots = [*CHANNELS, *BLOCKS]
        if self.slots is not None and (not are_listed(self.slots, str) or not set(self.slots) <= {*slots}):
            raise UserError(f"sparsity.slots must name some of {slots} in brackets, got {self.slots!r}")

    def _check_slot_levels(self) -> None:
        given = self.slot_levels
        slots = [*KINDS, *CHANNELS, BEHIND[-1], *BLOCKS]
        if not are_levels(given) or not set(given or {}) <= {*slots}:
            raise UserError(
                f"sparsity.slot_levels must be levels in [0, 1) of some of {slots}, got {given!r}"
            )
        if given and self.scope == "global":
            raise UserError("sparsity.slot_levels are levels of sites: give sparsity.scope=layer, got global")

    @property
    def rule(self) -> Rule:
        """By which this policy keeps units."""
        if self.scope == "layer":
            return TopK(self.level_of, self.least)
        if self.scope == "global":
            return OverLayers(self.level, self.least)
        if self.scope == "statistical":
            return Statistical(self.level_of, self.least)
        return Above(self.thresholds or {}, self.least)

    @property
    def least(self) -> int:
        """Units that stay at every site: a block is its site's only one."""
        return 0 if "block" in (self.kinds or ()) else self.min_units

    def of(self, kinds: Collection[Kind]) -> Self:
        """With all of these kinds, unless it names some."""
        return self if self.kinds is not None else replace(self, kinds=sorted(kinds))

    def level_of(self, key: SiteKey) -> float:
        return (self.levels or {}).get(key, (self.slot_levels or {}).get(key[1], self.level))

    def threshold_of(self, key: SiteKey) -> float:
        return Above(self.thresholds or {}).threshold_of(key)

    def prunes(self, key: SiteKey) -> bool:
        layer, slot = key
        if self.level == 0 or self.level_of(key) == 0 or layer in self.dense_layers:
            return False
        if kind_of(slot) in SLOTTED and slot not in (self.slots or (*CHANNELS[:-1], *BLOCKS)):
            return False
        return self.kinds is None or kind_of(slot) in self.kinds

    def corrects(self, site: Site) -> bool:
        """Whether a stand-in may change what is written behind this site: logits, of which others read single
        numbers, are left."""
        return self.prunes(site.key) and not site.behind

    def gone(self, units: int, level: float) -> int:
        """How many of so many units of a site go at this level."""
        return gone(units, level, self.least)

    def grouped(self, site: Site) -> int:
        """How many units of this site stay or go together."""
        return site.ranking.group if self.head_unit == "group" and site.kind == "head" else 1

    def compared(self, site: Site) -> int:
        """How many are ranked together at this site."""
        return site.units // (site.experts * self.grouped(site))

    def ranked(self, site: Site, scores: Tensor) -> Tensor:
        """scores: [..., U] -> of what is compared: units, or groups [..., G]; of experts [..., X, F]."""
        if site.experts > 1:
            return scores.unflatten(-1, (site.experts, -1))
        size = self.grouped(site)
        return scores.unflatten(-1, (-1, size)).mean(-1) if size > 1 else scores

    def plan(self, scores: Mapping[SiteKey, Tensor], sites: Mapping[SiteKey, Site]) -> Plan:
        """scores: [..., U] of sites, higher stays longer -> the plan of those that are pruned."""
        pruned = [key for key in scores if self.prunes(key)]
        for key in pruned:
            if scores[key].shape[-1] != sites[key].units:
                raise UserError(
                    f"the scores of site {key} must be one for each of its {sites[key].units} units, "
                    f"[..., {sites[key].units}], got {list(scores[key].shape)}"
                )
        plan = self.rule.keep((key, self.ranked(sites[key], scores[key])) for key in pruned)
        for key, keep in plan.items():
            if sites[key].experts > 1:
                plan[key] = keep.flatten(-2)
            elif (size := self.grouped(sites[key])) > 1:
                plan[key] = keep.repeat_interleave(size, -1)
        return plan


def are_levels(given: object) -> bool:
    """Whether these are numbers in [0, 1) of anything, or None."""
    if given is None:
        return True
    return isinstance(given, Mapping) and all(
        isinstance(level, Real) and not isinstance(level, bool) and 0 <= float(level) < 1
        for level in given.values()
    )


def are_listed(values: object, kind: type) -> bool:
    """Whether these are several of a kind, where one alone may be given by mistake."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return False
    return all(type(value) is kind for value in values)


def are_tokens(tokens: object) -> bool:
    if isinstance(tokens, bool):
        return False
    if isinstance(tokens, int):
        return tokens >= 0
    return tokens in ("all", "decode") or (isinstance(tokens, float) and 0 < tokens < 1)
