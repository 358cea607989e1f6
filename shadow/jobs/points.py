"""One point of a curve: what it is, measuring it, and finding it again."""

import json
import math
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from shadow import criteria, curve, hub, policies
from shadow.artifacts import key_of, write_json, writing
from shadow.batches import Example
from shadow.card import STDERR
from shadow.errors import UserError
from shadow.jobs import settings as names
from shadow.masked import Run
from shadow.models import LM, require_dtype
from shadow.sites import Kind
from shadow.sparsity import SparsityPolicy
from shadow.texts import fingerprint, questions, read_documents, text_windows

UNTOLD = ("root", "text", "column", "dense_fed", "raw_inputs")  # where tasks and text lie; and of nets alone
OF_TEXT = (
    "perplexity",
    "choices",
    "quality",
    "latency",
    "context",
)  # measured on running text
MEASURES = (*OF_TEXT, "tasks")
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


def check_measure(cfg: DictConfig) -> None:
    """Everything about the measure that can be refused before a model is loaded."""
    settings = cfg.measure
    if settings.batch_size != "auto" and not (
        isinstance(settings.batch_size, int) and settings.batch_size > 0
    ):
        raise UserError(
            f"measure.batch_size must be a whole number of at least 1, or auto, got {settings.batch_size!r}"
        )
    if not any(settings[name] for name in MEASURES):
        raise UserError(f"measure must ask for at least one of {', '.join(MEASURES)}")
    if settings.dtype is not None:
        require_dtype("measure.dtype", settings.dtype)
    if reads_text(cfg):
        running_text(cfg)
    elif settings.text is not None:
        raise UserError(
            f"measure.text={settings.text!r} is read by {', '.join(OF_TEXT)}, and measure asks for none of "
            "these: leave it out, or give measure.perplexity=true"
        )
    if settings.quality:
        criteria.require("measure.quality", judged_criteria(cfg))
        if set(judged_criteria(cfg)) & set(criteria.BESIDE_MEANS):
            raise UserError(
                "measure.quality judges criteria by what setting a unit to 0 does, and cannot judge "
                f"{list(criteria.BESIDE_MEANS)}, got {judged_criteria(cfg)}"
            )
        if cfg.sparsity.level != 0:
            raise UserError(
                f"measure.quality judges criteria on the dense model: sparsity.level must be 0, got "
                f"{cfg.sparsity.level}"
            )
    if settings.context:
        check_context(cfg)
    if settings.tasks:
        from shadow.tasks import require_tasks, task_specs  # lm-eval takes seconds to import

        require_tasks(settings.tasks)
        task_specs(settings.tasks, task_root(cfg))


def reads_text(cfg: DictConfig) -> bool:
    return any(cfg.measure[name] for name in OF_TEXT)


def running_text(cfg: DictConfig) -> list[str]:
    """Of `measure.text`, so that a scorer of one kind of text can be measured on another; else of `data`."""
    if cfg.measure.text is not None:
        return read_documents("measure.text", cfg.measure.text, cfg.measure.column)
    return names.calibration_data(cfg).documents("eval")


def check_context(cfg: DictConfig) -> None:
    asked = list(cfg.measure.context)
    criteria.require("measure.context", asked)
    cannot = {*criteria.STATISTICS, *criteria.BESIDE_MEANS, criteria.RANDOM}
    if set(asked) & cannot:
        raise UserError(
            "measure.context ranks heads by each window's own scores, beside nothing else: it takes no "
            f"{sorted(cannot)}, got {asked}"
        )
    if cfg.sparsity.level != 0 or cfg.measure.context_windows < 2:
        raise UserError(
            "measure.context looks at the dense model over several windows: sparsity.level must be 0 and "
            f"measure.context_windows at least 2, got {cfg.sparsity.level} and {cfg.measure.context_windows}"
        )


def judged_criteria(cfg: DictConfig) -> list[str]:
    """Those that tell of a unit that is set to 0, as the judge's are."""
    if cfg.measure.quality == "all":
        return [name for name in criteria.CRITERIA if name not in criteria.BESIDE_MEANS]
    return list(cfg.measure.quality)


def task_root(cfg: DictConfig) -> str | None:
    return cfg.measure.root or cfg.data.get("root")


def settings_of(cfg: DictConfig, code: str) -> dict[str, Any]:
    """What decides the figures of this point. The dense model's are the same whoever would have scored."""
    content = content_of(cfg)
    settings: dict[str, Any] = {
        "code": code,
        "model": names.model_settings(cfg),
        "device": cfg.trainer.accelerator,
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


def content_of(cfg: DictConfig) -> dict[str, Any]:
    """Names what was measured on: files of one name may differ, and of two names be alike."""
    return {
        "text": fingerprint(running_text(cfg)) if reads_text(cfg) else None,
        "tasks": {task: _task_content(task, task_root(cfg)) for task in cfg.measure.tasks},
    }


def _task_content(task: str, root: str | None) -> str:
    if not root:
        return "hub"
    files = sorted((Path(root).expanduser() / task).glob("*.jsonl"))
    return fingerprint([file.read_text(encoding="utf-8") for file in files])


def _file(cfg: DictConfig, code: str) -> Path:
    return Path(cfg.paths.artifact_dir) / "points" / f"{key_of(settings_of(cfg, code))}.json"


def find(cfg: DictConfig, record: dict[str, Any]) -> Path | None:
    """Fill the record from the same point measured before, if there is one."""
    file = _file(cfg, record["code"])
    if not cfg.reuse_points or not file.is_file():
        return None
    known = json.loads(file.read_text())
    record |= {
        "achieved": known["achieved"],
        "metrics": known["metrics"],
        "predictor": known["predictor"],
        "reused_from": known["measured_in"],
    }
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
    where = {"measured_in": measured_in, "settings": settings_of(cfg, record["code"])}
    figures = {name: record[name] for name in ("achieved", "metrics", "predictor")}
    samples = json.dumps({name: m.samples for name, m in metrics.items() if m.samples is not None})
    file = _file(cfg, record["code"])
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
    tell_thresholds(cfg, folder)
    settings = settings_of(cfg, record["code"])
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
        policies.save(folder, cfg.sparsity.decided_at, learnt)


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


def measure(cfg: DictConfig, lm: LM, run: Run) -> dict:
    from shadow import evaluation  # lm-eval takes seconds to import

    settings = cfg.measure
    metrics: evaluation.Metrics = {}
    texts = running_text(cfg) if reads_text(cfg) else []
    if settings.perplexity:
        # the prompt is left out of the loss only where it has been read before the plan was made
        share = settings.prompt_share if cfg.sparsity.decided_at == "prompt" else 0.0
        windows = eval_windows(cfg, lm, texts, "windows", settings.tokens, share)
        metrics |= evaluation.perplexity(run, lm, windows, settings.batch_size)
    if settings.choices:
        asked = questions(
            texts,
            lm.tokenizer,
            settings.questions,
            settings.options,
            settings.context_tokens,
            settings.continuation_tokens,
            settings.seed,
        )
        metrics |= evaluation.choice_accuracy(run, asked, settings.batch_size)
    if settings.latency:
        metrics |= _latency(cfg, lm, texts, run)
    if settings.quality:
        metrics |= _quality(cfg, lm, texts)
    if settings.context:
        metrics |= _context(cfg, lm, texts)
    if settings.tasks:
        metrics |= evaluation.task_metrics(
            run,
            lm,
            list(settings.tasks),
            task_root(cfg),
            settings.limit,
            settings.num_fewshot,
            settings.batch_size,
            settings.seed,
        )
    return metrics


def eval_windows(
    cfg: DictConfig, lm: LM, texts: list[str], setting: str, tokens: int, prompt_share: float
) -> list[Example]:
    """Of the evaluation text, as many as this setting of the measure says."""
    count, name = cfg.measure[setting], f"measure.{setting}"
    return text_windows(texts, lm.tokenizer, count, tokens, prompt_share, cfg.measure.seed, name)


def _latency(cfg: DictConfig, lm: LM, texts: list[str], run: Run) -> dict:
    from shadow import latency
    from shadow.evaluation import Metric
    from shadow.fast.gathered import GatheredRun

    settings = cfg.measure
    if not isinstance(run, GatheredRun):
        raise UserError(f"measure.latency times what runs on the CPU, and this model is on {lm.model.device}")
    prompts = eval_windows(cfg, lm, texts, "rounds", settings.prompt_tokens, 1.0)
    ids = [torch.tensor([prompt.ids]) for prompt in prompts]
    figures = latency.beside_dense(run, lm.model, ids, settings.new_tokens, settings.compiled)
    return {f"latency/{name}": Metric(value, None) for name, value in figures.items()}


def _quality(cfg: DictConfig, lm: LM, texts: list[str]) -> dict:
    from shadow.evaluation import Metric, rows
    from shadow.quality import criterion_quality, sample_units

    settings = cfg.measure
    windows = eval_windows(cfg, lm, texts, "quality_windows", settings.tokens, settings.prompt_share)
    per_layer: dict[Kind, int | None] = {"head": settings.quality_heads, "neuron": settings.quality_neurons}
    units = sample_units(lm.model, settings.quality_layers, per_layer, settings.seed)
    judged = criterion_quality(
        lm.model, windows, judged_criteria(cfg), cfg.traces.loss, units, rows(windows, settings.batch_size)
    )
    metrics = {}
    for name, found in judged.items():
        if not math.isnan(found.spearman):  # scores that never differ agree with nothing
            metrics[f"{name}/spearman"] = Metric(found.spearman, found.spearman_error)
            metrics[f"{name}/recall@50"] = Metric(found.recall, found.recall_error)
    return metrics


def _context(cfg: DictConfig, lm: LM, texts: list[str]) -> dict:
    """`rank_variance/<criterion>/<layer>`: the mean over heads, which stand where samples do."""
    from shadow.context import rank_variances
    from shadow.evaluation import Metric, rows

    settings = cfg.measure
    windows = eval_windows(cfg, lm, texts, "context_windows", settings.tokens, settings.prompt_share)
    batch_size = rows(windows, settings.batch_size)
    found = rank_variances(lm.model, windows, list(settings.context), cfg.traces.loss, batch_size)
    return {
        f"rank_variance/{name}/{layer}": Metric(float(of_heads.mean()), None, of_heads.tolist())
        for (name, layer), of_heads in found.items()
    }
