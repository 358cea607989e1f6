"""From a composed config to what scores units, and how many go: found by their settings, or made."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from shadow.artifacts import learnt_policies as policies
from shadow.artifacts.files import write_json
from shadow.criteria import BESIDE_MEANS, RANDOM, random_scores_of
from shadow.data.batches import batched
from shadow.fit import budgets, thresholds
from shadow.jobs.fits import get_predictor, load_predictor
from shadow.jobs.loading import digest, require_weights
from shadow.jobs.settings import (
    budget_data,
    budgets_file,
    budgets_settings,
    learns_budgets,
    policy_of,
)
from shadow.jobs.stores import get_means, get_traces, taking_turns
from shadow.models.kinds import find_sites, structure_of
from shadow.models.load import LM
from shadow.models.sites import KINDS, SiteKey
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.low_rank import LowRankCopy
from shadow.scorers.oracle import Oracle
from shadow.scorers.paper_nets import read_raw
from shadow.scorers.predicted import DenseFed
from shadow.scorers.prompt import PromptActivation
from shadow.scorers.protocol import Scorer

log = logging.getLogger(__name__)


def get_scorer(cfg: DictConfig, lm: LM, loggers: list) -> Scorer:
    name, sites = cfg.predictor.name, find_sites(lm.model)
    if name == "random" or cfg.sparsity.level == 0:
        return Fixed(random_scores(sites, cfg.seed))
    if name == "oracle":
        return Oracle(cfg.criterion.name, cfg.traces.loss, means_beside(cfg, lm))
    if name == "prompt_activation":
        return PromptActivation(cfg.criterion.name, means_beside(cfg, lm))
    if name == "static":
        return Fixed(static_scores(cfg, lm))
    if name == "svd":
        return copy_weights(cfg, lm)
    predicted = load_predictor(get_predictor(cfg, lm, loggers), lm)
    if cfg.measure.raw_inputs:
        read_raw(predicted.net)
    return DenseFed(predicted) if cfg.measure.dense_fed else predicted


def get_policy(cfg: DictConfig, lm: LM, scorer: Scorer, fill: dict[SiteKey, Tensor] | None) -> SparsityPolicy:
    """With the budgets of these settings, levels or thresholds, which are learnt if they are missing."""
    policy = policy_of(cfg)
    if cfg.sparsity.budgets == "global" and cfg.sparsity.level > 0:
        levels = budgets.by_rank(static_scores(cfg, lm), policy, structure_of(lm.model))
        return replace(policy, levels=levels)
    if not learns_budgets(cfg):
        return policy
    file = budgets_file(cfg)
    if not file.is_file():
        with taking_turns(file):
            if not file.is_file():  # else another job was faster
                learn_budgets(cfg, lm, scorer, fill, file)
    known = json.loads(file.read_text(encoding="utf-8"))
    require_weights(file, known["weights"], lm)
    if policy.scope == "threshold":
        return replace(policy, thresholds=policies.thresholds_of(known["thresholds"]))
    return replace(policy, levels={(layer, kind): level for layer, kind, level in known["levels"]})


def learn_budgets(
    cfg: DictConfig, lm: LM, scorer: Scorer, fill: dict[SiteKey, Tensor] | None, file: Path
) -> None:
    """From the first windows of the calibration."""
    start = time.monotonic()
    windows = budget_data(cfg).examples(lm)[: cfg.sparsity.budget_windows]
    batches = list(batched(windows, cfg.traces.batch_size))
    policy, decided_at = policy_of(cfg), cfg.sparsity.decided_at
    learnt: dict[str, Any]
    if policy.scope == "threshold":
        values = thresholds.learn(lm.model, scorer, policy, decided_at, fill, batches)
        learnt = {"thresholds": policies.rows_of(values), "passes": len(scorer.taps)}
    else:
        found = budgets.learn(lm.model, scorer, policy, decided_at, fill, batches)
        learnt = {
            "levels": [[*unit, level] for unit, level in found.levels.items()],
            "costs": [[*unit, *cost] for unit, costs in found.costs.items() for cost in costs],
            "passes": found.passes,
        }
    seconds = time.monotonic() - start
    content = learnt | {
        "settings": budgets_settings(cfg),
        "weights": digest(lm.model),
        "windows": len(windows),
        "seconds": round(seconds, 1),
    }
    write_json(file, content)
    passes = learnt["passes"]
    log.info("budgets: %d passes over %d windows, %.0f s -> %s", passes, len(windows), seconds, file)


def means_beside(cfg: DictConfig, lm: LM) -> dict[SiteKey, Tensor] | None:
    """Of a criterion that measures how far a unit is from them; of others None."""
    return get_means(cfg, lm) if cfg.criterion.name in BESIDE_MEANS else None


def static_scores(cfg: DictConfig, lm: LM) -> dict[SiteKey, Tensor]:
    """The mean over the calibration's windows, [U] of each layer and kind."""
    sites = find_sites(lm.model)
    if cfg.criterion.name == RANDOM:
        return {(site.layer, site.kind): random_scores_of(site) for site in sites}
    store = get_traces(cfg, lm)
    means = {kind: store.static_scores(cfg.criterion.name, kind) for kind in KINDS}
    return {(site.layer, site.kind): means[site.kind][site.layer] for site in sites}


def copy_weights(cfg: DictConfig, lm: LM) -> LowRankCopy:
    heads = {layer: scores for (layer, kind), scores in static_scores(cfg, lm).items() if kind == "head"}
    means = None
    if (found := means_beside(cfg, lm)) is not None:
        means = {layer: mean.flatten() for (layer, kind), mean in found.items() if kind == "neuron"}
    start = time.monotonic()
    copy = LowRankCopy(lm.model, cfg.predictor.rank, heads, means)
    log.info(
        "copied the weights of %d layers at rank %d: %.1f M parameters (%.1f %% of the model), %.0f s",
        len(copy.taps),
        cfg.predictor.rank,
        copy.parameters / 1e6,
        100 * copy.parameters / lm.model.num_parameters(),
        time.monotonic() - start,
    )
    return copy
