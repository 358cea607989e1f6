"""What --help says of each command that runs jobs: what it does, what most people set, three examples."""

from collections.abc import Sequence
from typing import NamedTuple


class Task(NamedTuple):
    """settings: those that most people need; examples: words, and what they do."""

    about: str
    settings: Sequence[str]
    examples: Sequence[tuple[str, str]]


TASKS = {
    "train": Task(
        "Make all that a method learns of a language model: traces, predictor, thresholds, budgets, "
        "stand-ins. Run again, it goes on from what is finished.",
        (
            "stage",
            "model.path",
            "model.trust_remote_code",
            "traces.criteria",
            "traces.taps",
            "traces.tokens_per_window",
            "data.windows",
            "data.tokens",
            "sparsity.level",
            "sparsity.learnt.windows",
            "trainer.precision",
            "trainer.devices",
        ),
        (
            ("model=opt-mini sparsity.level=0.4", "the recommended method for this level"),
            ("model.path=/my/model model.name=mine predictor=few_taps", "nets for a model of your own"),
            ("model=opt-30b predictor=unified stage=estimate", "only say what it will take"),
        ),
    ),
    "evaluate": Task(
        "Make a language model sparse by a method's plans, and measure what that costs and what it spares.",
        (
            "make_missing",
            "reuse_points",
            "sparsity.level",
            "sparsity.kinds",
            "sparsity.stand_in",
            "sparsity.decided_at",
            "sparsity.tokens",
            "sparsity.budgets",
            "sparsity.learnt.windows",
            "measure.text",
            "measure.windows",
            "measure.tasks",
            "measure.limit",
            "measure.root",
        ),
        (
            ("model=opt-mini predictor=teal sparsity=threshold make_missing=true", "one point"),
            (
                "-m model=opt-mini predictor=unified,static sparsity.level=0.2,0.4 make_missing=true",
                "four jobs",
            ),
            ("sweep=methods model=opt-mini", "all methods on one axis of bytes"),
        ),
    ),
    "recommend": Task(
        "Try cheap methods on a language model, from low levels to high, and write the one that skips most "
        "weight bytes within a budget of lost quality: a folder that from_pretrained loads.",
        (
            "budget",
            "budget_of",
            "contenders",
            "levels",
            "windows",
            "folder",
            "model.path",
            "data.windows",
            "measure.dtype",
        ),
        (
            ("model=opt-mini", "at most 0.1 nats over dense"),
            ("model.path=/my/model budget=0.05 data=text data.train=my.jsonl", "on text of your own"),
            (
                "model=opt-mini contenders=[[teal,learnt],[teal,block]] data.windows=320",
                "with learnt stand-ins",
            ),
        ),
    ),
    "compare": Task(
        "Let the dense and the sparse model go on with a text, side by side, and write a page of what each "
        "token lost and which units stayed.",
        ("continuation", "make_missing", "sparsity.level", "sparsity.decided_at", "sparsity.tokens"),
        (
            ('"The capital of France is" predictor=teal', "with the default model"),
            (
                '"An object" model=opt-mini predictor=teal sparsity=threshold sparsity.level=0.3',
                "by thresholds",
            ),
            ('"A tuple is" model=opt-mini predictor=few_taps continuation=0', "the text alone"),
        ),
    ),
    "export": Task(
        "Write the sparse model of these settings, with its card, as a folder that from_pretrained loads.",
        ("folder", "make_missing", "sparsity.level", "sparsity.decided_at", "measure.dtype"),
        (
            ("model=opt-mini make_missing=true", "the recommended method at level 0.5"),
            (
                "model=opt-mini predictor=teal sparsity=threshold sparsity.level=0.4 folder=mine",
                "in a folder of yours",
            ),
            ("model=opt-mini predictor=few_taps make_missing=true", "with a trained predictor"),
        ),
    ),
}

SCRIPTS = ("train", "evaluate")  # which have a file of their own, and are what the others are made from
