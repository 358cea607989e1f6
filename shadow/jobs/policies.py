"""How many units go in each layer, and above which scores they stay: as configured, found, or learnt."""

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from shadow.artifacts import learnt_policies
from shadow.artifacts.files import write_json
from shadow.fit import block_budgets, budgets, given_budgets, slot_budgets, thresholds
from shadow.jobs.ingredients import JobIngredients, calibration_batches
from shadow.jobs.keys import budgets_file, budgets_settings, paths_file, paths_settings
from shadow.jobs.loading import require_weights
from shadow.jobs.method import learns_budgets, policy_of, ranks_layers
from shadow.jobs.stores import taking_turns
from shadow.models.digest import digest
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.models.sites import SiteKey
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Scorer

log = logging.getLogger(__name__)


def get_policy(cfg: DictConfig, lm: LM, scorer: Scorer, stand_in: StandIn) -> SparsityPolicy:
    """With the budgets of these settings, levels and thresholds, which are learnt if they are missing."""
    policy = policy_of(cfg)
    if ranks_layers(cfg):
        static = JobIngredients(cfg, lm).static()
        policy = replace(policy, levels=budgets.by_rank(static, policy, find_sites(lm.model)))
    if not learns_budgets(cfg):
        return policy
    file = budgets_file(cfg)
    if not file.is_file():
        with taking_turns(file):
            if not file.is_file():  # else another job was faster
                learn_budgets(cfg, lm, scorer, stand_in, policy, file)
    known = json.loads(file.read_text(encoding="utf-8"))
    require_weights(file, known["weights"], lm)
    if "levels" in known:
        policy = replace(policy, levels=levels_of(known["levels"]))
    if policy.scope == "threshold":
        policy = replace(policy, thresholds=learnt_policies.thresholds_of(known["thresholds"]))
    return policy


def learn_budgets(
    cfg: DictConfig, lm: LM, scorer: Scorer, stand_in: StandIn, policy: SparsityPolicy, file: Path
) -> None:
    """From the first windows of the calibration: levels first, and thresholds that remove these."""
    start = time.monotonic()
    batches, decided_at = JobIngredients(cfg, lm).sample(), cfg.sparsity.decided_at
    learnt: dict[str, Any] = {}
    if cfg.sparsity.budgets in ("greedy", "divergence"):
        probes = list(cfg.sparsity.slot_probes)
        ranked = policy if "block" in (policy.kinds or ()) else replace(policy, scope="layer")
        given = lm.model, scorer, ranked, decided_at, stand_in, batches
        by_slot = cfg.sparsity.budgets == "divergence"
        found = slot_budgets.learn(*given, probes) if by_slot else budgets.learn(*given)
        learnt = {
            "levels": rows_of(found.levels),
            "costs": [[*unit, *cost] for unit, costs in found.costs.items() for cost in costs],
            "passes": found.passes,
        }
    elif cfg.sparsity.budgets == "block":
        paths, step = get_paths(cfg, lm, scorer, stand_in, policy), cfg.sparsity.block.step
        learnt = {"levels": rows_of(block_budgets.levels_along(lm.model, scorer, policy, step, paths))}
    elif cfg.sparsity.budgets == "tails":
        learnt = {"levels": rows_of(given_budgets.by_tails(lm.model, scorer, policy))}
    elif cfg.sparsity.budgets == "angular":
        learnt = {"levels": rows_of(given_budgets.by_angle(lm.model, scorer, policy, batches))}
    if policy.scope == "threshold":
        if "levels" in learnt:
            policy = replace(policy, levels=levels_of(learnt["levels"]))
        values = thresholds.learn(lm.model, scorer, policy, decided_at, stand_in, batches)
        learnt["thresholds"] = learnt_policies.rows_of(values)
    seconds, windows = time.monotonic() - start, sum(len(batch.ids) for batch in batches)
    content = learnt | {
        "settings": budgets_settings(cfg),
        "weights": digest(lm.model),
        "windows": windows,
        "seconds": round(seconds, 1),
    }
    write_json(file, content)
    log.info("budgets: over %d windows, %.0f s -> %s", windows, seconds, file)


def get_paths(
    cfg: DictConfig, lm: LM, scorer: Scorer, stand_in: StandIn, policy: SparsityPolicy
) -> block_budgets.Paths:
    """Long enough for this level: one file for all levels, which grows where a level asks for more."""
    file, settings = paths_file(cfg), cfg.sparsity.block
    with taking_turns(file):
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"paths": {}}
        if known["paths"]:
            require_weights(file, known["weights"], lm)
        paths = {int(layer): list(path) for layer, path in known["paths"].items()}
        if min((len(path) for path in paths.values()), default=0) * settings.step < policy.level - 1e-9:
            batches = calibration_batches(cfg, lm, settings.windows)
            paths = block_budgets.extend(lm.model, scorer, policy, stand_in, batches, settings.step, paths)
            told = {"settings": paths_settings(cfg), "weights": digest(lm.model), "windows": settings.windows}
            write_json(file, told | {"paths": paths})
    return paths


def rows_of(levels: dict[SiteKey, float]) -> list[list[Any]]:
    return [[*unit, level] for unit, level in levels.items()]


def levels_of(rows: Iterable[tuple]) -> dict[SiteKey, float]:
    return {(layer, slot): level for layer, slot, level in rows}
