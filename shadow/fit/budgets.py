"""Budgets: how much each layer loses at a constant total, by what losing it costs, or by one ranking."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from shadow.criteria.one_pass import row_losses
from shadow.data.batches import Batch, Loss
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import Site, SiteKey, kind_of
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SLOTTED, SparsityPolicy
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Scorer
from shadow.terminal.bars import counted


class Cost(NamedTuple):
    """Of so many units less of one kind in one layer, or groups of heads, or neurons of each expert: nats a
    token, beside the dense model."""

    removed: int
    loss: float


class Budgets(NamedTuple):
    """levels: of each layer and kind; costs: what they were chosen by; passes: made over the batches."""

    levels: dict[SiteKey, float]
    costs: dict[SiteKey, list[Cost]]
    passes: int


def probes(level: float) -> tuple[float, ...]:
    """The levels at which costs are measured: the one asked for, and half the way to either end."""
    return level / 2, level, (1 + level) / 2


def learn(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    stand_in: StandIn,
    batches: Sequence[Batch],
) -> Budgets:
    """By the loss of these batches when one kind of unit in one layer alone is pruned, as the policy has it.

    Takes a pass over the batches for each layer, kind and level that is tried, and one for the dense model.
    What layers cost together is taken for the sum of what they cost alone.
    """
    policy = replace(policy.of(scorer.kinds), slot_levels=None)
    sites = find_sites(model, sorted(scorer.kinds))
    groups = {site.key: policy.compared(site) for site in sites if policy.prunes(site.key)}
    layers = set(range(len(find_layers(model))))
    tried = [
        (key, level)
        for key, units in groups.items()
        for level in {policy.gone(units, level): level for level in probes(policy.level)}.values()
        if policy.gone(units, level)
    ]
    dense = mean_loss(model, scorer, replace(policy, level=0), decided_at, stand_in, batches)
    costs: dict[SiteKey, list[Cost]] = {key: [] for key in groups}
    for key, level in counted(tried, "budgets", "levels"):
        layer, slot = key
        slots = [slot] if kind_of(slot) in SLOTTED else None
        others = sorted(layers - {layer})
        alone = replace(policy, level=level, kinds=[kind_of(slot)], dense_layers=others, slots=slots)
        loss = mean_loss(model, scorer, alone, decided_at, stand_in, batches) - dense
        costs[key].append(Cost(policy.gone(groups[key], level), loss))
    removed: dict[SiteKey, int] = {}
    for slot in dict.fromkeys(slot for _, slot in costs):
        of_slot = {key: found for key, found in costs.items() if key[1] == slot}
        removed |= share_out(of_slot, sum(policy.gone(groups[key], policy.level) for key in of_slot))
    levels = {key: count / groups[key] for key, count in removed.items()}
    return Budgets(levels, costs, len(tried) + 1)


def by_rank(
    scores: Mapping[SiteKey, Tensor], policy: SparsityPolicy, sites: Sequence[Site]
) -> dict[SiteKey, float]:
    """What each layer loses of each kind where the units of all layers are ranked as one.

    scores: [U] of each layer and kind, means over the calibration. Of neurons of experts, the experts' mean.
    """
    plan = replace(policy, scope="global").plan(scores, {site.key: site for site in sites})
    return {key: 1 - float(keep.double().mean()) for key, keep in plan.items()}


def mean_loss(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    stand_in: StandIn,
    batches: Iterable[Batch],
) -> float:
    """The mean over rows of each one's loss: of its answer where the plan comes from the prompt."""
    loss: Loss = "answer" if decided_at == "prompt" else "next_token"
    losses: list[float] = []
    with sparse(model, scorer, policy, decided_at, stand_in=stand_in) as run:
        for batch in batches:
            losses += row_losses(run.logits(batch).cpu(), batch.targets(loss)).tolist()
    return sum(losses) / len(losses)


def share_out(costs: Mapping[SiteKey, Sequence[Cost]], total: int) -> dict[SiteKey, int]:
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
