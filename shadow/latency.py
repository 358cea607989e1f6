"""How long prompts and new tokens take, and what memory would let them take at best."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shadow.fast.gathered import GatheredRun
from shadow.fast.storage import Rows
from shadow.fast.weights import Weights
from shadow.sites import KINDS


class Timing(NamedTuple):
    """Seconds: of the prompt, and of each new token."""

    prompt: float
    tokens: list[float]


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


@torch.no_grad()
def time_generation(model: Callable[..., Any], ids: Tensor, tokens: int) -> Timing:
    """Greedily, `tokens` new ones; ids: [B, T]; model: a language model, or the forward of a run of one."""
    start = time.perf_counter()
    found = model(ids, use_cache=True, logits_to_keep=1)
    prompt, seconds = time.perf_counter() - start, []
    for _ in range(tokens):
        start = time.perf_counter()
        new = found.logits[:, -1:].argmax(-1)
        found = model(new, past_key_values=found.past_key_values, use_cache=True)
        seconds.append(time.perf_counter() - start)
    return Timing(prompt, seconds)


def by_turns(runs: Mapping[str, Callable[[], Timing]], rounds: int) -> dict[str, list[Timing]]:
    """Each run in each round, so that a machine that slows down slows all; one round before them warms up."""
    found: dict[str, list[Timing]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            timing = run()
            if turn:
                found[name].append(timing)
    return found


def spread(values: list[float]) -> Spread:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def size(*rows: Rows) -> int:
    """Bytes of weights and of their scales, where they have any."""
    return sum(r.values.nbytes + (r.scale.nbytes if r.values.itemsize == 1 else 0) for r in rows)


def dense_bytes(weights: Weights) -> int:
    """That a dense token reads of weights in this storage: all layers, and the vocabulary once."""
    w = weights
    gate = (w.gate,) if w.sizes.gated else ()
    return size(w.query, w.key, w.value, w.output, *gate, w.up, w.down, w.vocabulary)


def sparse_bytes(run: GatheredRun) -> float:
    """That a token reads of weights on average, by the shares that the run has kept so far, and of the
    predictor: keys and values of all heads where each token decides, of stored heads where the prompt did."""
    w, kept = run.weights, run.planner.kept
    each = w.sizes.heads // w.sizes.kv_heads
    neurons = size(w.up, w.down, *((w.gate,) if w.sizes.gated else ()))
    heads, keys = size(w.query, w.output), size(w.key, w.value)
    total = float(size(w.vocabulary))
    for layer in range(w.sizes.layers):
        share = {kind: kept[layer, kind] / run.planner.total[layer, kind] for kind in KINDS}
        stored = 1.0
        plan = None if run.each_token else run.plan.get((layer, "head"))
        if plan is not None:
            stored = float(plan.view(-1, w.sizes.kv_heads, each).any(0).any(1).float().mean())
        total += (heads * share["head"] + keys * stored + neurons * share["neuron"]) / w.sizes.layers
    return total + predictor_bytes(run)


def predictor_bytes(run: GatheredRun) -> int:
    nets = run.nets
    read = size(nets.first, nets.others, nets.bend, nets.down, nets.up_heads, nets.up_neurons)
    return read if run.each_token else 0
