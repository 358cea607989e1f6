"""What libraries say that nobody can use, each known by its words and its module; all else is heard."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# message, and the module that the warning points at; both are regular expressions of their beginnings
WARNINGS = (
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", r"pytorch_lightning\."),  # 2.6 on torch 2.13
    (r"Checkpoint directory .* exists and is not empty", r"pytorch_lightning\."),  # it is to go on from
    (r"The '\w+' does not have many workers", r"pytorch_lightning\."),  # data that lie in memory need none
)
# logger, and what its line begins with
LINES = {
    "lm_eval.models.huggingface": (
        "`pretrained` model kwarg is not of type `str`",  # it is the sparse model
        "Passed an already-initialized model through `pretrained`",
        "pretrained=",
    ),
    "lm_eval.evaluator": ("Overwriting default num_fewshot",),
}


@contextmanager
def without_noise() -> Iterator[None]:
    with warnings.catch_warnings(), ExitStack() as stack:
        for message, module in WARNINGS:
            warnings.filterwarnings("ignore", message, module=module)
        for name, beginnings in LINES.items():
            drops = Drops(beginnings)
            logger = logging.getLogger(name)
            logger.addFilter(drops)
            stack.callback(logger.removeFilter, drops)
        yield


class Drops(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.pattern = re.compile("|".join(map(re.escape, beginnings)))

    def filter(self, record: logging.LogRecord) -> bool:
        return self.pattern.match(record.getMessage()) is None
