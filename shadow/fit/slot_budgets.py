"""Budgets of slots, alike in all layers: where the measured loss grows least for the weights that go."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from shadow.data.batches import Batch
from shadow.fit.budgets import Budgets, Cost, mean_loss, share_out
from shadow.models.kinds import find_sites
from shadow.models.sites import SiteKey, kind_of
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Scorer
from shadow.terminal.bars import counted

MOST = 0.95  # of a slot that goes


def learn(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    stand_in: StandIn,
    batches: Sequence[Batch],
    probes: Sequence[float],
) -> Budgets:
    """By the loss of these batches when one slot is pruned in all layers at once, as the policy has it.

    probes: parts of the level, up to more than 1, at which it is; between them costs are taken for straight.
    Takes a pass over the batches for each slot and level that is tried, and one for the dense model. Costs
    are of weights: what slots cost together is taken for the sum of what they cost alone.
    """
    policy = replace(policy.of(scorer.kinds), slot_levels=None)
    weights: dict[str, int] = {}
    keys: list[SiteKey] = []
    for site in find_sites(model, sorted(scorer.kinds)):
        if policy.prunes(site.key):
            weights[site.slot] = weights.get(site.slot, 0) + site.active * site.cost
            keys.append(site.key)
    dense = mean_loss(model, scorer, replace(policy, level=0), decided_at, stand_in, batches)
    costs: dict[SiteKey, list[Cost]] = {(0, slot): [] for slot in weights}
    tried = [(slot, level) for slot in weights for level in levels_of(probes, policy.level)]
    for slot, level in counted(tried, "budgets", "levels"):
        kind = kind_of(slot)
        alone = replace(policy, level=level, kinds=[kind], slots=[slot] if kind == "channel" else None)
        loss = mean_loss(model, scorer, alone, decided_at, stand_in, batches) - dense
        costs[0, slot].append(Cost(round(level * weights[slot]), loss))
    gone = share_out(costs, round(policy.level * sum(weights.values())))
    levels = {(layer, slot): gone[0, slot] / weights[slot] for layer, slot in keys}
    return Budgets(levels, costs, len(tried) + 1)


def levels_of(probes: Sequence[float], level: float) -> list[float]:
    return sorted({min(part * level, MOST) for part in probes})
