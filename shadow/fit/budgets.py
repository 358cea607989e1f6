"""Budgets: how much each layer loses at a constant total, by what losing it costs, or by one ranking."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from shadow.criteria.one_pass import row_losses
from shadow.data.batches import Batch, Loss
from shadow.executors.masked import Fill, sparse
from shadow.models.sites import Structure, find_sites, structure_of
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy, Unit
from shadow.scorers.nets import Scorer


class Cost(NamedTuple):
    """Of so many units less of one kind in one layer, or groups of heads, or neurons of each expert: nats a
    token, beside the dense model."""

    removed: int
    loss: float


class Budgets(NamedTuple):
    """levels: of each layer and kind; costs: what they were chosen by; passes: made over the batches."""

    levels: dict[Unit, float]
    costs: dict[Unit, list[Cost]]
    passes: int


def probes(level: float) -> tuple[float, ...]:
    """The levels at which costs are measured: the one asked for, and half the way to either end."""
    return level / 2, level, (1 + level) / 2


def learn(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    fill: Fill | None,
    batches: Sequence[Batch],
) -> Budgets:
    """By the loss of these batches when one kind of unit in one layer alone is pruned, as the policy has it.

    Takes a pass over the batches for each layer, kind and level that is tried, and one for the dense model.
    What layers cost together is taken for the sum of what they cost alone.
    """
    structure = structure_of(model)
    units_of = {
        (site.layer, site.kind): policy.compared(site.kind, site.units, structure)
        for site in find_sites(model)
    }
    groups = {unit: units for unit, units in units_of.items() if policy.prunes(unit)}
    layers = {layer for layer, _ in units_of}
    tried = [
        (unit, level)
        for unit, units in groups.items()
        for level in {policy.gone(units, level): level for level in probes(policy.level)}.values()
        if policy.gone(units, level)
    ]
    dense = mean_loss(model, scorer, replace(policy, level=0), decided_at, fill, batches)
    costs: dict[Unit, list[Cost]] = {unit: [] for unit in groups}
    for (layer, kind), level in tqdm(tried, desc="budgets", leave=False):
        alone = replace(policy, level=level, kinds=(kind,), dense_layers=sorted(layers - {layer}))
        loss = mean_loss(model, scorer, alone, decided_at, fill, batches) - dense
        costs[layer, kind].append(Cost(policy.gone(groups[layer, kind], level), loss))
    removed: dict[Unit, int] = {}
    for kind in policy.kinds:
        of_kind = {unit: found for unit, found in costs.items() if unit[1] == kind}
        removed |= share_out(of_kind, sum(policy.gone(groups[unit], policy.level) for unit in of_kind))
    levels = {unit: count / groups[unit] for unit, count in removed.items()}
    return Budgets(levels, costs, len(tried) + 1)


def by_rank(scores: Mapping[Unit, Tensor], policy: SparsityPolicy, structure: Structure) -> dict[Unit, float]:
    """What each layer loses of each kind where the units of all layers are ranked as one.

    scores: [U] of each layer and kind, means over the calibration. Of neurons of experts, the experts' mean.
    """
    plan = replace(policy, scope="global").plan(scores, structure)
    return {unit: 1 - float(keep.double().mean()) for unit, keep in plan.items()}


def mean_loss(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    fill: Fill | None,
    batches: Iterable[Batch],
) -> float:
    """The mean over rows of each one's loss: of its answer where the plan comes from the prompt."""
    loss: Loss = "answer" if decided_at == "prompt" else "next_token"
    losses: list[float] = []
    with sparse(model, scorer, policy, decided_at, fill=fill) as run:
        for batch in batches:
            losses += row_losses(run.logits(batch).cpu(), batch.targets(loss)).tolist()
    return sum(losses) / len(losses)


def share_out(costs: Mapping[Unit, Sequence[Cost]], total: int) -> dict[Unit, int]:
    """Units that each group loses, `total` together: always where one unit less costs least.

    costs: as measured. Between them costs are taken for straight lines, those of their lower convex hull, on
    which the greedy choice is the best one.
    """
    steps = [
        (slope(before, after), unit, after.removed - before.removed)
        for unit, measured in costs.items()
        for before, after in pairwise(hull([Cost(0, 0.0), *measured]))
    ]
    removed = dict.fromkeys(costs, 0)
    for _, unit, count in sorted(steps):
        taken = min(count, total - sum(removed.values()))
        removed[unit] += taken
    assert sum(removed.values()) == total, "more is to go than was measured"
    return removed


def hull(points: Iterable[Cost]) -> list[Cost]:
    """Those of the points that no line between two others lies below."""
    kept: list[Cost] = []
    for point in sorted(points):
        if kept and kept[-1].removed == point.removed:
            continue
        while len(kept) > 1 and slope(kept[-2], kept[-1]) >= slope(kept[-1], point):
            kept.pop()
        kept.append(point)
    return kept


def slope(one: Cost, other: Cost) -> float:
    return (other.loss - one.loss) / (other.removed - one.removed)
