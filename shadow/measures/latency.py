"""How long prompts and new tokens take, and what memory would let them take at best."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache

from shadow.executors.cache_layer import memory_of
from shadow.executors.cpu.cache import KeyValues
from shadow.executors.cpu.channels import SLOTS, ChannelWeights
from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.matrices import In, Out, bytes_of, weights_in
from shadow.executors.cpu.weights import Weights
from shadow.models.cache_name import cache_of, named_cache

Forward = Callable[..., Any]  # of a language model


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
def time_generation(model: Forward, ids: Tensor, tokens: int) -> Timing:
    """Greedily, `tokens` new ones; ids: [B, T]; model: a language model, or the forward of a run of one."""
    start = time.perf_counter()
    found = model(ids, use_cache=True, logits_to_keep=1)
    prompt, seconds = time.perf_counter() - start, []
    for _ in range(tokens):
        start = time.perf_counter()
        new = found.logits[:, -1:].argmax(-1)
        found = model(new, use_cache=True, **named_cache(cache_of(found)))
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


def beside_dense(
    run: GatheredRun, model: PreTrainedModel, prompts: Sequence[Tensor], tokens: int, with_compiled: bool
) -> dict[str, float]:
    """A round for each prompt [1, T]; -> medians and quartiles, of ratios round by round too.

    A second copy of the model stands for dense transformers (sdpa, key-value cache), as `pack` turns some
    weights over. weight_bytes: of a token; roofline: how many times as many a dense token reads in the
    model's own dtype; kv_bytes: of keys and values after the prompt.
    """
    threads, dense = run.team.members, stock_copy(model)

    def densely(forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            torch.set_num_threads(threads)  # which a gathered run has reduced
            return forward(*args, **kwargs)

        return call

    forwards: dict[str, Forward] = {"dense": densely(dense), "sparse": run.forward}
    if with_compiled:
        room = max(prompt.shape[1] for prompt in prompts) + tokens
        forwards["compiled"] = densely(compiled(dense, room))
    works = {}
    for name, forward in forwards.items():
        turn = cycle([prompts[-1], *prompts])  # the round that warms up has the last one
        works[name] = partial(time_next, forward, turn, tokens)
    found = by_turns(works, len(prompts))
    figures: dict[str, float] = {}
    for name, timings in found.items():
        own = "" if name == "sparse" else f"{name}_"
        figures |= named_spread(
            f"{own}token_ms", [1e3 * seconds for one in timings for seconds in one.tokens]
        )
        figures |= named_spread(f"{own}prompt_ms", [1e3 * one.prompt for one in timings])
        if name != "sparse":
            pairs = list(zip(timings, found["sparse"]))
            figures |= named_spread(
                f"times_{name}", [token_of(slow) / token_of(fast) for slow, fast in pairs]
            )
            figures |= named_spread(
                f"prompt_times_{name}", [slow.prompt / fast.prompt for slow, fast in pairs]
            )
    dense_token = model.dtype.itemsize * sum(weights_in(rows) for rows in read_densely(run.weights))
    filled = cache_of(run.forward(prompts[-1], use_cache=True))
    assert filled is not None
    cache = memory_of(filled, KeyValues)
    assert cache is not None
    return figures | {
        "kv_bytes": float(cache.bytes_held()),
        "kv_share_of_dense": cache.bytes_held() / cache.bytes_of_dense(),
        "tokens_per_second": 1e3 / figures["token_ms"],
        "weight_bytes": sparse_bytes(run),
        "predictor_bytes": float(predictor_bytes(run)),
        "roofline": dense_token / sparse_bytes(run),
    }


def time_next(forward: Forward, prompts: Iterator[Tensor], tokens: int) -> Timing:
    return time_generation(forward, next(prompts), tokens)


def named_spread(name: str, values: list[float]) -> dict[str, float]:
    found = spread(values)
    return {name: found.median, f"{name}_low": found.low, f"{name}_high": found.high}


def token_of(timing: Timing) -> float:
    """-> seconds"""
    return statistics.median(timing.tokens)


def stock_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights as transformers lays them out, and the class's own forward."""
    found = copy.deepcopy(model)
    vars(found).pop("forward", None)
    for module in found.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.contiguous()
    return found


def compiled(model: PreTrainedModel, room: int) -> Forward:
    """Its tokens after a prompt go through torch.compile, over a cache of fixed size."""
    fast = torch.compile(model.forward, dynamic=False)

    def forward(ids: Tensor, **others: Any) -> Any:
        if cache_of(others) is not None:
            with torch.compiler.set_stance("default"):  # a block has it eager
                return fast(ids, **others)
        empty = StaticCache(config=model.config, max_cache_len=room)
        return model(ids, **named_cache(empty), **others)

    return forward


def spread(values: list[float]) -> Spread:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def size(*rows: In | Out, share: float = 1.0) -> float:
    """Bytes of weights, with their scales and minima, of this share of their rows."""
    return sum(bytes_of(one, share) for one in rows)


def read_densely(weights: Weights | ChannelWeights) -> list[In | Out]:
    """What a dense token reads: all layers, and the vocabulary once."""
    w = weights
    if isinstance(w, ChannelWeights):
        return [w.qkv, w.o, w.gate_up, w.down, w.vocabulary]
    gate = [w.gate] if w.sizes.gated else []
    return [w.query, w.key, w.value, w.output, *gate, w.up, w.down, w.vocabulary]


def dense_bytes(weights: Weights | ChannelWeights) -> float:
    """In this storage."""
    return size(*read_densely(weights))


def sparse_bytes(run: GatheredRun) -> float:
    """That a new token reads of weights on average, by the shares that the run's new tokens have kept, and of
    the predictor: keys and values of all heads where each token decides, of stored heads where the prompt
    did."""
    w = run.weights
    layers, share = w.sizes.layers, run.new_tokens.share_kept
    total = size(w.vocabulary)
    if isinstance(w, ChannelWeights):
        matrices = zip(SLOTS, (w.qkv, w.o, w.gate_up, w.down))
        return total + sum(size(matrix, share=share(slot)) for slot, matrix in matrices)
    gate = (w.gate,) if w.sizes.gated else ()
    total += size(w.query, w.output, share=share("head")) + size(w.up, w.down, *gate, share=share("neuron"))
    each, stored = w.sizes.heads // w.sizes.kv_heads, 0.0
    for layer in range(layers):
        plan = None if run.each_token else run.plan.get((layer, "head"))
        kept = 1.0
        if plan is not None:
            kept = float(plan.view(-1, w.sizes.kv_heads, each).any(0).any(1).float().mean())
        stored += kept / layers
    return total + size(w.key, w.value, share=stored) + predictor_bytes(run)


def predictor_bytes(run: GatheredRun) -> float:
    nets = run.nets
    read = size(nets.first, nets.others, nets.bend, nets.down, nets.up_heads, nets.up_neurons)
    return read if run.each_token and run.channels is None else 0
