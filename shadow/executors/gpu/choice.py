"""From scores to the units that stay, on the device: no copy of them goes to the host."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from shadow.executors.gpu.units import Units


@triton.jit
def highest(order, inside, n):
    """Of the units inside the n highest, among equals the first. order: whole numbers that compare as the
    scores do; the least that stays is found by halving what it can be, 32 times, and nothing is sorted."""
    low = tl.full((), -2147483648, tl.int64)
    high = tl.full((), 2147483647, tl.int64)
    for _ in range(32):  # at least n are from `low` on
        middle = (low + high + 1) >> 1
        enough = tl.sum(((order >= middle) & inside).to(tl.int32)) >= n
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    over = (order > low) & inside
    tied = (order == low) & inside
    free = n - tl.sum(over.to(tl.int32))
    return over | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= free))


@triton.jit
def choose_kernel(
    scores, way, least, above, keep, first, layers, B, U, BLOCK: tl.constexpr
):  # fmt: skip
    """As `shadow.executors.cpu.scoring.choose`: a program for each layer scored and row of the batch. Where
    nothing is pruned, `keep` is left as it is.

    Whole numbers of the same bits compare as floats do, once those of negative ones are turned round.
    """
    layer, b = tl.program_id(0), tl.program_id(1)
    how = tl.load(way + first + layer)
    if how == 0:
        return
    unit = tl.arange(0, BLOCK)
    inside = unit < U
    score = tl.load(scores + (b * layers + layer) * U + unit, mask=inside, other=0.0)
    n = tl.load(least + first + layer)
    bits = score.to(tl.int32, bitcast=True)
    order = tl.where(bits >= 0, bits, -2147483648 - bits)
    stays = highest(order, inside, n)
    stays = stays | ((how == 2) & (score > tl.load(above + first + layer)))
    tl.store(keep + ((first + layer) * B + b) * U + unit, stays.to(tl.int8), mask=inside)


@triton.jit
def list_kernel(
    keep, listed, count, kept, first, B, U, LINES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A program for each layer: which units stay in any row, in rising order, and how many in each row."""
    layer = first + tl.program_id(0)
    lines = tl.arange(0, LINES)
    found = tl.zeros((), tl.int32)
    of_rows = tl.zeros((LINES,), tl.int32)
    for start in range(0, U, BLOCK):
        unit = start + tl.arange(0, BLOCK)
        inside = (lines < B)[:, None] & (unit < U)[None, :]
        at = (layer * B + lines[:, None]) * U + unit[None, :]
        stays = tl.load(keep + at, mask=inside, other=0).to(tl.int32)
        of_rows += tl.sum(stays, 1)
        any_row = tl.max(stays, 0)
        place = found + tl.cumsum(any_row, 0) - 1
        tl.store(listed + layer * U + place, unit, mask=any_row != 0)
        found += tl.sum(any_row)
    tl.store(count + layer, found)
    tl.store(kept + layer * B + lines, of_rows, mask=lines < B)


class Choice:
    """What stays of one kind in all layers. keep: int8 [L, B, U]; listed: int32 [L, U] and count: int32 [L],
    as in `Units`; kept: int32 [L, B], how many units each row keeps."""

    def __init__(self, rows: int, layers: int, units: int, width: int, device: torch.device) -> None:
        """Everything stays, at first."""
        self.width = width
        self.keep = torch.ones(layers, rows, units, dtype=torch.int8, device=device)
        self.listed = torch.zeros(layers, units, dtype=torch.int32, device=device)
        self.count = torch.zeros(layers, dtype=torch.int32, device=device)
        self.kept = torch.zeros(layers, rows, dtype=torch.int32, device=device)
        self.most = [units] * layers

    def of_rows(self, order: Tensor | None) -> "Choice":
        """A copy; order: int64 [B'], rows of the batch; None: all of them."""
        layers, rows, units = self.keep.shape
        order = torch.arange(rows) if order is None else order
        found = Choice(len(order), layers, units, self.width, self.keep.device)
        found.keep.copy_(self.keep[:, order.to(self.keep.device)])
        found.list(range(layers))
        return found

    def list(self, span: range) -> None:
        """Fill in what follows from `keep`, of these layers."""
        _, rows, units = self.keep.shape
        list_kernel[(len(span),)](
            self.keep, self.listed, self.count, self.kept, span.start, rows, units,
            LINES=triton.next_power_of_2(rows), BLOCK=min(1024, triton.next_power_of_2(units)),
        )  # fmt: skip

    def at_most(self, counts: Sequence[int]) -> None:
        """Of each layer, how many units may stay in any row. No launch is of nothing."""
        self.most = [max(1, min(count, self.keep.shape[2])) for count in counts]

    def choose(self, scores: Tensor, span: range, way: Tensor, least: Tensor, above: Tensor) -> None:
        """scores: float32 [B, S, U] of these layers; the rule: [L] each, as `executors.cpu.scoring.Rule`."""
        _, rows, units = self.keep.shape
        block = triton.next_power_of_2(units)
        choose_kernel[(len(span), rows)](
            scores.contiguous(), way, least, above, self.keep, span.start, len(span), rows, units,
            BLOCK=block, num_warps=min(16, max(4, block // 1024)),
        )  # fmt: skip
        self.list(span)

    def of_layer(self, layer: int) -> Units:
        count = self.count[layer : layer + 1]
        return Units(self.keep[layer], self.listed[layer], count, self.most[layer], self.width)
