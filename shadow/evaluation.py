"""Measuring a model inside `sparse`: perplexity, the choice task, lm-eval tasks."""

import logging
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from lm_eval import evaluate
from tqdm import tqdm

from shadow.batches import IGNORED, Example, batched
from shadow.harness import SparseHFLM
from shadow.masked import Run
from shadow.models import LM
from shadow.scores import token_losses
from shadow.tasks import load_tasks, require_tasks, task_specs
from shadow.texts import Question

log = logging.getLogger(__name__)


class Metric(NamedTuple):
    """samples: a figure for each example, in order; their mean is the value, or of a perplexity its log."""

    value: float
    stderr: float | None
    samples: list[float] | None = None


Metrics = dict[str, Metric]


def perplexity(run: Run, lm: LM, windows: Sequence[Example], batch_size: int) -> Metrics:
    """Token and word perplexity of the windows' loss tokens; words are what white space parts in the text.

    The standard error is that of the mean loss over windows, carried through the exponential.
    """
    losses, words = [], 0
    with tqdm(total=len(windows), desc="perplexity", leave=False) as bar:
        for batch in batched(windows, batch_size):
            losses += token_losses(run.logits(batch).cpu(), batch.labels).sum(1).tolist()
            for row in batch.labels:
                words += len(str(lm.tokenizer.decode(row[row != IGNORED])).split())
            bar.update(len(batch.ids))
    tokens = sum(len(window.ids) - max(window.prompt, 1) for window in windows)
    return {
        "perplexity": _exponential(losses, tokens),
        "word_perplexity": _exponential(losses, words),
    }


def _exponential(losses: Sequence[float], count: int) -> Metric:
    value = math.exp(min(sum(losses) / count, 700.0))  # exp overflows a float beyond
    spread = statistics.stdev(losses) * math.sqrt(len(losses)) / count if len(losses) > 1 else None
    samples = [loss * len(losses) / count for loss in losses]  # long windows count for more
    return Metric(value, None if spread is None else value * spread, samples)


def choice_accuracy(run: Run, questions: Sequence[Question], batch_size: int) -> Metrics:
    """Share of questions whose true continuation is the likeliest; all continuations are equally long."""
    examples = [Example(q.context + option, len(q.context)) for q in questions for option in q.options]
    losses: list[float] = []
    with tqdm(total=len(examples), desc="choices", leave=False) as bar:
        for batch in batched(examples, batch_size):
            losses += token_losses(run.logits(batch).cpu(), batch.labels).sum(1).tolist()
            bar.update(len(batch.ids))
    remaining = iter(losses)
    right = []
    for question in questions:
        of_options = [next(remaining) for _ in question.options]
        right.append(of_options.index(min(of_options)) == question.gold)
    share = sum(right) / len(right)
    stderr = math.sqrt(share * (1 - share) / max(len(right) - 1, 1))
    return {"choices/acc": Metric(share, stderr, [float(one) for one in right])}


def task_metrics(
    run: Run,
    lm: LM,
    tasks: Sequence[str],
    root: str | None,
    limit: int | None,
    num_fewshot: int,
    batch_size: int,
    seed: int,
) -> Metrics:
    """lm-eval's metrics with its standard errors, named `<task>/<metric>`."""
    manager = require_tasks(tasks)
    specs = task_specs(tasks, root)
    loaded = load_tasks(manager, specs)  # a missing data set ends here, not after the first task has run
    for task in loaded.values():
        if task.get_config("num_fewshot") != 0:  # 0 is a task's own wish, as in simple_evaluate
            task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
    # simple_evaluate would also list the machine's packages after each call, which takes seconds
    results = evaluate(
        lm=SparseHFLM(run, lm, batch_size),
        task_dict={"tasks": loaded, "groups": {}},
        limit=limit,
        bootstrap_iters=1000,  # only for metrics that have no closed form
        log_samples=True,
    )
    assert results is not None
    metrics: Metrics = {}
    for task, found in results["results"].items():
        for name, value in found.items():
            metric, comma, filtered = name.partition(",")
            if comma and not metric.endswith("_stderr"):
                stderr = found.get(f"{metric}_stderr,{filtered}")
                metrics[f"{task}/{metric}"] = Metric(
                    value,
                    stderr if isinstance(stderr, float) else None,
                    _of_documents(results["samples"][task], metric, filtered),
                )
    return metrics


def _of_documents(logged: Sequence[dict], metric: str, filtered: str) -> list[float] | None:
    """What lm-eval logged of each document, in their order; None for metrics that are no mean of numbers."""
    ours = sorted((one for one in logged if one["filter"] == filtered), key=lambda one: one["doc_id"])
    values = [float(one[metric]) for one in ours if isinstance(one.get(metric), int | float)]
    return values if len(values) == len(ours) else None
