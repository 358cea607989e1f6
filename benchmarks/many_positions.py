"""Prompts, batches and drafts in 4 and 8 bits, many positions at once: milliseconds.

python benchmarks/many_positions.py MODEL [--gguf FILE] [--storage int4] [--prompts 64 256] [--rounds 7]
    [--only prompts | drafts]

One pinned thread, by turns; processor time, which others on the same core disturb less than the clock, and
beside it the clock. `teal` drops what is below .3 at every input, `four taps` half of heads and neurons by
random nets: what they cost, and not what they mean. Beside prompts stand dense transformers in float32, and
with --gguf llama.cpp on a file of the same model (pip install -e .[llama-cpp]); beside tokens behind 64
others the same, one position after the other, or of a batch, in the compiled call of one new token.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import latency as shapes  # benchmarks/latency.py
import torch
from transformers import PreTrainedModel

from shadow.executors.cpu import gathered
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


class Took(NamedTuple):
    """Milliseconds: of the processor, and by the clock."""

    busy: float
    clock: float


Work = Callable[[], Took]
CASES = {"draft of 2": (1, 2), "draft of 4": (1, 4), "draft of 8": (1, 8), "batch of 2": (2, 1),
         "batch of 4": (4, 1), "batch of 8": (8, 1), "batch of 16": (16, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--gguf")
    parser.add_argument("--storage", default="int4", choices=["int4", "int8"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["prompts", "drafts"])
    args = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-1:]))
    torch.set_num_threads(1)
    dense, model = shapes.load(args.model), shapes.load(args.model)
    runs = {"everything": everything(model, args.storage), "four taps": four_taps(model, args.storage),
            "teal": teal(model, args.storage)}  # fmt: skip
    print("| | | ms of processor (quartiles) | times | ms by the clock | times |\n|" + " --- |" * 6)
    if args.only != "drafts":
        others = {"dense transformers, float32": lambda ids: dense(ids, logits_to_keep=1)}
        if args.gguf:
            others["llama.cpp"] = llama_cpp(args.gguf)
        of_runs = {name: partial(run.forward, logits_to_keep=1) for name, run in runs.items()}
        for tokens in args.prompts:
            ids = torch.randint(10, 20000, (1, tokens))
            works: dict[str, Work] = {
                name: partial(taken, partial(work, ids)) for name, work in (others | of_runs).items()
            }
            tell(f"prompt of {tokens}", args.rounds, works)
    if args.only != "prompts":
        for name, run in runs.items():
            for case, (count, tokens) in CASES.items():
                ways = {"one by one": 10**9, "at once": 2}
                works = {way: partial(behind, run, count, tokens, many) for way, many in ways.items()}
                tell(f"{name}, {case}", args.rounds, works)


def teal(model: PreTrainedModel, storage: Storage) -> GatheredRun:
    thresholds = {site.key: 0.3 for site in find_sites(model, ["channel"])}
    policy = SparsityPolicy(0.5, scope="threshold", thresholds=thresholds)
    planner = Planner(model, InputMagnitude(), policy, "token", Zero())
    return GatheredRun(model, planner, pack_channels(model, storage))


def everything(model: PreTrainedModel, storage: Storage) -> GatheredRun:
    planner = Planner(model, InputMagnitude(), SparsityPolicy(0.0), "token", Zero())
    return GatheredRun(model, planner, pack(model, storage))


def four_taps(model: PreTrainedModel, storage: Storage) -> GatheredRun:
    scorer, decided_at = shapes.scorer_of(model, "four taps")
    return GatheredRun(
        model, Planner(model, scorer, SparsityPolicy(0.5), decided_at, Zero()), pack(model, storage)
    )


def llama_cpp(file: str) -> Callable[[torch.Tensor], object]:
    """Its prompt, and the choice of one token."""
    from llama_cpp import serve  # benchmarks/llama_cpp.py

    server = serve(file, 1)

    def read(ids: torch.Tensor) -> object:
        return server.handle_completions({"prompt": ids[0].tolist(), "max_tokens": 1, "cache_prompt": False})

    return read


@torch.no_grad()
def taken(work: Callable[[], object]) -> Took:
    busy, start = time.process_time(), time.perf_counter()
    work()
    return Took(1e3 * (time.process_time() - busy), 1e3 * (time.perf_counter() - start))


@torch.no_grad()
def behind(run: GatheredRun, rows: int, tokens: int, many: int) -> Took:
    """Tokens of each row behind 64 others, the median of four calls; many: positions that go at once."""
    ids = torch.randint(10, 20000, (rows, 64))
    cache = run.forward(ids, use_cache=True, logits_to_keep=1).past_key_values
    before = gathered.MANY, gathered.MANY_BY_CHANNELS
    try:
        gathered.MANY = gathered.MANY_BY_CHANNELS = many
        new = torch.randint(10, 20000, (rows, tokens))
        calls = [taken(lambda: run.forward(new, past_key_values=cache)) for _ in range(4)]
    finally:
        gathered.MANY, gathered.MANY_BY_CHANNELS = before
    return Took(*(statistics.median(each) for each in zip(*calls)))


def tell(name: str, rounds: int, works: dict[str, Work]) -> None:
    """The first round warms up; of ratios to the first work the median of rounds."""
    took = [{key: work() for key, work in works.items()} for _ in range(rounds + 1)][1:]
    first = next(iter(works))
    for key in works:
        told = []
        for part in range(2):
            found = latency.spread([turn[key][part] for turn in took])
            faster = statistics.median(turn[first][part] / turn[key][part] for turn in took)
            told.append(f"{found.median:.1f} ({found.low:.1f} to {found.high:.1f}) | {faster:.2f}")
        print(f"| {name} | {key} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
