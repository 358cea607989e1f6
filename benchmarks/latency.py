"""Decoding by the gathered executor beside dense transformers: milliseconds a token, and ratios by turns.

python benchmarks/latency.py SHAPE [STORAGE ...] [--level 0.3 0.5 0.7] [--scorer prompt "one tap" "four taps"]
    [--against dejavu ...] [--means] [--compiled]

SHAPE: a folder of a model with its weights, or one of `SHAPES`, whose weights are random. Predictors are
always random: they choose as many units as a trained one would, at its cost; what they choose means nothing.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedModel

from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.weights import pack
from shadow.executors.planner import Planner
from shadow.measures import latency
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import SiteKey, count_units
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Mean, Zero
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.predicted import Predicted
from shadow.scorers.protocol import Scorer

SHAPES = {
    "opt-1.3b": OPTConfig(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, ffn_dim=8192,
                          word_embed_proj_dim=2048, vocab_size=50272, max_position_embeddings=2048),
    "llama-1b": LlamaConfig(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32,
                            num_key_value_heads=8, intermediate_size=8192, vocab_size=32000,
                            tie_word_embeddings=True),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("storage", nargs="*", default=["float32"])
    parser.add_argument("--level", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--scorer", nargs="+", default=["prompt", "one tap", "four taps"])
    parser.add_argument("--against", nargs="*", default=[], help="scorers that the others are compared with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--compiled", action="store_true", help="also dense transformers under torch.compile")
    parser.add_argument(
        "--means",
        action="store_true",
        help="random means stand for dropped units, so that no row of a neuron that says 0 is left out",
    )
    args = parser.parse_args()
    if not set(args.against) <= set(args.scorer):
        parser.error(f"--against must be among --scorer {args.scorer}, got {args.against}")
    dense = load(args.shape)
    # the gathered executor turns some weights over, which stock code might read at another speed
    turned = copy.deepcopy(dense)
    ids = torch.randint(10, 20000, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    stand_in = Mean(means_of(dense)) if args.means else Zero()
    runs: dict[tuple[str, str, float], GatheredRun] = {}
    scorers = {name: scorer_of(dense, name) for name in ["none", *args.scorer]}
    for storage in args.storage:
        weights = pack(turned, storage)
        for name, level in [("none", 0.0), *((name, level) for name in args.scorer for level in args.level)]:
            scorer, decided_at = scorers[name]
            planner = Planner(dense, scorer, SparsityPolicy(level), decided_at, stand_in)
            runs[storage, name, level] = GatheredRun(
                turned, planner, weights, compact=name == "prompt, copied"
            )

    def densely(forward: latency.Forward) -> latency.Timing:
        torch.set_num_threads(threads)  # which a gathered run has reduced
        return latency.time_generation(forward, ids, args.tokens)

    works: dict[str, Callable[[], latency.Timing]] = {"dense": partial(densely, dense)}
    if args.compiled:
        works["compiled"] = partial(densely, latency.compiled(dense, args.prompt + args.tokens))
    for case, run in runs.items():
        works[str(case)] = partial(latency.time_generation, run.forward, ids, args.tokens)
    found = latency.by_turns(works, args.rounds)
    print(f"{Path(args.shape).name}, float32 dense, {threads} threads, torch {torch.__version__}, "
          f"prompt of {args.prompt} random ids, {args.tokens} tokens, {args.rounds} rounds by turns; "
          f"{'random weights, ' if args.shape in SHAPES else ''}random predictors, "
          f"{'means' if args.means else 'nothing'} for dropped units\n")  # fmt: skip
    print("| storage | plan | level | heads % | neurons % | predictor, % of the bytes | ms a token | "
          "times dense | roofline | share of it | prompt, ms |")  # fmt: skip
    print("|" + " --- |" * 11)
    took = tell(found["dense"])
    print(
        f"| float32 | dense transformers | 0 | 0 | 0 | | {took} | 1 | 1 | | {prompt_of(found['dense']):.0f} |"
    )
    if args.compiled:
        times = times_as_fast(found["dense"], found["compiled"])
        print(f"| float32 | dense, torch.compile | 0 | 0 | 0 | | {tell(found['compiled'])} | "
              f"{tell_times(times)} | 1 | {statistics.median(times):.2f} | "
              f"{prompt_of(found['compiled']):.0f} |")  # fmt: skip
    bytes_dense = latency.dense_bytes(pack(turned))
    for (storage, name, level), run in runs.items():
        timings, read = found[str((storage, name, level))], latency.sparse_bytes(run)
        times, roofline = times_as_fast(found["dense"], timings), bytes_dense / read
        gone = f"{100 * run.achieved('head'):.1f} | {100 * run.achieved('neuron'):.1f}"
        share = 100 * latency.predictor_bytes(run) / read
        print(f"| {storage} | {name} | {level} | {gone} | {share:.1f} | {tell(timings)} | "
              f"{tell_times(times)} | {roofline:.2f} | {statistics.median(times) / roofline:.2f} | "
              f"{prompt_of(timings):.0f} |")  # fmt: skip
    for other in args.against:
        print(f"\n| storage | plan | level | times as fast as {other} | by the bytes |\n|" + " --- |" * 5)
        for (storage, name, level), run in runs.items():
            beside = storage, other, level
            if name == other or beside not in runs:
                continue
            times = times_as_fast(found[str(beside)], found[str((storage, name, level))])
            by_bytes = latency.sparse_bytes(runs[beside]) / latency.sparse_bytes(run)
            print(f"| {storage} | {name} | {level} | {tell_times(times)} | {by_bytes:.2f} |")


def times_as_fast(slow: Sequence[latency.Timing], fast: Sequence[latency.Timing]) -> list[float]:
    """How many times as fast, of each round."""
    return [latency.token_of(one) / latency.token_of(other) for one, other in zip(slow, fast, strict=True)]


def tell_times(times: list[float]) -> str:
    """Median and range over rounds."""
    return f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


def prompt_of(timings: Sequence[latency.Timing]) -> float:
    """-> ms"""
    return 1e3 * statistics.median(timing.prompt for timing in timings)


def tell(timings: Sequence[latency.Timing]) -> str:
    """Median and quartiles of all tokens, in ms."""
    took = latency.spread([1e3 * seconds for timing in timings for seconds in timing.tokens])
    return f"{took.median:.1f} ({took.low:.1f} to {took.high:.1f})"


def means_of(model: PreTrainedModel) -> dict[SiteKey, Tensor]:
    return {
        (site.layer, site.kind): torch.randn(site.units, site.module.in_features // site.units) / 100
        for site in find_sites(model)
    }


def load(shape: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if shape in SHAPES:
        return AutoModelForCausalLM.from_config(SHAPES[shape]).eval().requires_grad_(False)
    if not Path(shape).is_dir():
        raise SystemExit(f"SHAPE must be a folder or one of {list(SHAPES)}, got {shape!r}")
    return AutoModelForCausalLM.from_pretrained(shape, dtype=torch.float32).eval().requires_grad_(False)


def scorer_of(model: PreTrainedModel, name: str) -> tuple[Scorer, DecidedAt]:
    """`prompt`: one tap that decides once; `prompt, copied`: the rows that it keeps are then copied, in the
    prompt's time; `layerwise`: a tap in each layer, of conf/predictor's size or with the net of `one tap`;
    `dejavu`: reads the layer before, linear, of rank 1000."""
    sites, layers = find_sites(model), len(find_layers(model))
    if name in ("none", "static"):
        return Fixed(random_scores(sites, 0)), "token"
    spread_out = [1 + index * (layers - 1) // 4 for index in range(4)]
    taps, shape, ahead = {
        "prompt": ([1], NetShape(72, 576, 2), 0),
        "prompt, copied": ([1], NetShape(72, 576, 2), 0),
        "one tap": ([1], NetShape(72, 576, 2), 0),
        "four taps": (spread_out, NetShape(128, 384, 2), 0),
        "layerwise": (list(range(1, layers)), NetShape(72, 128, 1), 0),
        "layerwise, same net": (list(range(1, layers)), NetShape(72, 576, 2), 0),
        "dejavu": (list(range(layers - 1)), NetShape(1000, 0, 0), 1),
    }[name]
    net = TapNet(taps, layers, model.config.hidden_size, count_units(sites), shape, ahead)
    draw = torch.Generator().manual_seed(0)
    for values in net.parameters():
        values.data.normal_(0, 0.02, generator=draw)
    scorer = Predicted(net.eval().requires_grad_(False), "scores")
    return scorer, "prompt" if name.startswith("prompt") else "token"


if __name__ == "__main__":
    main()
