"""What a plan saves and what it costs, in weights: of absent units, and of what scorer and stand-in read."""

from collections.abc import Sequence
from typing import NamedTuple

from shadow.models.sites import KINDS, Kind, Site
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Reads
from shadow.scorers.protocol import Scorer
from shadow.signals import Signal


class Added(NamedTuple):
    """Weights that scorer and stand-in read of their own, for layers and for the lm_head."""

    layers: float
    head: float


def added_by(asked: Sequence[object], pruned: Sequence[Site]) -> Added:
    """Of what is asked at each token."""
    layers = head = 0.0
    for one in asked:
        layers += getattr(one, "weights", 0)
        if isinstance(one, Reads):
            layers += sum(one.weights_at(site) for site in pruned if not site.behind)
            head += sum(one.weights_at(site) for site in pruned if site.behind)
    return Added(layers, head)


def cost_of(site: Site, signals: Sequence[Signal]) -> int:
    """Weights that an absent unit leaves unread, where a scorer sees these signals of all of them."""
    here = [signal for signal in signals if signal.layer == site.layer]
    points = {signal.point for signal in here if signal.point != "site" or signal.slot == site.slot}
    if "site" in points:
        return site.cost - site.seen_cost.get("site", 0)
    return site.cost - sum(site.seen_cost.get(point, 0) for point in points)


def kinds_of(scorer: Scorer, policy: SparsityPolicy) -> tuple[Kind, ...]:
    """Those that are counted: what is pruned, and heads and neurons where neither channels nor blocks are."""
    if policy.level == 0:
        return KINDS
    others = sorted(scorer.kinds - {*KINDS})
    return (*others,) if {"channel", "block"} & {*others} else (*KINDS, *others)
