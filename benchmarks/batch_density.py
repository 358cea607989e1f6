"""How many units a batch keeps in any of its rows, and how fast it decodes beside dense transformers.

python benchmarks/batch_density.py MODEL PREDICTOR TEXTS [--level 0.5] [--rounds 0]

MODEL and PREDICTOR are folders, TEXTS is a file of JSON lines with a `page` each. Without rounds nothing is
timed, and the table has the densities alone, which no load on the machine changes.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import latency as shapes  # benchmarks/latency.py
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from shadow.sweeps.figures.looks import COLOURS, INK, PALE
from torch import Tensor
from transformers import AutoTokenizer

from shadow.artifacts.hub import load_predictor
from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.weights import pack
from shadow.executors.planner import Planner
from shadow.front import stand_in_of
from shadow.measures import latency
from shadow.models.cache_name import cache_of, named_cache
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy

PLANS: tuple[DecidedAt, ...] = ("prompt", "token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("predictor")
    parser.add_argument("texts")
    parser.add_argument("--level", type=float, default=0.5)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--to", type=Path, default=Path("docs/results/latency/batches.png"))
    args = parser.parse_args()
    dense = shapes.load(args.model)
    turned = copy.deepcopy(dense)
    ids = windows(args.model, args.texts, args.prompt, max(args.batch))
    predictor = load_predictor(args.predictor)
    policy, weights, threads = SparsityPolicy(args.level), pack(turned), torch.get_num_threads()
    runs = {
        at: GatheredRun(
            turned, Planner(dense, predictor, policy, at, stand_in_of("auto", predictor)), weights
        )
        for at in PLANS
    }
    density: dict[DecidedAt, list[np.ndarray]] = {at: [] for at in PLANS}
    print(
        f"{threads} threads, prompts of {args.prompt}, {args.tokens} tokens, {args.rounds} rounds by turns\n"
    )
    print("| batch | plan | heads kept by a row, % | by any row, % | neurons by a row, % | by any row, % | "
          "dense, ms a token | sparse, ms a token | times dense |")  # fmt: skip
    print("|" + " --- |" * 9)
    for rows in args.batch:
        works: dict[str, Callable[[], latency.Timing]] = {
            "dense": partial(densely, dense, ids[:rows], args.tokens, threads)
        }
        for at, run in runs.items():
            works[at] = partial(latency.time_generation, run.forward, ids[:rows], args.tokens)
        timings = latency.by_turns(works, args.rounds) if args.rounds else {}
        for at, run in runs.items():
            own, union = densities(run, ids, rows, args.tokens, policy)
            density[at].append(union)
            print(f"| {rows} | {at} | {100 * own[0]:.1f} | {100 * union[0]:.1f} | {100 * own[1]:.1f} | "
                  f"{100 * union[1]:.1f} | {tell(timings, at)} |", flush=True)  # fmt: skip
    draw(args.batch, density, args.level, args.to)


def windows(model: str, texts: str, length: int, count: int) -> Tensor:
    """-> [count, length]: the beginnings of the first pages that are long enough."""
    tokenizer, found = AutoTokenizer.from_pretrained(model), []
    with Path(texts).open() as lines:
        for line in lines:
            ids = tokenizer(json.loads(line)["page"][:4000])["input_ids"]
            if len(ids) >= length:
                found.append(ids[:length])
            if len(found) == count:
                return torch.tensor(found)
    raise SystemExit(f"{texts} has {len(found)} pages of {length} tokens, and --batch needs {count}")


def densely(model: Callable, ids: Tensor, tokens: int, threads: int) -> latency.Timing:
    torch.set_num_threads(threads)  # which a gathered run has reduced
    return latency.time_generation(model, ids, tokens)


@torch.no_grad()
def densities(
    run: GatheredRun, ids: Tensor, rows: int, tokens: int, policy: SparsityPolicy
) -> tuple[np.ndarray, np.ndarray]:
    """-> [2] each, of heads and neurons in the layers that are pruned: the share that a row keeps, and the
    share that any row of a batch keeps, over all batches that the prompts give and all tokens."""
    sizes = run.weights.sizes
    pruned = [layer for layer in range(sizes.layers) if layer not in policy.dense_layers]
    own, union = [], []
    for batch in ids.split(rows):
        found = run.forward(batch, logits_to_keep=1)
        for _ in range(tokens):
            found = run.forward(found.logits[:, -1:].argmax(-1), **named_cache(cache_of(found)))
            choice = cache_of(found).plan.choice
            own.append([choice.heads[:, pruned].mean(), choice.neurons[:, pruned].mean()])
            union.append(choice.counts[pruned].mean(0) / [sizes.heads, sizes.neurons])
    return np.mean(own, 0), np.mean(union, 0)


def tell(timings: dict[str, list[latency.Timing]], at: DecidedAt) -> str:
    """Medians, and of the ratio the range over rounds; nothing where nothing was timed."""
    if not timings:
        return "| |"
    base, took = ([latency.token_of(timing) for timing in timings[name]] for name in ("dense", at))
    ratios = [b / t for b, t in zip(base, took)]
    return (
        f"{1e3 * statistics.median(base):.1f} | {1e3 * statistics.median(took):.1f} | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def draw(batches: list[int], density: dict[DecidedAt, list[np.ndarray]], level: float, to: Path) -> None:
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    ax = figure.subplots()
    for at, marker, dash in (("token", "s", "--"), ("prompt", "o", "-")):
        for index, kind in enumerate(("heads", "neurons")):
            shares = [union[index] for union in density[at]]
            ax.plot(
                batches, shares, dash, color=COLOURS[index], marker=marker, label=f"{kind}, plan per {at}"
            )
    ax.set(xscale="log", xticks=batches, xticklabels=batches, ylim=(0, 1.02), xlabel="rows in the batch",
           ylabel="kept by any row, of the units in pruned layers")  # fmt: skip
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.minorticks_off()
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"What a batch must read at level {level:g}", fontsize=11, color=INK, loc="left")
    ax.legend(frameon=False, fontsize=9)
    figure.savefig(to)


if __name__ == "__main__":
    main()
