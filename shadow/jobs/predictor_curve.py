"""What lies beside a predictor that is trained: its measured points, and thresholds learnt for it."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from shadow.artifacts import curve, hub, learnt_policies
from shadow.artifacts.card import STDERR
from shadow.artifacts.files import alone, key_of
from shadow.fit.recipe import Net
from shadow.jobs.config import data_label, executor_label
from shadow.jobs.keys import budgets_file, predictor_folder
from shadow.jobs.measure_checks import reads_text
from shadow.jobs.measures import scored
from shadow.jobs.method import is_trained, net_of, policy_of, stand_in_of
from shadow.jobs.point_records import settings_of
from shadow.plans.policy import SparsityPolicy


def add_to_curve(cfg: DictConfig, record: dict[str, Any]) -> None:
    """Add a point of a trained net to the curve in its folder; the dense model is no predictor's."""
    if not is_trained(cfg) or cfg.sparsity.level == 0:
        return
    folder = predictor_folder(cfg)
    if not (folder / hub.CONFIG).is_file():
        return  # measured before, and removed since
    settings = settings_of(cfg, record)
    del settings["libraries"]  # other versions measure the same point anew
    row = {
        "point": key_of(settings),
        "level": cfg.sparsity.level,
        "decided_at": cfg.sparsity.decided_at,
        "scope": cfg.sparsity.scope,
        "tokens": cfg.sparsity.tokens,
        "scored": scored(cfg),
        "stand_in": stand_in_of(cfg),
        "data": data_label(cfg),
        "other": unusual(cfg),
        "bytes_skipped": record["bytes"]["skipped"],
        "bytes_skipped_of_layers": record["bytes"]["skipped_of_layers"],
        **{f"achieved_{kind}": share for kind, share in record["achieved"].items()},
        "commit": record["commit"]["sha"],
    }
    for name, metric in record["metrics"].items():
        row |= {name: metric["value"], f"{name}{STDERR}": metric["stderr"]}
    with alone(folder):  # jobs of other levels add theirs
        save_thresholds(cfg, folder)
        curve.add(folder, hub.read_config(folder), row)


def save_thresholds(cfg: DictConfig, folder: Path) -> None:
    """Those by which a predictor is used unasked: of all that it scores, with its own stand-in."""
    config, policy, file = hub.read_config(folder), policy_of(cfg), budgets_file(cfg)
    uniform = policy.scope == "threshold" and cfg.sparsity.budgets == "uniform"
    if not uniform or not file.is_file() or not net_of(cfg).as_trained:
        return
    usual = SparsityPolicy(
        policy.level, "threshold", dense_layers=hub.dense_layers(config), kinds=config["kinds"]
    )
    stand_in = "mean" if config["deviates"] else "zero"
    if stand_in_of(cfg) == stand_in and replace(policy, dense_layers=list(policy.dense_layers)) == usual:
        known = json.loads(file.read_text(encoding="utf-8"))
        learnt = replace(policy, thresholds=learnt_policies.thresholds_of(known["thresholds"]))
        on = {
            "data": data_label(cfg),
            "windows": known["windows"],
            "fewshot": cfg.sparsity.budget_fewshot,
            "seed": cfg.seed,
            "weights": known["weights"],
        }
        learnt_policies.save(folder, cfg.sparsity.decided_at, learnt, on)


def unusual(cfg: DictConfig) -> str:
    """What else tells the plans of this point from others, where it is not as it mostly is."""
    policy = policy_of(cfg)
    found = {field.name: (getattr(policy, field.name), field.default) for field in fields(policy)}
    for name in ("level", "scope", "tokens"):  # columns of their own
        found.pop(name, None)
    found["kinds"] = (policy.kinds, net_of(cfg).scored)
    found["budgets"] = (cfg.sparsity.budgets, "uniform")
    found |= {name: (cfg.predictor[name], False) for name in Net.IN_USE if name in cfg.predictor}
    if reads_text(cfg) and cfg.measure.text is not None:
        found["text"] = (Path(cfg.measure.text).name, None)
    found |= {"dtype": (cfg.measure.dtype, None), "storage": (cfg.executor.get("storage"), None)}
    found["executor"] = (executor_label(cfg), "masked")
    return ", ".join(
        f"{name}={as_list(value)}"
        for name, (value, usual) in found.items()
        if as_list(value) != as_list(usual)
    )


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
