"""Milliseconds a token of dense transformers and of the kernels, by turns, beside what memory would allow."""

import statistics
import time
from collections.abc import Iterator
from itertools import pairwise

import torch
from gpu_models import PROMPT, WAYS, Way, build, device, fitting, gathered, ids_of, no_kernels, shapes
from torch import Tensor
from transformers import PreTrainedModel

from shadow.measures.latency import spread
from shadow.models.cache_name import cache_of, named_cache
from shadow.models.kinds import weights_of

COLUMNS = ("model", "layers", "rows", "plan", "level", "ms a token", "from", "to", "times dense",
           "MB a token", "roofline, ms", "share of it", "prompt, ms", "why")  # fmt: skip
LEVELS = (0.0, 0.5, 0.7)


def run(dry: bool) -> Iterator[dict]:
    speed = bandwidth(dry)
    note = f"device to device {speed / 1e9:.0f} GB/s"
    for name, shape in shapes(dry).items():
        dtype = torch.float32 if dry else torch.bfloat16
        for plan, make in WAYS.items():
            # a second model, as kernels turn weights over, which stock code may read at another speed
            small = fitting(shape, dtype, 3)
            stock, turned = build(small, dtype), build(small, dtype)
            levels = LEVELS[1:2] if dry else LEVELS
            ways = [make(turned, level)._replace(name=plan) for level in levels]
            for batch in (1,) if dry else (1, 4):
                for row in by_turns(name, stock, turned, ways, batch, speed, dry):
                    yield row | {"note": note}
            del stock, turned, ways
            torch.cuda.empty_cache()


def by_turns(
    name: str, stock: PreTrainedModel, turned: PreTrainedModel, ways: list[Way], batch: int, speed: float,
    dry: bool,
) -> list[dict]:  # fmt: skip
    rounds, tokens = (1, 2) if dry else (5, 16)
    ids = ids_of(stock, batch, PROMPT)
    took: dict[int, list[list[float]]] = {number: [] for number in range(-1, len(ways))}
    skipped = dict.fromkeys(took, 0.0)
    why = no_kernels()
    for turn in range(dry, rounds + 1):  # the first warms up, and tunes block sizes
        for number in took if why is None else [-1]:
            if number < 0:
                found = generated(stock, ids, tokens)
            else:
                with gathered(turned, ways[number]) as run:
                    found = generated(turned, ids, tokens)
                    skipped[number] = float(run.bytes()["skipped"])  # type: ignore[arg-type]
            if turn:
                took[number].append(found)
    rows, dense = [], [statistics.median(one[1:]) for one in took[-1]]
    whole = weights_of(stock).all * stock.dtype.itemsize
    for number, turns in took.items():
        way = ways[number] if number >= 0 else None
        about = {
            "model": name,
            "layers": stock.config.num_hidden_layers,
            "rows": batch,
            "plan": way.name if way else "dense transformers",
            "level": way.policy.level if way else 0.0,
        }
        if not turns:
            rows.append(about | {"why": why})
            continue
        middle, low, high = spread([ms for one in turns for ms in one[1:]])
        read = whole * (1 - skipped[number])
        best = 1e3 * read / speed
        rows.append(
            about
            | {"ms a token": middle, "from": low, "to": high, "MB a token": read / 1e6, "roofline, ms": best}
            | {"share of it": best / middle, "prompt, ms": statistics.median(one[0] for one in turns)}
            | {"times dense": statistics.median(d / statistics.median(o[1:]) for d, o in zip(dense, turns))}
        )
    return rows


@torch.no_grad()
def generated(model: PreTrainedModel, ids: Tensor, tokens: int) -> list[float]:
    """-> milliseconds: of the prompt, and of each new token."""
    marks = [Moment()]
    found = model(ids, use_cache=True, logits_to_keep=1)
    marks.append(Moment())
    for _ in range(tokens):
        new = found.logits[:, -1:].argmax(-1)
        found = model(new, use_cache=True, **named_cache(cache_of(found)))
        marks.append(Moment())
    if device().type == "cuda":
        torch.cuda.synchronize()
    return [before.until(after) for before, after in pairwise(marks)]


class Moment:
    """Now, on the device."""

    def __init__(self) -> None:
        if device().type == "cpu":
            self.at: float | torch.cuda.Event = time.perf_counter()
            return
        self.at = torch.cuda.Event(enable_timing=True)
        self.at.record()

    def until(self, other: "Moment") -> float:
        """-> milliseconds"""
        if isinstance(self.at, float) and isinstance(other.at, float):
            return 1e3 * (other.at - self.at)
        return self.at.elapsed_time(other.at)


def bandwidth(dry: bool) -> float:
    """-> bytes a second that a copy within the device reads and writes; the best of some."""
    source = torch.ones(1 << (16 if dry else 30), dtype=torch.uint8, device=device())
    target, best = torch.empty_like(source), float("inf")
    for _ in range(8):
        start = Moment()
        target.copy_(source)
        end = Moment()
        if device().type == "cuda":
            torch.cuda.synchronize()
        best = min(best, start.until(end))
    return 2 * source.nbytes / (best / 1e3)
