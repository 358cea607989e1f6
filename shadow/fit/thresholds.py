"""Thresholds: above which score a unit stays, so that tokens keep more or fewer units at the same average."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import Batch, logits_of
from shadow.errors import UserError
from shadow.fit.quantiles import Quantiles
from shadow.front import facts_of, sparse
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import Site, SiteKey
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy
from shadow.plans.refusals import refusal
from shadow.plans.rules import kept, protected
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Scorer
from shadow.signals import Signal, hook_signals
from shadow.terminal.bars import counted

OF_THE_SITE = {"gate", "up", "site"}  # what is seen in the moment in which it is decided


def learn(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    stand_in: StandIn,
    batches: Sequence[Batch],
) -> dict[SiteKey, float]:
    """Of each site that the policy prunes: the `level` quantile of its scores at these batches.

    Of scorers that see what they decide about (CATS, TEAL) in one dense pass, as their authors do. Of others,
    in order, a pass for each of their signals: with the thresholds of all before at work, and what comes
    after whole. So each reads what it will read under the thresholds themselves, and on these batches the
    average plan removes `level`. The average is over tokens, or over rows where a plan is made for a row.
    """
    policy = policy.of(scorer.kinds)
    reason = refusal(facts_of(model, scorer, policy, decided_at, stand_in))
    if reason is not None:
        raise UserError(reason)
    sites = {site.key: site for site in find_sites(model, sorted(scorer.kinds))}
    signals = scorer.signals([site for key, site in sites.items() if policy.prunes(key)])
    if {signal.point for signal in signals} <= OF_THE_SITE:
        return learn_densely(model, scorer, policy, decided_at, batches, sites)
    found: dict[SiteKey, float] = {}
    for signal in counted(signals, "thresholds", "signals"):
        unknown = set(range(len(find_layers(model)))) - {layer for layer, _ in found}
        so_far = replace(policy, thresholds=found, dense_layers=sorted(unknown))
        for key, scores in scores_at(signal, model, scorer, so_far, decided_at, stand_in, batches).items():
            if policy.prunes(key):
                own = replace(policy, level=policy.level_of(key))
                found[key] = threshold(policy.ranked(sites[key], scores), own)
    return found


@torch.no_grad()
def learn_densely(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    batches: Sequence[Batch],
    sites: Mapping[SiteKey, Site],
) -> dict[SiteKey, float]:
    """In one pass, whatever the number of sites; their scores are counted in bins, and not held."""
    seen: dict[SiteKey, Quantiles] = defaultdict(Quantiles)
    real = pool = None

    def count(signal: Signal, x: Tensor) -> None:
        count_scores(seen, scorer.scores(signal, x, pool), policy, sites, real if pool is None else None)

    asked = scorer.signals([site for key, site in sites.items() if policy.prunes(key)])
    with hook_signals(model, asked, count):
        for batch in counted(batches, "thresholds", "batches"):
            batch = batch.to(model.device)
            real = batch.real()
            pool = {"token": None, "prompt": batch.in_prompt(), "sequence": real}[decided_at]
            logits_of(model, batch)
    return quantiles(seen, policy)


def count_scores(
    seen: Mapping[SiteKey, Quantiles],
    scores: Mapping[SiteKey, Tensor],
    policy: SparsityPolicy,
    sites: Mapping[SiteKey, Site],
    real: Tensor | None,
) -> None:
    """Of what the policy prunes. scores: [B, T, U], of which those at real, bool [B, T], count; or [B, U] and
    no real, where a plan is made for a row."""
    for key, values in scores.items():
        if policy.prunes(key):
            ranked = policy.ranked(sites[key], values)
            if sites[key].experts > 1:  # what a token is not sent to is 0
                ranked = ranked[(ranked != 0).any(-1)]
            elif real is not None:
                ranked = ranked[real.to(ranked.device)]
            seen[key].add(ranked)


def quantiles(seen: Mapping[SiteKey, Quantiles], policy: SparsityPolicy) -> dict[SiteKey, float]:
    return {key: counts.quantile(policy.level_of(key)) for key, counts in seen.items()}


def scores_at(
    signal: Signal,
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy,
    decided_at: DecidedAt,
    stand_in: StandIn,
    batches: Sequence[Batch],
) -> dict[SiteKey, Tensor]:
    """[N, U] of each site that is scored at this signal: of all real tokens, or of rows."""
    parts: dict[SiteKey, list[Tensor]] = defaultdict(list)
    real = torch.zeros(0)

    def note(where: Signal, scores: Mapping[SiteKey, Tensor]) -> None:
        if where == signal:
            for key, values in scores.items():
                one_a_token = values.dim() == 3
                rows = values[real.to(values.device)] if one_a_token else values.reshape(-1, values.shape[-1])
                parts[key].append(rows.cpu())

    with sparse(model, scorer, policy, decided_at, stand_in=stand_in) as run:
        run.planner.on_scores = note
        for batch in batches:
            real = batch.real()
            run.logits(batch)
    return {key: torch.cat(of_batches) for key, of_batches in parts.items()}


def threshold(scores: Tensor, policy: SparsityPolicy) -> float:
    """scores: [N, U] of one site -> the largest that goes, so that `level` of all N * U go.

    Fewer go where the min_units of each row leave no more, and more where others score the same: equal scores
    go together, such as the zeros of silent ReLU neurons. Minus infinity where none is to go.
    """
    safe = protected(scores, policy.least)
    gone = min(scores.numel() - kept(scores.numel(), policy.level), int((~safe).sum()))
    if gone == 0:
        return -torch.inf
    others = scores.double().masked_fill(safe, torch.inf)
    return float(others.flatten().kthvalue(gone).values)
