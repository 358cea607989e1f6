"""How many units go in each layer, and above which scores they stay: as configured, found, or learnt."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from shadow.artifacts import learnt_policies
from shadow.artifacts.files import write_json
from shadow.fit import budgets, thresholds
from shadow.jobs.ingredients import JobIngredients
from shadow.jobs.keys import budgets_file, budgets_settings
from shadow.jobs.loading import require_weights
from shadow.jobs.method import learns_budgets, policy_of, ranks_layers
from shadow.jobs.stores import taking_turns
from shadow.models.digest import digest
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Scorer

log = logging.getLogger(__name__)


def get_policy(cfg: DictConfig, lm: LM, scorer: Scorer, stand_in: StandIn) -> SparsityPolicy:
    """With the budgets of these settings, levels or thresholds, which are learnt if they are missing."""
    policy = policy_of(cfg)
    if ranks_layers(cfg):
        static = JobIngredients(cfg, lm).static()
        return replace(policy, levels=budgets.by_rank(static, policy, find_sites(lm.model)))
    if not learns_budgets(cfg):
        return policy
    file = budgets_file(cfg)
    if not file.is_file():
        with taking_turns(file):
            if not file.is_file():  # else another job was faster
                learn_budgets(cfg, lm, scorer, stand_in, file)
    known = json.loads(file.read_text(encoding="utf-8"))
    require_weights(file, known["weights"], lm)
    if policy.scope == "threshold":
        return replace(policy, thresholds=learnt_policies.thresholds_of(known["thresholds"]))
    return replace(policy, levels={(layer, kind): level for layer, kind, level in known["levels"]})


def learn_budgets(cfg: DictConfig, lm: LM, scorer: Scorer, stand_in: StandIn, file: Path) -> None:
    """From the first windows of the calibration."""
    start = time.monotonic()
    batches = JobIngredients(cfg, lm).sample()
    policy, decided_at = policy_of(cfg), cfg.sparsity.decided_at
    learnt: dict[str, Any]
    if policy.scope == "threshold":
        values = thresholds.learn(lm.model, scorer, policy, decided_at, stand_in, batches)
        learnt = {"thresholds": learnt_policies.rows_of(values)}
    else:
        found = budgets.learn(lm.model, scorer, policy, decided_at, stand_in, batches)
        learnt = {
            "levels": [[*unit, level] for unit, level in found.levels.items()],
            "costs": [[*unit, *cost] for unit, costs in found.costs.items() for cost in costs],
            "passes": found.passes,
        }
    seconds, windows = time.monotonic() - start, sum(len(batch.ids) for batch in batches)
    content = learnt | {
        "settings": budgets_settings(cfg),
        "weights": digest(lm.model),
        "windows": windows,
        "seconds": round(seconds, 1),
    }
    write_json(file, content)
    log.info("budgets: over %d windows, %.0f s -> %s", windows, seconds, file)
