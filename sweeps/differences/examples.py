"""Which examples a metric was measured on."""

from ..records.metrics import of_text
from ..records.record import Record

# settings.measure: which of them draw the examples of a metric; the rest is of lm-eval's tasks
DRAWS = {
    "perplexity": ("windows", "tokens", "prompt_share", "seed"),
    "choices": ("questions", "options", "context_tokens", "continuation_tokens", "seed"),
}
DRAWS_TASKS = ("limit", "num_fewshot", "seed")


def on_same_examples(ours: Record, theirs: Record, metric: str) -> bool:
    """Whether both have the metric, of the same examples."""
    both = metric in ours.metrics and metric in theirs.metrics
    same_files = ours.content.get(metric) == theirs.content.get(metric)
    return both and same_files and examples_of(ours, metric) == examples_of(theirs, metric)


def examples_of(record: Record, metric: str) -> tuple:
    """What decides them. The positions that are scored do so in a text alone: a task's answers stay."""
    measure = record.settings["measure"]
    family = "perplexity" if of_text(metric) else metric.split("/")[0]
    drawn = [measure.get(name) for name in DRAWS.get(family, DRAWS_TASKS)]
    if family in DRAWS and measure.get("text"):  # not that of the data
        drawn += [measure["text"], measure.get("column")]
    return record.point.model, record.point.data, *drawn, of_text(metric) and record.point.scored
