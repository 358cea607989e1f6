"""One point of a curve: what it is, keeping it, and finding it again."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from shadow.artifacts import hub
from shadow.artifacts.files import key_of, write_json, writing
from shadow.executors.gathered import Gathered
from shadow.jobs.config import data_label, device_of, model_label, plain
from shadow.jobs.keys import (
    POINT_FORMAT,
    budgets_settings,
    counted,
    method_settings,
    model_settings,
    predictor_folder,
)
from shadow.jobs.measures import scored
from shadow.jobs.method import executor_of, is_trained, learns_budgets
from shadow.jobs.run import versions

LIBRARIES = ("torch", "transformers", "lm-eval")  # whose versions change figures
OF_RUN = ("commit", "versions", "machine")  # of a record: by what a point was measured
FIGURES = ("achieved", "bytes", "metrics", "predictor")
SAMPLES = "samples.json"  # beside run.json: of each metric, a figure for each example


def describe(cfg: DictConfig) -> dict[str, Any]:
    """tokens: those that are sparse; scored: those that the figures are of."""
    return {
        "model": model_label(cfg),
        "data": data_label(cfg),
        "criterion": cfg.criterion.name,
        "scorer": cfg.predictor.name,
        "decided_at": cfg.sparsity.decided_at,
        "scope": cfg.sparsity.scope,
        "level": cfg.sparsity.level,
        "tokens": cfg.sparsity.tokens,
        "scored": scored(cfg),
        "seed": cfg.seed,
    }


def settings_of(cfg: DictConfig, record: dict[str, Any]) -> dict[str, Any]:
    """What decides the figures of this point. The dense model's are the same whoever would have scored.

    record: with the `content` of what is measured, as `measures` names it.
    """
    content, known = record["content"], versions()
    libraries = [*LIBRARIES, "numba"] if isinstance(executor_of(cfg), Gathered) else LIBRARIES
    settings: dict[str, Any] = {
        "format": POINT_FORMAT,
        "libraries": {name: known[name] for name in libraries},
        "model": model_settings(cfg),
        "device": device_of(cfg).type,
        "measure": counted(cfg, "measure"),
        "content": content["text"],
        "task_content": list(content["tasks"].values()),
        "executor": plain(cfg.executor),
        "decided_at": cfg.sparsity.decided_at,
        "seed": cfg.seed,
    }
    if cfg.measure.quality or cfg.measure.context:
        settings["loss"] = cfg.traces.loss
    if cfg.measure.latency:  # what can be known of the machine that was timed
        capability = torch.backends.cpu.get_cpu_capability()
        settings["machine"] = [os.cpu_count(), torch.get_num_threads(), capability]
    if cfg.sparsity.level > 0:
        settings |= method_settings(cfg)
        if learns_budgets(cfg):
            settings["budgets"] = budgets_settings(cfg)
    return settings


def _file(cfg: DictConfig, record: dict[str, Any]) -> Path:
    return Path(cfg.paths.artifact_dir) / "points" / f"{key_of(settings_of(cfg, record))}.json"


def find(cfg: DictConfig, record: dict[str, Any]) -> Path | None:
    """Fill the record from the same point measured before, if there is one."""
    file = _file(cfg, record)
    if not cfg.reuse_points or not file.is_file():
        return None
    known = json.loads(file.read_text())
    record |= {name: known[name] for name in FIGURES} | {"reused_from": known["measured_in"]}
    record |= {name: known[name] for name in OF_RUN} | {"kept_in": file.name}
    with writing(_samples_beside_record(cfg)) as unfinished:
        shutil.copyfile(_samples_of(file), unfinished)
    return file


def dense_beside(cfg: DictConfig, record: dict[str, Any]) -> Path | None:
    """The run record of the dense model, measured before as this job measures; None where it was not.

    It is laid into the folder of the sweep, or of the run, so that reports find it there.
    """
    if cfg.sparsity.level == 0:
        return None
    dense = cfg.copy()
    dense.sparsity.level = 0
    point = _file(dense, record)
    if not point.is_file():
        return None
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir if hydra.mode == RunMode.MULTIRUN else cfg.paths.output_dir)
    file = folder / "looked_up" / point.stem / "run.json"
    if not file.is_file():
        known = json.loads(point.read_text())
        told = record | {name: known[name] for name in FIGURES + OF_RUN}
        told |= {"status": "done", "point": describe(dense), "settings": plain(dense), "seconds": 0.0}
        told |= {"reused_from": known["measured_in"], "kept_in": point.name}
        with writing(file.with_name(SAMPLES)) as unfinished:
            shutil.copyfile(_samples_of(point), unfinished)
        write_json(file, told)
    return file


def _samples_of(point: Path) -> Path:
    return point.with_suffix(f".{SAMPLES}")


def _samples_beside_record(cfg: DictConfig) -> Path:
    return Path(cfg.paths.output_dir) / SAMPLES


def keep(cfg: DictConfig, record: dict[str, Any], achieved: dict, unread: dict, metrics: dict) -> None:
    """achieved: share of units that was skipped, by kind; unread: shares of the weights' bytes."""
    record["achieved"], record["bytes"] = achieved, unread
    record["predictor"] = predictor_of(cfg)
    record["metrics"] = {name: {"value": m.value, "stderr": m.stderr} for name, m in metrics.items()}
    measured_in = os.path.relpath(cfg.paths.output_dir, cfg.paths.root_dir)
    where = {"measured_in": measured_in, "settings": settings_of(cfg, record)}
    where |= {name: record[name] for name in OF_RUN}
    figures = {name: record[name] for name in FIGURES}
    samples = json.dumps({name: m.samples for name, m in metrics.items() if m.samples is not None})
    file = _file(cfg, record)
    for beside in (_samples_beside_record(cfg), _samples_of(file)):  # before the point: a kill leaves no half
        with writing(beside) as unfinished:
            unfinished.write_text(samples + "\n")
    write_json(file, figures | where)
    record["kept_in"] = file.name


def predictor_of(cfg: DictConfig) -> dict[str, Any] | None:
    """How large the net of this point is, and how well it fits; None where no net decides."""
    folder = predictor_folder(cfg) if is_trained(cfg) else None
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
