"""One point of a curve: what it is, keeping it, and finding it again."""

import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from shadow.artifacts import curve, hub
from shadow.artifacts import learnt_policies as policies
from shadow.artifacts.card import STDERR
from shadow.artifacts.files import alone, key_of, write_json, writing
from shadow.jobs import settings as names
from shadow.jobs.measures import reads_text
from shadow.plans.policy import SparsityPolicy

UNTOLD = ("root", "text", "column", "dense_fed", "raw_inputs")  # where tasks and text lie; and of nets alone
OF_RUN = ("commit", "versions", "machine")  # of a record: by what a point was measured
SAMPLES = "samples.json"  # beside run.json: of each metric, a figure for each example


def describe(cfg: DictConfig) -> dict[str, Any]:
    return {
        "model": names.model_label(cfg),
        "data": names.data_label(cfg),
        "criterion": cfg.criterion.name,
        "scorer": cfg.predictor.name,
        "decided_at": cfg.sparsity.decided_at,
        "scope": cfg.sparsity.scope,
        "level": cfg.sparsity.level,
        "seed": cfg.seed,
    }


def settings_of(cfg: DictConfig, record: dict[str, Any]) -> dict[str, Any]:
    """What decides the figures of this point. The dense model's are the same whoever would have scored.

    record: with the `code` that runs, and the `content` of what is measured, as `measures` names it.
    """
    content = record["content"]
    settings: dict[str, Any] = {
        "code": record["code"],
        "model": names.model_settings(cfg),
        "device": names.device_of(cfg).type,
        "measure": {key: value for key, value in names.plain(cfg.measure).items() if key not in UNTOLD},
        "content": content["text"],
        "task_content": list(content["tasks"].values()),
        "executor": names.plain(cfg.executor),
        "decided_at": cfg.sparsity.decided_at,
        "seed": cfg.seed,
    }
    if cfg.measure.quality or cfg.measure.context:
        settings["loss"] = cfg.traces.loss
    if cfg.measure.latency:  # what can be told of the machine that was timed
        capability = torch.backends.cpu.get_cpu_capability()
        settings["machine"] = [os.cpu_count(), torch.get_num_threads(), capability]
    if cfg.sparsity.level > 0:
        settings |= names.scorer_settings(cfg)
        if names.learns_budgets(cfg):
            settings["budgets"] = names.budgets_settings(cfg)
    return settings


def _file(cfg: DictConfig, record: dict[str, Any]) -> Path:
    return Path(cfg.paths.artifact_dir) / "points" / f"{key_of(settings_of(cfg, record))}.json"


def find(cfg: DictConfig, record: dict[str, Any]) -> Path | None:
    """Fill the record from the same point measured before, if there is one."""
    file = _file(cfg, record)
    if not cfg.reuse_points or not file.is_file():
        return None
    known = json.loads(file.read_text())
    record |= {
        "achieved": known["achieved"],
        "metrics": known["metrics"],
        "predictor": known["predictor"],
        "reused_from": known["measured_in"],
    }
    record |= {name: known[name] for name in OF_RUN if name in known}  # points of before have none
    with writing(_samples_beside_record(cfg)) as unfinished:
        shutil.copyfile(_samples_of(file), unfinished)
    return file


def _samples_of(point: Path) -> Path:
    return point.with_suffix(f".{SAMPLES}")


def _samples_beside_record(cfg: DictConfig) -> Path:
    return Path(cfg.paths.output_dir) / SAMPLES


def keep(cfg: DictConfig, record: dict[str, Any], achieved: dict, metrics: dict) -> None:
    record["achieved"] = achieved
    record["predictor"] = predictor_of(cfg)
    record["metrics"] = {name: {"value": m.value, "stderr": m.stderr} for name, m in metrics.items()}
    measured_in = os.path.relpath(cfg.paths.output_dir, cfg.paths.root_dir)
    where = {"measured_in": measured_in, "settings": settings_of(cfg, record)}
    where |= {name: record[name] for name in OF_RUN if name in record}
    figures = {name: record[name] for name in ("achieved", "metrics", "predictor")}
    samples = json.dumps({name: m.samples for name, m in metrics.items() if m.samples is not None})
    file = _file(cfg, record)
    for beside in (_samples_beside_record(cfg), _samples_of(file)):  # before the point: a kill leaves no half
        with writing(beside) as unfinished:
            unfinished.write_text(samples + "\n")
    write_json(file, figures | where)
    tell(cfg, record)


def predictor_of(cfg: DictConfig) -> dict[str, Any] | None:
    """How large the net of this point is, and how well it fits; None where no net decides."""
    folder = names.predictor_folder(cfg) if cfg.predictor.name in names.NETS else None
    if folder is None or cfg.sparsity.level == 0 or not (folder / hub.CONFIG).is_file():
        return None
    config = hub.read_config(folder)
    net = config["net"]
    return {
        "taps": len(config["taps"]),
        "rank": net["rank"] if "rank" in net else net["neuron"],  # the paper's nets: of their larger part
        "parameters": config["parameters"],
        "share_of_model": config["share_of_model"],
        "metrics": config["metrics"],  # of its fit, on validation rows
    }


def tell(cfg: DictConfig, record: dict[str, Any]) -> None:
    """Add a point of a trained net to the curve in its folder; the dense model is no predictor's."""
    if cfg.predictor.name not in names.NETS or cfg.sparsity.level == 0:
        return
    folder = names.predictor_folder(cfg)
    if not (folder / hub.CONFIG).is_file():
        return  # measured before, and removed since
    settings = settings_of(cfg, record)
    del settings["code"]  # other code measures the same point anew
    row = {
        "point": key_of(settings),
        "level": cfg.sparsity.level,
        "decided_at": cfg.sparsity.decided_at,
        "scope": cfg.sparsity.scope,
        "fill": names.fill_of(cfg),
        "data": names.data_label(cfg),
        "other": unusual(cfg),
        **{f"achieved_{kind}": share for kind, share in record["achieved"].items()},
        "code": record["code"],
        "commit": record.get("commit", {}).get("sha"),
    }
    for name, metric in record["metrics"].items():
        row |= {name: metric["value"], f"{name}{STDERR}": metric["stderr"]}
    with alone(folder):  # jobs of other levels add theirs
        tell_thresholds(cfg, folder)
        curve.add(folder, hub.read_config(folder), row)


def tell_thresholds(cfg: DictConfig, folder: Path) -> None:
    """Beside a predictor lie those by which it is used unasked: of all that it scores, with its own fill."""
    config, policy, file = hub.read_config(folder), names.policy_of(cfg), names.budgets_file(cfg)
    if policy.scope != "threshold" or not file.is_file() or cfg.measure.dense_fed or cfg.measure.raw_inputs:
        return
    usual = SparsityPolicy(
        policy.level, "threshold", dense_layers=hub.dense_layers(config), kinds=config["kinds"]
    )
    fill = "mean" if config["deviates"] else "zero"
    if names.fill_of(cfg) == fill and replace(policy, dense_layers=list(policy.dense_layers)) == usual:
        known = json.loads(file.read_text(encoding="utf-8"))
        learnt = replace(policy, thresholds=policies.thresholds_of(known["thresholds"]))
        on = {
            "data": names.data_label(cfg),
            "windows": known["windows"],
            "fewshot": cfg.sparsity.budget_fewshot,
            "seed": cfg.seed,
            "weights": known["weights"],
        }
        policies.save(folder, cfg.sparsity.decided_at, learnt, on)


def unusual(cfg: DictConfig) -> str:
    """What else tells the plans of this point from others, where it is not as it mostly is."""
    policy, told = names.policy_of(cfg), ("level", "scope")
    found = {field.name: (getattr(policy, field.name), field.default) for field in fields(policy)}
    found["budgets"] = (cfg.sparsity.budgets, "uniform")
    for name in ("dense_fed", "raw_inputs"):
        found[name] = (cfg.measure[name], False)
    if reads_text(cfg) and cfg.measure.text is not None:
        found["text"] = (Path(cfg.measure.text).name, None)
    found |= {"dtype": (cfg.measure.dtype, None), "storage": (cfg.executor.storage, None)}
    found["executor"] = (cfg.executor.name, "masked")
    return ", ".join(
        f"{name}={plainly(value)}"
        for name, (value, usual) in found.items()
        if name not in told and plainly(value) != plainly(usual)
    )


def plainly(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
