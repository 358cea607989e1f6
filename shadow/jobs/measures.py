"""What a point is measured by: texts, tasks and clocks, from a composed config to metrics."""

import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from shadow.data.batches import Example
from shadow.data.texts import fingerprint, questions, text_windows
from shadow.errors import UserError
from shadow.executors.run import Run
from shadow.jobs.measure_checks import judged_criteria, reads_text, running_text, task_root
from shadow.models.load import LM
from shadow.models.sites import Kind


def scored(cfg: DictConfig) -> str:
    """At which positions the model is scored."""
    if not cfg.measure.perplexity:
        return "answers"
    return "behind the prompt" if prompt_share(cfg) else "all"


def prompt_share(cfg: DictConfig) -> float:
    """Of a window: the prompt is left out of the loss where it has been read before the plan was made."""
    return cfg.measure.prompt_share if cfg.sparsity.decided_at == "prompt" else 0.0


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


def measure(cfg: DictConfig, lm: LM, run: Run) -> dict:
    from shadow.measures import evaluation  # lm-eval takes seconds to import

    settings = cfg.measure
    metrics: evaluation.Metrics = {}
    texts = running_text(cfg) if reads_text(cfg) else []
    if settings.perplexity or settings.divergence:
        windows = eval_windows(cfg, lm, texts, "windows", settings.tokens, prompt_share(cfg))
    if settings.divergence:
        from shadow.measures.divergence import Divergence, divergence
    if settings.perplexity and settings.divergence:
        beside = Divergence(run)
        metrics |= evaluation.perplexity(run, lm, windows, settings.batch_size, beside.add)
        metrics |= beside.metrics()
    elif settings.perplexity:
        metrics |= evaluation.perplexity(run, lm, windows, settings.batch_size)
    elif settings.divergence:
        metrics |= divergence(run, windows, settings.batch_size)
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
    from shadow.executors.cpu.gathered import GatheredRun
    from shadow.measures import latency
    from shadow.measures.evaluation import Metric

    settings = cfg.measure
    if not isinstance(run, GatheredRun):
        raise UserError(f"measure.latency times what runs on the CPU, and this model is on {lm.model.device}")
    prompts = eval_windows(cfg, lm, texts, "rounds", settings.prompt_tokens, 1.0)
    ids = [torch.tensor([prompt.ids]) for prompt in prompts]
    figures = latency.beside_dense(run, lm.model, ids, settings.new_tokens, settings.compiled)
    return {f"latency/{name}": Metric(value, None) for name, value in figures.items()}


def _quality(cfg: DictConfig, lm: LM, texts: list[str]) -> dict:
    from shadow.measures.criterion_quality import criterion_quality, sample_units
    from shadow.measures.evaluation import Metric, rows

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
    from shadow.measures.evaluation import Metric, rows
    from shadow.measures.rank_variance import rank_variances

    settings = cfg.measure
    windows = eval_windows(cfg, lm, texts, "context_windows", settings.tokens, settings.prompt_share)
    batch_size = rows(windows, settings.batch_size)
    found = rank_variances(lm.model, windows, list(settings.context), cfg.traces.loss, batch_size)
    return {
        f"rank_variance/{name}/{layer}": Metric(float(of_heads.mean()), None, of_heads.tolist())
        for (name, layer), of_heads in found.items()
    }
