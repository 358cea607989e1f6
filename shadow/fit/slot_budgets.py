"""Budgets of slots, alike in all layers: where the next tokens go least far from the dense model's."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from shadow.data.batches import Batch, Positions, logits_of
from shadow.fit import thresholds
from shadow.fit.budgets import Budgets, Cost, share_out
from shadow.fit.stand_ins import divergence
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.models.sites import SiteKey, kind_of
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SLOTTED, SparsityPolicy
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
    """By the KL divergence from the dense model's next tokens when one slot is pruned in all layers at once.

    probes: parts of the level, up to more than 1, at which it is; between them costs are taken for straight.
    Takes a pass over the batches for each slot and level that is tried, and one for the dense model; of a
    policy with thresholds also those that learning these takes. Costs
    are of weights: what slots cost together is taken for the sum of what they cost alone. The divergence
    varies less from text to text than the loss does, and is never negative.
    """
    policy = replace(policy.of(scorer.kinds), slot_levels=None)
    weights: dict[str, int] = {}
    keys: list[SiteKey] = []
    for site in find_sites(model, sorted(scorer.kinds)):
        if policy.prunes(site.key):
            weights[site.slot] = weights.get(site.slot, 0) + site.active * site.cost
            keys.append(site.key)
    tried = [(slot, level) for slot in weights for level in levels_of(probes, policy.level)]
    which: Positions = "answer" if decided_at == "prompt" else "all"
    losses, plans = dict.fromkeys(tried, 0.0), {}
    for slot, level in tried:
        kind = kind_of(slot)
        alone = replace(policy, level=level, kinds=[kind], slots=[slot] if kind in SLOTTED else None)
        if alone.scope == "threshold":
            given = model, scorer, alone, decided_at, stand_in, batches
            alone = replace(alone, thresholds=thresholds.learn(*given))
        plans[slot, level] = alone
    for batch in counted(batches, "budgets", "batches"):
        with torch.no_grad():
            dense = logits_of(model, batch.for_model(model)).cpu()
        inside = batch.positions(which)
        for slot, level in tried:
            plan = plans[slot, level]
            with torch.no_grad(), sparse(model, scorer, plan, decided_at, stand_in=stand_in) as run:
                far = divergence(dense, run.logits(batch).cpu(), inside)
            losses[slot, level] += float(far) * int(inside.sum())
    positions = sum(int(batch.positions(which).sum()) for batch in batches)
    costs: dict[SiteKey, list[Cost]] = {(0, slot): [] for slot in weights}
    for (slot, level), loss in losses.items():
        costs[0, slot].append(Cost(round(level * weights[slot]), loss / positions))
    gone = share_out(costs, round(policy.level * sum(weights.values())))
    levels = {(layer, slot): gone[0, slot] / weights[slot] for layer, slot in keys}
    return Budgets(levels, costs, len(tried) + 1)


def levels_of(probes: Sequence[float], level: float) -> list[float]:
    return sorted({min(part * level, MOST) for part in probes})
