"""Rules: from scores to what stays."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor

from shadow.errors import UserError
from shadow.models.sites import SiteKey

Plan = dict[SiteKey, Tensor]  # bool [..., U], True where the unit stays; what is not in the plan stays whole
LevelOf = Callable[[SiteKey], float]
Scored = Iterable[tuple[SiteKey, Tensor]]  # scores [..., U] of what is compared at each site that is pruned


class Rule(Protocol):
    """Higher scores stay longer."""

    def keep(self, scored: Scored) -> Plan: ...


@dataclass(frozen=True)
class TopK:
    """Every site loses the share that `level_of` says; at least `least` units stay."""

    level_of: LevelOf
    least: int = 1

    def keep(self, scored: Scored) -> Plan:
        return {
            key: keep_top(scores, scores.shape[-1] - gone(scores.shape[-1], self.level_of(key), self.least))
            for key, scores in scored
        }


@dataclass(frozen=True)
class OverLayers:
    """One ranking over all layers for each slot, which loses `level`; `least` units of each site stay."""

    level: float
    least: int = 1

    def keep(self, scored: Scored) -> Plan:
        slots: dict[str, dict[SiteKey, Tensor]] = defaultdict(dict)
        for key, scores in scored:
            slots[key[1]][key] = scores
        return {key: keep for of_slot in slots.values() for key, keep in self._rank(of_slot).items()}

    def _rank(self, scores: Mapping[SiteKey, Tensor]) -> Plan:
        ranked = torch.cat(
            [values.masked_fill(protected(values, self.least), torch.inf) for values in scores.values()], -1
        )
        n_safe = sum(min(self.least, values.shape[-1]) for values in scores.values())
        keep = keep_top(ranked, max(kept(ranked.shape[-1], self.level), n_safe))
        return dict(zip(scores, keep.split([values.shape[-1] for values in scores.values()], -1)))


@dataclass(frozen=True)
class Above:
    """What scores more than its site's threshold stays, and the `least` units that score highest."""

    thresholds: Mapping[SiteKey, float]
    least: int = 1

    def keep(self, scored: Scored) -> Plan:
        return {
            key: (scores > self.threshold_of(key)) | protected(scores, self.least) for key, scores in scored
        }

    def threshold_of(self, key: SiteKey) -> float:
        if key not in self.thresholds:
            raise UserError(
                "sparsity.scope=threshold needs a threshold for each layer and slot that is pruned, and has "
                f"none for the {key[1]}s of layer {key[0]}: learn them with shadow.fit.thresholds.learn"
            )
        return self.thresholds[key]


@dataclass(frozen=True)
class Statistical:
    """What scores more than the mean + std * z of its row stays, z the normal quantile of the level, and the
    `least` units that score highest.

    Gemma-3n's rule (transformers' `_gaussian_topk`): no sort and no calibration, and the level is met as far
    as a row's scores are normal. There it is a rule on gates before their non-linearity, of a model that was
    trained with it, and what stays has the cutoff subtracted; here it is one on any scores, and chooses.
    """

    level_of: LevelOf
    least: int = 1

    def keep(self, scored: Scored) -> Plan:
        return {key: self._above(scores, self.level_of(key)) for key, scores in scored}

    def _above(self, scores: Tensor, level: float) -> Tensor:
        deviation = scores.std(-1, correction=0, keepdim=True)
        cutoff = scores.mean(-1, keepdim=True) + deviation * NormalDist().inv_cdf(level)
        return (scores > cutoff) | protected(scores, self.least)


def protected(scores: Tensor, least: int) -> Tensor:
    """scores: [..., U] of one site -> bool [..., U], True at the highest `least`."""
    return keep_top(scores, min(least, scores.shape[-1]))


def gone(units: int, level: float, least: int) -> int:
    """How many of so many units go at this level, where at least so many stay."""
    return units - max(kept(units, level), min(least, units))


def kept(units: int, level: float) -> int:
    """Units that stay of `units` when the share `level` goes, and never more than that share."""
    return units - math.floor(level * units + 1e-9)  # 0.3 * 10 is 2.9999999999999996


def keep_top(scores: Tensor, n: int) -> Tensor:
    """scores: [..., U] -> bool [..., U], exactly n True, at the highest scores; among equals the first stay.

    Which units of equal score stay must not depend on the batch, so ties are not left to topk.
    """
    if n <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        from shadow.plans.selection import keep_rows  # numba takes a second to import

        keep = torch.empty(scores.shape, dtype=torch.bool)
        units = scores.shape[-1]
        keep_rows(scores.detach().reshape(-1, units).numpy(), n, keep.view(-1, units).numpy())
        return keep
    keep = scores >= scores.topk(n, -1, sorted=False).values.amin(-1, keepdim=True)
    if int(keep.count_nonzero()) == keep.numel() // keep.shape[-1] * n:  # a row has n and its ties
        return keep
    tied = keep.sum(-1) != n
    if tied.any():
        order = scores[tied].argsort(dim=-1, descending=True, stable=True)
        exact = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :n], True)
        keep[tied] = exact
    return keep
