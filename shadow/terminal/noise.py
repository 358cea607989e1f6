"""What libraries say that nobody can use, each known by its words and its module; all else is heard."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# message, and the module that the warning points at; both are regular expressions of their beginnings
WARNINGS = (
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", r"pytorch_lightning\."),  # 2.6 on torch 2.13
    (r"Checkpoint directory .* exists and is not empty", r"pytorch_lightning\."),  # it is to go on from
    (r"The number of training batches \(\d+\) is smaller than the logging interval", r"pytorch_lightning\."),
    (r"The '\w+' does not have many workers", r"pytorch_lightning\."),  # data that lie in memory need none
)
# logger, and a regular expression of what its line begins with
LINES = {
    "lm_eval.models.huggingface": r"`pretrained` model kwarg is not|Passed an already-initialized model",
    "lm_eval.api.task": r"\[Task: .*\] metric \w+ is defined, but|Building contexts for",
    "lm_eval.evaluator": r"Running \w+ requests",
    "matplotlib.font_manager": r"generated new fontManager",  # once, in a new home
}


def keep_bars_from_files() -> None:
    """Of libraries that draw them by tqdm, where nobody looks on; before these are imported."""
    if not sys.stdout.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


@contextmanager
def without_noise() -> Iterator[None]:
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(
        logging.WARNING
    )  # it tells its counts at exit
    with warnings.catch_warnings(), ExitStack() as stack:
        for message, module in WARNINGS:
            warnings.filterwarnings("ignore", message, module=module)
        for name, beginning in LINES.items():
            drops = Drops(beginning)
            logger = logging.getLogger(name)
            logger.addFilter(drops)
            stack.callback(logger.removeFilter, drops)
        yield


class Drops(logging.Filter):
    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = re.compile(beginning)

    def filter(self, record: logging.LogRecord) -> bool:
        return self.beginning.match(record.getMessage()) is None
