"""Thresholds: above which score a unit stays, so that tokens keep more or fewer units at the same average."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from shadow.data.batches import Batch
from shadow.executors.masked import Fill, check, sparse
from shadow.models.sites import find_layers, structure_of
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy, Unit, kept
from shadow.scorers.nets import Scorer


def learn(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    fill: Fill | None,
    batches: Sequence[Batch],
) -> dict[Unit, float]:
    """Of each layer and kind that the policy prunes: the `level` quantile of its scores at these batches.

    Takes a pass over the batches for each of the scorer's taps, in order: with the thresholds of all taps
    before at work, and what comes after whole. So each tap reads what it will read under the thresholds
    themselves, and on these batches the average plan removes `level`. The average is over tokens, or over
    rows where a plan is made for a row. The scores of one tap's layers at all tokens are held in memory.
    """
    check(model, scorer, policy, decided_at)
    found: dict[Unit, float] = {}
    structure = structure_of(model)
    for tap in tqdm(scorer.taps, desc="thresholds", leave=False):
        unknown = set(range(len(find_layers(model)))) - {layer for layer, _ in found}
        so_far = replace(policy, thresholds=found, dense_layers=sorted(unknown))
        for unit, scores in scores_at(tap, model, scorer, so_far, decided_at, fill, batches).items():
            if policy.prunes(unit):
                found[unit] = threshold(policy.ranked(unit[1], scores, structure), policy)
    return found


def scores_at(
    tap: int,
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    fill: Fill | None,
    batches: Sequence[Batch],
) -> dict[Unit, Tensor]:
    """[N, U] of each layer and kind that is scored at this tap: of all real tokens, or of rows."""
    parts: dict[Unit, list[Tensor]] = defaultdict(list)
    real = torch.zeros(0)

    def hear(where: int, scores: Mapping[Unit, Tensor]) -> None:
        if where == tap:
            for unit, values in scores.items():
                one_a_token = values.dim() == 3
                rows = values[real.to(values.device)] if one_a_token else values.reshape(-1, values.shape[-1])
                parts[unit].append(rows.cpu())

    with sparse(model, scorer, policy, decided_at, fill=fill, hear=hear) as run:
        for batch in batches:
            real = batch.real()
            run.logits(batch)
    return {unit: torch.cat(of_batches) for unit, of_batches in parts.items()}


def threshold(scores: Tensor, policy: SparsityPolicy) -> float:
    """scores: [N, U] of one layer and kind -> the largest that goes, so that `level` of all N * U go.

    Fewer go where the min_units of each row leave no more, and more where others score the same: equal scores
    go together, such as the zeros of silent ReLU neurons. Minus infinity where none is to go.
    """
    safe = policy.protected(scores)
    gone = min(scores.numel() - kept(scores.numel(), policy.level), int((~safe).sum()))
    if gone == 0:
        return -torch.inf
    others = scores.double().masked_fill(safe, torch.inf)
    return float(others.flatten().kthvalue(gone).values)
