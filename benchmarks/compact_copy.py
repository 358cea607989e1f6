"""Would a copy of the kept neurons' rows, made once a prompt, pay? A trial of the FFN of an OPT-1.3B shape.

python benchmarks/compact_copy.py [STORAGE ...]

Beside the gathered kernel on scattered rows in rising order: the same kernel on rows that lie one behind the
other, and torch's products with them. Weights and plan are random.
"""

import argparse
import statistics
import time
from collections import namedtuple
from collections.abc import Callable

import numpy as np
import torch
from numba import njit

from shadow.fast.decode import write_neurons
from shadow.fast.families import Sizes
from shadow.fast.products import across, along
from shadow.fast.scoring import Choice
from shadow.fast.storage import CHUNK, FAST, Rows, Storage, allocate, put
from shadow.fast.team import Team, meet

LAYERS, WIDTH, NEURONS, ROUNDS = 8, 2048, 8192, 15


@njit(fastmath=FAST, nogil=True, error_model="numpy")
def all_layers(weights, choice, x, bench, board, member, members):
    bench.sums[member][:] = 0
    for layer in range(len(choice.counts)):
        write_neurons(weights, layer, choice, x, bench, member, members)
        meet(board, members)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storage", nargs="*", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--level", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    args = parser.parse_args()
    few = namedtuple("few", "sizes up gate down up_bias gate_bias")  # of Weights, what the kernel reads
    room = namedtuple("room", "h fill_neurons sums up gate lines factors")
    sizes = Sizes(LAYERS, WIDTH, 32, 32, 64, NEURONS, 1, False, True, False, 1e-5, 1.0, 0)
    team, draw = Team(), np.random.default_rng(0)
    print(f"{team.members} threads, {LAYERS} layers, medians of {ROUNDS} rounds by turns\n")
    print("| storage | level | scattered, ms | copied rows, ms | copied rows by torch, ms | copying, ms | "
          "scattered over copied | tokens until it pays |")  # fmt: skip
    print("|" + " --- |" * 8)
    for storage in args.storage:
        up, down = filled(storage), filled(storage)
        for level in args.level:
            n = NEURONS - round(level * NEURONS)
            kept = np.stack([np.sort(draw.choice(NEURONS, n, replace=False)) for _ in range(LAYERS)])

            def works_on(up: Rows, down: Rows, lists: np.ndarray) -> Callable[[], None]:
                count = up.values.shape[1]
                zeros = np.zeros((LAYERS, count), np.float32)
                stay = np.zeros((1, LAYERS, count), np.bool_)
                for layer in range(LAYERS):
                    stay[0, layer, lists[layer]] = True
                counts = np.full((LAYERS, 2), lists.shape[1], np.int64)
                choice = Choice(
                    stay, stay, lists.astype(np.int32), lists.astype(np.int32), counts, counts.copy()
                )
                weights = few(sizes, up, up, down, zeros, zeros)
                said, lines = np.zeros((1, count), np.float32), np.zeros((team.members, CHUNK + 16), np.int32)
                sums = np.zeros((team.members, 2, WIDTH), np.float32)
                h = np.ones((1, WIDTH), np.float32)
                bench = room(h, zeros, sums, said, said, lines, lines.astype(np.float32))
                x = np.ones((2, WIDTH), np.float32)
                return lambda: team.run(all_layers, weights, choice, x, bench)

            copies = [copied(rows, kept) for rows in (up, down)]
            in_order = np.tile(np.arange(n), (LAYERS, 1))
            works = {
                "scattered": works_on(up, down, kept),
                "copied": works_on(*copies, in_order),
                "torch": lambda copies=copies: by_torch(*copies, team.members),
                "copying": lambda kept=kept, up=up, down=down: copied_again(up, down, kept, team.members),
            }
            took: dict[str, list[float]] = {name: [] for name in works}
            for turn in range(ROUNDS + 1):
                for name, work in works.items():
                    torch.set_num_threads(1)
                    start = time.perf_counter()
                    work()
                    if turn:
                        took[name].append(1e3 * (time.perf_counter() - start))
            ms = {name: statistics.median(values) for name, values in took.items()}
            best = min(ms["copied"], ms["torch"])
            pays = f"{ms['copying'] / (ms['scattered'] - best):.0f}" if best < ms["scattered"] else "never"
            ratio = statistics.median([s / c for s, c in zip(took["scattered"], took["copied"])])
            print(f"| {storage} | {level} | {ms['scattered']:.1f} | {ms['copied']:.1f} | {ms['torch']:.1f} | "
                  f"{ms['copying']:.1f} | {ratio:.2f} | {pays} |", flush=True)  # fmt: skip
    team.close()


def filled(storage: Storage) -> Rows:
    rows, draw = allocate(storage, LAYERS, NEURONS, WIDTH), torch.Generator().manual_seed(0)
    for layer in range(LAYERS):
        put(rows, layer, torch.randn(NEURONS, WIDTH, generator=draw) * 0.02)
    return rows


def copied(rows: Rows, kept: np.ndarray) -> Rows:
    """kept: [L, n]"""
    values, scale = torch.from_numpy(rows.values), torch.from_numpy(rows.scale)
    lines = torch.from_numpy(kept)
    return Rows(
        torch.stack([values[layer].index_select(0, own) for layer, own in enumerate(lines)]).numpy(),
        torch.stack([scale[layer].index_select(0, own) for layer, own in enumerate(lines)]).numpy(),
    )


def copied_again(up: Rows, down: Rows, kept: np.ndarray, threads: int) -> None:
    torch.set_num_threads(threads)
    copied(up, kept)
    copied(down, kept)


def by_torch(up: Rows, down: Rows, threads: int) -> None:
    torch.set_num_threads(threads)
    x = torch.ones(1, WIDTH)
    for layer in range(LAYERS):
        along(across(x, up, layer).relu(), down, layer)


if __name__ == "__main__":
    main()
