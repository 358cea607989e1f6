"""One text, dense beside sparse: what both add to it, what each token lost, which units stayed."""

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from shadow.jobs.command_line import prepare

if TYPE_CHECKING:
    from shadow.measures.one_text import OneText
    from shadow.plans.facts import Facts


EXAMPLE = 'shadow compare "The capital of France is" predictor=teal sparsity.level=0.5'
SETTING = re.compile(r"[~+]{0,2}[\w./@:-]+=.*|~[\w./@-]+", re.DOTALL)  # of Hydra: key=value, +key=value, ~key
WIDTH = 54  # characters of one of two columns


def main(argv: Sequence[str] | None = None) -> None:
    """argv: the text, Hydra's overrides and flags, in any order; behind `--` all is text."""
    texts, words = parted(sys.argv[1:] if argv is None else argv)
    prepare("compare", words)
    seen: list[str] = []

    @hydra.main(version_base="1.3", config_path="pkg://shadow.conf", config_name="compare")
    def run(cfg: DictConfig) -> None:
        seen.append(compare(cfg, texts))

    with arguments(words):
        run()
    print(*seen, sep="\n\n")


def parted(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(texts, what Hydra reads)"""
    n = list(argv).index("--") if "--" in argv else len(argv)
    words: list[str] = []
    texts, values = list(argv[n + 1 :]), False
    for word in argv[:n]:
        flag = word.startswith("-")
        is_word = flag or values or SETTING.fullmatch(word)
        (words if is_word else texts).append(word)
        values = flag and word in ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-dir", "-cd")
    return texts, words


@contextmanager
def arguments(words: Sequence[str]) -> Iterator[None]:
    """Hydra reads a process' own."""
    before = sys.argv
    sys.argv = ["shadow compare", *words]
    try:
        yield
    finally:
        sys.argv = before


def compare(cfg: DictConfig, texts: Sequence[str]) -> str:
    """-> what the console is to show."""
    from shadow.executors.masked import Masked
    from shadow.front import sparse
    from shadow.jobs import checks, loading
    from shadow.jobs.config import model_label
    from shadow.jobs.method import executor_of, facts_of
    from shadow.jobs.prepared import prepared
    from shadow.jobs.run import job
    from shadow.measures import one_text
    from shadow.sweeps.one_text import Names, write_page

    with job(cfg) as this:
        text = the_text(texts, cfg.continuation)
        check_going_on(
            facts_of(cfg), cfg.continuation
        )  # as all that is no policy, before anything long begins
        checks.check_scorer(cfg)
        lm = loading.placed(cfg, loading.load_lm(cfg))
        ids = one_text.require_text(lm, text, cfg.continuation)
        scorer, policy, stand_in = prepared(cfg, lm, this.loggers)
        given = lm.model, scorer, policy, cfg.sparsity.decided_at
        found = one_text.compare(
            lm,
            ids,
            cfg.continuation,
            going_on=sparse(*given, stand_in=stand_in, executor=executor_of(cfg)),
            looking=sparse(*given, stand_in=stand_in, executor=Masked()),
        )
        this.record["bytes"] = {"skipped": found.skipped}
        this.record["metrics"] = {"nats_over_dense": {"value": found.nats, "stderr": None}}
        this.log_metrics({"nats_over_dense": found.nats, "bytes/skipped": found.skipped})
        names = Names(model_label(cfg), f"{cfg.predictor.name} at level {cfg.sparsity.level:g}")
        page = Path(cfg.paths.output_dir) / "compare.html"
        write_page(found, names, page)
        return told(found, names.method, page)
    raise AssertionError("a job ends or raises")


def the_text(texts: Sequence[str], continuation: object) -> str:
    from shadow.errors import UserError

    if type(continuation) is not int or continuation < 0:
        raise UserError(f"continuation must be a whole number of tokens, 0 or more, got {continuation!r}")
    if len(texts) != 1 or not texts[0].strip():
        raise UserError(f"compare takes one text, in quotation marks, got {list(texts)}: {EXAMPLE}")
    return texts[0]


def check_going_on(facts: "Facts", continuation: int) -> None:
    """Of scorers that look, one that looks at prompts can go on with them."""
    from shadow.errors import UserError

    seer = facts.scorer.looks and facts.scorer.name != "prompt"
    if seer and continuation and facts.policy.level > 0:
        raise UserError(
            "an oracle, or a dense-fed predictor, sees a text to its end before it plans, and goes on with "
            "none: set continuation=0"
        )


def told(found: "OneText", method: str, page: Path) -> str:
    """Both continuations side by side, and what the sparse one left out and cost."""
    columns = [[head, "", *wrapped(text)] for head, text in (("dense", found.dense), (method, found.sparse))]
    height = max(map(len, columns))
    left, right = ([*column, *[""] * (height - len(column))] for column in columns)
    lines = [f"{one.ljust(WIDTH)}  {other}".rstrip() for one, other in zip(left, right)]
    cost = f"skipped {100 * found.skipped:.1f} % of the weight bytes, cost {found.nats:.3f} nats a token"
    return "\n".join(["", *lines, "", f"{cost}, over {len(found.lost)} tokens", f"page: {page}"])


def wrapped(text: str) -> list[str]:
    lines = text.strip().splitlines() or ["(nothing)"]
    return [part for line in lines for part in textwrap.wrap(line, WIDTH) or [""]]


if __name__ == "__main__":
    main()
