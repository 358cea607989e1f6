"""Peak memory of dense transformers and of the gathered executor, each in a process of its own. Linux alone.

python benchmarks/memory.py SHAPE [--level 0.5]: SHAPE as for benchmarks/latency.py.
"""

import argparse
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

CASES = ["dense", "none", "one tap", "prompt"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("--level", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--case", choices=CASES, help="this one alone, in this process")
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(measure(args)))
        return
    print("| case | peak, MB | over dense | after loading, MB | over dense | KV cache, MB | of a dense one |")
    print("|" + " --- |" * 7)
    dense = None
    for case in CASES:
        child = subprocess.run(
            [sys.executable, *sys.argv, "--case", case], stdout=subprocess.PIPE, check=True
        )
        found = json.loads(child.stdout.splitlines()[-1])
        dense = dense or found
        ratios = [found[key] / dense[key] for key in ("peak", "after_loading")]
        kept = found["held"] / found["dense"]
        print(f"| {case} | {found['peak']:.0f} | {ratios[0]:.2f} | {found['after_loading']:.0f} | "
              f"{ratios[1]:.2f} | {found['held']:.2f} | {kept:.2f} |", flush=True)  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, float]:
    """-> MB"""
    import latency  # benchmarks/latency.py
    import torch

    from shadow.executors.cache_layer import memory_of
    from shadow.executors.cpu.cache import KeyValues
    from shadow.executors.gathered import Gathered
    from shadow.front import sparse
    from shadow.models.cache_name import cache_of, named_cache

    model = latency.load(args.shape)
    loaded = peak()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    ids = torch.randint(10, 20000, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    block = nullcontext()
    if args.case != "dense":
        scorer, decided_at = latency.scorer_of(model, args.case)
        level = 0.0 if args.case == "none" else args.level
        block = sparse(model, scorer, level=level, decided_at=decided_at, executor=Gathered())
    with torch.no_grad(), block:
        found = model(ids, use_cache=True, logits_to_keep=1)
        for _ in range(args.tokens):
            new = found.logits[:, -1:].argmax(-1)
            found = model(new, use_cache=True, **named_cache(cache_of(found)))
    cache = cache_of(found)
    memory = memory_of(cache, KeyValues)
    if memory is not None:
        held, dense = memory.bytes_held(), memory.bytes_of_dense()
    else:
        held = dense = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    later = peak()
    return {"peak": max(loaded, later), "after_loading": later, "held": held / 1e6, "dense": dense / 1e6}


def peak() -> float:
    """-> MB that this process has held at most; ru_maxrss would begin with what its parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


if __name__ == "__main__":
    main()
