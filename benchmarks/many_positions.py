"""Prompts, batches and drafts in 4 and 8 bits, many positions at once: milliseconds of processor time.

python benchmarks/many_positions.py MODEL [--storage int4] [--prompts 64 256] [--rounds 7]

One pinned thread, by turns; processor time, which others on the same core disturb less than the clock. `teal`
drops what is below .3 at every input: what it costs, and not what it means. Beside prompts stands dense
transformers in float32; beside tokens behind 64 others the same, one position after the other.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import latency as shapes  # benchmarks/latency.py
import torch
from transformers import PreTrainedModel

from shadow.executors.cpu.channels import pack_channels
from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.weights import pack
from shadow.executors.options import Storage
from shadow.executors.planner import Planner
from shadow.measures import latency
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.inputs import InputMagnitude

Work = Callable[[], float]  # -> milliseconds of processor time
CASES = {"draft of 2": (1, 2), "draft of 4": (1, 4), "draft of 8": (1, 8), "batch of 2": (2, 1),
         "batch of 4": (4, 1), "batch of 8": (8, 1), "batch of 16": (16, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--storage", default="int4", choices=["int4", "int8"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-1:]))
    torch.set_num_threads(1)
    dense, model = shapes.load(args.model), shapes.load(args.model)
    teal, rows = teal_of(model, args.storage), everything(model, args.storage)
    for tokens in args.prompts:
        ids = torch.randint(10, 20000, (1, tokens))
        tell(f"prompt of {tokens}", args.rounds, {
            "dense transformers, float32": partial(busy, lambda ids=ids: dense(ids, logits_to_keep=1)),
            "everything": partial(busy, lambda ids=ids: rows.forward(ids, logits_to_keep=1)),
            "teal": partial(busy, lambda ids=ids: teal.forward(ids, logits_to_keep=1)),
        })  # fmt: skip
    for name, (count, tokens) in CASES.items():
        works = {"one by one": partial(behind, teal, count, tokens, False),
                 "at once": partial(behind, teal, count, tokens, True)}  # fmt: skip
        tell(name, args.rounds, works)


def teal_of(model: PreTrainedModel, storage: Storage) -> GatheredRun:
    thresholds = {site.key: 0.3 for site in find_sites(model, ["channel"])}
    policy = SparsityPolicy(0.5, scope="threshold", thresholds=thresholds)
    planner = Planner(model, InputMagnitude(), policy, "token", Zero())
    return GatheredRun(model, planner, pack_channels(model, storage))


def everything(model: PreTrainedModel, storage: Storage) -> GatheredRun:
    planner = Planner(model, InputMagnitude(), SparsityPolicy(0.0), "token", Zero())
    return GatheredRun(model, planner, pack(model, storage))


@torch.no_grad()
def busy(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


@torch.no_grad()
def behind(run: GatheredRun, rows: int, tokens: int, at_once: bool) -> float:
    """Tokens of each row behind 64 others, the median of four calls."""
    reader, ids = run.in_blocks, torch.randint(10, 20000, (rows, 64))
    cache = run.forward(ids, use_cache=True, logits_to_keep=1).past_key_values
    try:
        run.in_blocks = reader if at_once else None
        new = torch.randint(10, 20000, (rows, tokens))
        return statistics.median(busy(lambda: run.forward(new, past_key_values=cache)) for _ in range(4))
    finally:
        run.in_blocks = reader


def tell(name: str, rounds: int, works: dict[str, Work]) -> None:
    """The first round warms up; of ratios to the first work the median of rounds."""
    took = [{key: work() for key, work in works.items()} for _ in range(rounds + 1)][1:]
    first = next(iter(works))
    for key in works:
        found = latency.spread([turn[key] for turn in took])
        faster = statistics.median(turn[first] / turn[key] for turn in took)
        print(f"| {name} | {key} | {found.median:.1f} ({found.low:.1f} to {found.high:.1f}) | {faster:.2f} |")


if __name__ == "__main__":
    main()
