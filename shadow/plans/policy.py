"""From scores to a plan: which units stay."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from shadow.errors import UserError
from shadow.models.sites import KINDS, Kind, Structure

Scope = Literal["layer", "global", "threshold"]
HeadUnit = Literal["query", "group"]
ALONE = Structure()  # every unit for itself
Unit = tuple[int, Kind]  # the units of one kind in one layer
Plan = dict[Unit, Tensor]  # bool [..., U], True where the unit stays; what is not in the plan stays whole


@dataclass(frozen=True)
class SparsityPolicy:
    """How many units go, and where.

    level: share of units removed, in [0, 1), of each kind in `kinds`, in the layers not in `dense_layers`.
    scope: `layer` removes that share in every layer; `global` ranks the units of a kind over all layers;
    `threshold` removes what scores no more than `thresholds` say: more at one token than at another.
    min_units: units of a kind that stay in every layer, whatever their scores; of head groups, groups, and of
    neurons of experts, in every expert.
    levels: of single layers and kinds, each in place of `level`.
    thresholds: of each layer and kind that is pruned, for scope `threshold` alone: `fit.thresholds` learns
    those that remove `level` on average.
    head_unit: `query` heads stay or go one by one; with `group` those that share a key-value head do so
    together, and a group's score is the mean of what the scorer says of its heads (a predictor: log scores).

    Neurons of experts are ranked within their expert: whichever is chosen, the same share of it goes.
    """

    level: float
    scope: Scope = "layer"
    min_units: int = 1
    dense_layers: Sequence[int] = (0,)
    kinds: Sequence[Kind] = KINDS
    levels: Mapping[Unit, float] | None = None
    thresholds: Mapping[Unit, float] | None = None
    head_unit: HeadUnit = "query"

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
        if not are_listed(self.kinds, str) or not set(self.kinds) <= set(KINDS) or not self.kinds:
            raise UserError(f"sparsity.kinds must name some of {list(KINDS)} in brackets, got {self.kinds!r}")
        if not are_listed(self.dense_layers, int):
            raise UserError(
                f"sparsity.dense_layers must be numbers of layers in brackets, got {self.dense_layers!r}"
            )
        if self.head_unit not in get_args(HeadUnit):
            raise UserError(
                f"sparsity.head_unit must be one of {list(get_args(HeadUnit))}, got {self.head_unit!r}"
            )
        if self.levels is not None and self.scope != "layer":
            raise UserError(f"levels of single layers need sparsity.scope=layer, got {self.scope}")
        if any(not 0 <= level < 1 for level in (self.levels or {}).values()):
            raise UserError(f"levels of single layers must be in [0, 1), got {dict(self.levels or {})}")
        if self.thresholds is not None and self.scope != "threshold":
            raise UserError(f"thresholds need sparsity.scope=threshold, got {self.scope}")

    def level_of(self, unit: Unit) -> float:
        return (self.levels or {}).get(unit, self.level)

    def threshold_of(self, unit: Unit) -> float:
        if self.thresholds is None or unit not in self.thresholds:
            raise UserError(
                "sparsity.scope=threshold needs a threshold for each layer and kind that is pruned, and has "
                f"none for the {unit[1]}s of layer {unit[0]}: learn them with shadow.fit.thresholds.learn"
            )
        return self.thresholds[unit]

    def prunes(self, unit: Unit) -> bool:
        layer, kind = unit
        return self.level_of(unit) > 0 and kind in self.kinds and layer not in self.dense_layers

    def gone(self, units: int, level: float) -> int:
        """How many of so many units of a kind a layer loses at this level."""
        return units - max(kept(units, level), min(self.min_units, units))

    def grouped(self, kind: Kind, structure: Structure) -> int:
        """How many units of this kind stay or go together."""
        return structure.group if kind == "head" and self.head_unit == "group" else 1

    def ranked(self, kind: Kind, scores: Tensor, structure: Structure) -> Tensor:
        """scores: [..., U] -> of what is compared: heads, or groups [..., G]; of experts [..., X, F]."""
        if kind == "neuron":
            return scores.unflatten(-1, (structure.experts, -1)) if structure.experts > 1 else scores
        size = self.grouped(kind, structure)
        return scores.unflatten(-1, (-1, size)).mean(-1) if size > 1 else scores

    def compared(self, kind: Kind, units: int, structure: Structure) -> int:
        """How many are ranked together of so many units in a layer."""
        parts = structure.experts if kind == "neuron" else self.grouped(kind, structure)
        return units // parts

    def plan(self, scores: Mapping[Unit, Tensor], structure: Structure = ALONE) -> Plan:
        """scores: [..., U] of layers and kinds, higher stays longer -> the plan of those that are pruned.

        structure: of the model, for groups of heads and for experts.
        """
        plan = self._choose(
            (unit, self.ranked(unit[1], scores[unit], structure)) for unit in scores if self.prunes(unit)
        )
        for (layer, kind), keep in plan.items():
            if kind == "neuron" and structure.experts > 1:
                plan[layer, kind] = keep.flatten(-2)
            elif (size := self.grouped(kind, structure)) > 1:
                plan[layer, kind] = keep.repeat_interleave(size, -1)
        return plan

    def _choose(self, pruned: Iterable[tuple[Unit, Tensor]]) -> Plan:
        """[..., U] of what is compared -> what of it stays; one layer at a time where each is for itself."""
        if self.scope == "layer":
            return {
                unit: keep_top(values, values.shape[-1] - self.gone(values.shape[-1], self.level_of(unit)))
                for unit, values in pruned
            }
        if self.scope == "threshold":
            return {
                unit: (values > self.threshold_of(unit)) | self.protected(values) for unit, values in pruned
            }
        plan: Plan = {}
        of_unit = dict(pruned)
        for kind in self.kinds:
            plan |= self._rank_globally({unit: values for unit, values in of_unit.items() if unit[1] == kind})
        return plan

    def protected(self, scores: Tensor) -> Tensor:
        """scores: [..., U] of one layer and kind -> bool [..., U], True at the min_units that always stay."""
        return keep_top(scores, min(self.min_units, scores.shape[-1]))

    def _rank_globally(self, scores: Mapping[Unit, Tensor]) -> Plan:
        if not scores:
            return {}
        ranked = torch.cat(
            [values.masked_fill(self.protected(values), torch.inf) for values in scores.values()], -1
        )
        n_safe = sum(min(self.min_units, values.shape[-1]) for values in scores.values())
        keep = keep_top(ranked, max(kept(ranked.shape[-1], self.level), n_safe))
        return dict(zip(scores, keep.split([values.shape[-1] for values in scores.values()], -1)))


def are_listed(values: object, kind: type) -> bool:
    """Whether these are several of a kind, where one alone may be given by mistake."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return False
    return all(type(value) is kind for value in values)


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
