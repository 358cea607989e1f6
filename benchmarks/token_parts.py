"""Where a token's time goes, part by part, beside the bytes that each part reads: weights in 8 and 4 bits.

python benchmarks/token_parts.py MODEL [--storage int4] [--teal 0.414 --texts TRAIN TEST] [--rounds 7]

One pinned core. The milliseconds are those of the round that was disturbed least, by the processor's own
clock; GB/s beside them is what a part's weights come at, and beside all of it what this core reads at, from
an array as large.
"""

import argparse
import os
import time

import latency as shapes  # benchmarks/latency.py
import llama_cpp as beside  # benchmarks/llama_cpp.py
import numpy as np
import torch

from shadow.executors.cpu.channels import SLOTS, ChannelWeights
from shadow.executors.cpu.decode_grouped import PARTS
from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.vectors import cycles
from shadow.measures import latency
from shadow.plans.compiled import compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--storage", nargs="+", default=["int4"], choices=["int4", "int8"])
    parser.add_argument("--teal", nargs="*", type=float, default=[])
    parser.add_argument("--texts", nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-1:]))
    torch.set_num_threads(1)
    model, hertz = shapes.load(args.model), clock_rate()
    ids = torch.randint(10, 20000, (1, 64), generator=torch.Generator().manual_seed(0))
    print(f"this core reads at {read_rate(hertz):.1f} GB/s\n")
    for name, run in beside.runs_of(model, args).items():
        best, wall = None, 0.0
        for _ in range(args.rounds):
            latency.time_generation(run.forward, ids, 1)
            assert run.bench is not None
            run.bench.clock[:] = 0
            timing = latency.time_generation(run.forward, ids, args.tokens)
            took = run.bench.clock[0, : len(PARTS)] / hertz / args.tokens * 1e3
            if best is None or took.sum() < best.sum():
                best, wall = took, sum(timing.tokens) / args.tokens * 1e3
        assert best is not None
        read = bytes_of_parts(run)
        print(f"{name}: {wall:.2f} ms a token\n\n| part | ms | MB | GB/s |\n| --- | --- | --- | --- |")
        for part, took in zip(PARTS, best):
            size = read.get(part, 0.0)
            rate = f"{size / 1e6:.1f} | {size / took / 1e6:.1f}" if size else "|"
            print(f"| {part} | {took:.2f} | {rate} |")
        print(f"| outside the compiled call | {wall - best.sum():.2f} | | |\n")


def bytes_of_parts(run: GatheredRun) -> dict[str, float]:
    w, names = run.weights, [PARTS[2], PARTS[4], PARTS[5]]
    if isinstance(w, ChannelWeights):
        sizes = [latency.size(getattr(w, slot), share=run.new_tokens.share_kept(slot)) for slot in SLOTS]
        found = [sizes[0], sizes[1], sizes[2] + sizes[3]]
    else:
        found = [latency.size(w.query, w.key, w.value), latency.size(w.output)]
        found.append(latency.size(w.up, w.gate, w.down))
    return dict(zip(names, found)) | {PARTS[6]: latency.size(w.vocabulary)}


@compiled()
def count_cycles():
    return cycles()


@compiled({"reassoc"})
def add_up(numbers):
    found = np.int64(0)
    for number in numbers:
        found += number
    return found


def clock_rate() -> float:
    """Cycles a second of the clock that `cycles` reads."""
    count_cycles()  # compiles
    start, first = time.perf_counter(), count_cycles()
    time.sleep(0.5)
    return (count_cycles() - first) / (time.perf_counter() - start)


def read_rate(hertz: float) -> float:
    """-> GB/s, the best of some readings of 100 MB."""
    numbers, rates = np.ones(100_000_000 // 8, np.int64), []
    add_up(numbers)
    for _ in range(10):
        first = count_cycles()
        add_up(numbers)
        rates.append(numbers.nbytes / (count_cycles() - first) * hertz / 1e9)
    return max(rates)


if __name__ == "__main__":
    main()
