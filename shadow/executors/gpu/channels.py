"""Products with the weights of the inputs that stay alone: a row of weights is what one input writes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from shadow.executors.gpu.choice import highest
from shadow.executors.gpu.tuning import choices, dot_type, lines_of
from shadow.executors.gpu.units import add, splits_of


@triton.jit
def pick_kernel(
    x, above, out, kept, U, LEAST: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A program for each row of the batch: x where |x| is more than `above`, or among the LEAST highest,
    and 0 elsewhere; `kept` gains how many stay. TOP: these highest alone.

    Of floats that are not negative the bits, as whole numbers, are in the same order.
    """
    b = tl.program_id(0)
    unit = tl.arange(0, BLOCK)
    inside = unit < U
    read = tl.load(x + b * U + unit, mask=inside, other=0.0)
    score = tl.abs(read.to(tl.float32))
    if TOP:
        stays = inside & (score < 0)
    else:
        stays = inside & (score > tl.load(above))
    count = tl.sum(stays.to(tl.int32))
    if count < LEAST:
        stays = highest(score.to(tl.int32, bitcast=True), inside, LEAST)
        count = tl.sum(stays.to(tl.int32))
    tl.store(out + b * U + unit, tl.where(stays, read, 0.0), mask=inside)
    tl.store(kept + b, count)


@triton.autotune(
    choices(
        {"BLOCK_R": 16, "BLOCK_E": 128},
        {"BLOCK_R": 32, "BLOCK_E": 128},
        {"BLOCK_R": 16, "BLOCK_E": 256},
        {"BLOCK_R": 64, "BLOCK_E": 128},
    ),
    key=["E", "U", "LINES"],
)
@triton.jit
def sum_kernel(
    x, weight, parts, B, E, U,
    DOT: tl.constexpr, LINES: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A program adds up one share of the inputs, in BLOCK_E outputs, into a line of parts of its own. Rows of
    weights whose input is 0 in all rows of the batch are not read."""
    share = tl.cdiv(tl.cdiv(U, BLOCK_R), SPLITS) * BLOCK_R
    split = tl.program_id(1)
    column = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    lines = tl.arange(0, LINES)
    if LINES == 1:
        sums = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
    else:
        sums = tl.zeros((LINES, BLOCK_E), tl.float32)
    for begin in range(split * share, tl.minimum((split + 1) * share, U), BLOCK_R):
        unit = begin + tl.arange(0, BLOCK_R)
        real = (lines < B)[:, None] & (unit < U)[None, :]
        said = tl.load(x + lines[:, None] * U + unit[None, :], mask=real, other=0.0)
        stays = tl.max((said != 0).to(tl.int32), 0) != 0
        inside = stays[:, None] & (column < E)[None, :]
        at = unit.to(tl.int64)[:, None] * E + column[None, :]
        w = tl.load(weight + at, mask=inside, other=0.0, eviction_policy="evict_first")
        if LINES == 1:
            sums += tl.trans(said).to(tl.float32) * w.to(tl.float32)
        else:
            sums = tl.dot(said.to(DOT), w.to(DOT), sums, input_precision="ieee")
    if LINES == 1:
        sums = tl.sum(sums, 0)[None, :]
    real = (lines < B)[:, None] & (column < E)[None, :]
    tl.store(parts + (split * B + lines[:, None]) * E + column[None, :], sums, mask=real)


def pick(x: Tensor, above: Tensor, least: int, top: bool, kept: Tensor) -> Tensor:
    """-> [B, U]: x where it stays, and 0 elsewhere.

    x: [B, U]; above: float32 [1]; least: so many stay at least, the highest ones; top: and no others; kept:
    int32 [B] becomes how many do.
    """
    rows, units = x.shape
    out, block = torch.empty_like(x), triton.next_power_of_2(units)
    pick_kernel[(rows,)](
        x.contiguous(), above, out, kept, units, LEAST=least, TOP=top, BLOCK=block,
        num_warps=min(16, max(4, block // 1024)),
    )  # fmt: skip
    return out


def write_channels(
    x: Tensor, weight: Tensor, factor: Tensor | None, base: Tensor, before: Tensor | None, out: Tensor
) -> None:
    """out = before + base + factor * (x W), where rows of W are read whose x is not 0 in all rows of x.

    x: [B, U]; weight: [U, E], of x's dtype; factor, base: float32 [E]; before: float32 [B, E], may be out
    itself; out: [B, E].
    """
    (rows, units), width = x.shape, weight.shape[1]
    splits = splits_of(width, units)
    parts = torch.empty(splits, rows, width, device=x.device)

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return (triton.cdiv(width, meta["BLOCK_E"]), splits)

    sum_kernel[grid](
        x, weight, parts, rows, width, units, DOT=dot_type(x.dtype), LINES=lines_of(rows), SPLITS=splits
    )
    add(parts, factor, base, before, out)
