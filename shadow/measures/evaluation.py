"""Measuring a model inside `sparse`: perplexity, the choice task, lm-eval tasks."""

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lm_eval import evaluate
from torch import Tensor

from shadow.criteria.one_pass import token_losses
from shadow.data.batches import IGNORED, Batch, Example, batched
from shadow.data.tasks import check_shots, load_tasks, require_tasks, task_specs
from shadow.data.texts import Question
from shadow.executors.run import Run
from shadow.measures.sparse_hf import BatchSize, SparseHFLM, check_rolling, rows_of
from shadow.models.load import LM
from shadow.terminal.bars import stage

log = logging.getLogger(__name__)


class Metric(NamedTuple):
    """samples: a figure for each example, in order; their mean is the value, or of a perplexity its log."""

    value: float
    stderr: float | None
    samples: list[float] | None = None


Metrics = dict[str, Metric]
LARGEST = 700.0  # of an exponent: exp overflows a float soon after
WEIGHTED = ("word_perplexity", "byte_perplexity", "bits_per_byte")  # lm-eval's means over words or bytes


def perplexity(
    run: Run,
    lm: LM,
    windows: Sequence[Example],
    batch_size: BatchSize,
    also: Callable[[Batch, Tensor], None] | None = None,
) -> Metrics:
    """Token and word perplexity of the windows' loss tokens; words are what white space parts in the text.

    Their standard errors are those of `weighted_perplexity`. also: is shown each batch and its logits
    [B, T, V], for what else is measured in the same pass.
    """
    losses: list[float] = []
    words: list[int] = []
    with stage("perplexity", len(windows), "windows") as advance:
        for batch in batched(windows, rows(windows, batch_size)):
            logits = run.logits(batch)
            losses += token_losses(logits.cpu(), batch.labels).sum(1).tolist()
            if also is not None:
                also(batch, logits)
            for row in batch.labels:
                words.append(len(str(lm.tokenizer.decode(row[row != IGNORED])).split()))
            advance(len(batch.ids))
    tokens = [len(window.ids) - max(window.prompt, 1) for window in windows]
    return {
        "perplexity": weighted_perplexity(losses, tokens),
        "word_perplexity": weighted_perplexity(losses, words),
    }


def rows(examples: Sequence[Example], batch_size: BatchSize) -> int:
    return rows_of(max(len(one.ids) for one in examples)) if batch_size == "auto" else batch_size


def weighted_perplexity(losses: Sequence[float], weights: Sequence[int]) -> Metric:
    """exp(sum of losses / sum of weights), over examples; losses in nats, weights in tokens, words or bytes.

    The standard error is that of a ratio of sums (by the delta method): an example counts by its loss
    less what its weight lets expect. So do the samples, and with them differences between two models.
    """
    return _exponential(weighted_mean(losses, weights))


def weighted_mean(losses: Sequence[float], weights: Sequence[int]) -> Metric:
    """sum of losses / sum of weights; the samples' mean is the value, and their spread that of the ratio."""
    total, n = sum(weights), len(losses)
    value = sum(losses) / total
    samples = [
        value + (loss - value * weight) * n / total for loss, weight in zip(losses, weights, strict=True)
    ]
    return Metric(value, statistics.stdev(samples) / math.sqrt(n) if n > 1 else None, samples)


def _exponential(mean: Metric) -> Metric:
    if mean.value > LARGEST:
        log.warning(
            "a perplexity is e^%.1f, which no number holds: the value says e^%.0f, and its samples are right",
            mean.value,
            LARGEST,
        )
    value = math.exp(min(mean.value, LARGEST))
    return Metric(value, None if mean.stderr is None else value * mean.stderr, mean.samples)


def choice_accuracy(run: Run, questions: Sequence[Question], batch_size: BatchSize) -> Metrics:
    """Share of questions whose true continuation is the likeliest; all continuations are equally long."""
    examples = [Example(q.context + option, len(q.context)) for q in questions for option in q.options]
    losses: list[float] = []
    with stage("choices", len(questions), "questions") as advance:
        for batch in batched(examples, rows(examples, batch_size)):
            losses += token_losses(run.logits(batch).cpu(), batch.labels).sum(1).tolist()
            advance(len(batch.ids) * len(questions) / len(examples))
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
    batch_size: BatchSize,
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
        check_shots(task, task.get_config("num_fewshot"))
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            check_rolling(run)
    # simple_evaluate would also list the machine's packages after each call, which takes seconds
    model = SparseHFLM(run, lm, batch_size)
    results = evaluate(
        lm=model,
        task_dict={"tasks": loaded, "groups": {}},
        limit=limit,
        bootstrap_iters=1000,  # only for metrics that have no closed form
        log_samples=True,
    )
    assert results is not None
    metrics: Metrics = {}
    for task, found in results["results"].items():
        filters = {filtered for name in found for _, _, filtered in [name.partition(",")] if filtered}
        for name, value in found.items():
            metric, comma, filtered = name.partition(",")
            if comma and not metric.endswith("_stderr"):
                logged = documents(results["samples"][task], filtered)
                # gsm8k says exact_match of two filters; most tasks have one, "none"
                label = f"{task}/{metric}" if len(filters) == 1 else f"{task}/{metric}:{filtered}"
                stderr = found.get(f"{metric}_stderr,{filtered}")
                metrics[label] = _of_task(metric, value, stderr, logged)
        if loaded[task].OUTPUT_TYPE == "loglikelihood_rolling":
            metrics[f"{task}/token_perplexity"] = token_perplexity(
                model, documents(results["samples"][task], "none")
            )
    return metrics


def documents(logged: Sequence[dict], filtered: str) -> list[dict]:
    """What lm-eval logged of each document under this filter, in their order."""
    return sorted((one for one in logged if one["filter"] == filtered), key=lambda one: one["doc_id"])


def _of_task(metric: str, value: float, stderr: object, logged: Sequence[dict]) -> Metric:
    """lm-eval's value and standard error; of a weighted mean, which has none there, that of a ratio."""
    found = [one.get(metric) for one in logged]
    if metric in WEIGHTED and all(isinstance(one, tuple | list) for one in found):
        pairs = [one for one in found if one is not None]
        ours = weighted_mean([-one[0] for one in pairs], [one[1] for one in pairs])
        if metric != "bits_per_byte":
            return _exponential(ours)._replace(value=value)
        assert ours.samples is not None
        bits = [one / math.log(2) for one in ours.samples]
        return Metric(value, None if ours.stderr is None else ours.stderr / math.log(2), bits)
    numbers = [float(one) for one in found if isinstance(one, int | float)]
    samples = numbers if len(numbers) == len(found) else None
    return Metric(value, stderr if isinstance(stderr, float) else None, samples)


def token_perplexity(model: SparseHFLM, logged: Sequence[dict]) -> Metric:
    """exp(- log likelihood / tokens) of whole documents, which lm-eval does not tell.

    The tokens are the model's own for the text that the task scores, each of which is scored once: of
    wikitext that is the detokenised page. Values of models with different tokenizers do not compare.
    """
    losses = [-float(one["filtered_resps"][0]) for one in logged]
    return weighted_perplexity(losses, [len(model.scored(one["arguments"][0][0])) for one in logged])
