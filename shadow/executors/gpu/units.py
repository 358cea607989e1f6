"""Products with the weights of kept units alone: rows that read the stream, and rows that write to it."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from shadow.executors.gpu.tuning import choices, dot_type, lines_of

PROGRAMS = 512  # aimed at where a sum over units is cut: some four for each multiprocessor


class Units(NamedTuple):
    """The units of a kind in one layer that stay. keep: int8 [B, U], not 0 where a unit stays; listed: int32
    [U], those that stay in any row, in rising order, and found: int32 [1], how many those are; behind them
    `listed` means nothing.

    most: how many they can be at most: programs are launched for so many, and those behind `found` return at
    once, as the host does not wait to know it. width: of a unit, in rows of weights.
    """

    keep: Tensor
    listed: Tensor
    found: Tensor
    most: int
    width: int


@triton.jit
def find_rows(listed, count, begin, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """-> the rows of weights of the kept numbers from `begin` on, int64, their units, and which there are."""
    number = begin + tl.arange(0, BLOCK)
    there = number < count * WIDTH
    unit = tl.load(listed + number // WIDTH, mask=there, other=0)
    return unit.to(tl.int64) * WIDTH + number % WIDTH, unit, there


@triton.jit
def activate(said, NAME: tl.constexpr):
    if NAME == "relu":
        said = tl.maximum(said, 0.0)
    elif NAME == "silu":
        said = said * tl.sigmoid(said)
    elif NAME == "gelu":
        said = said * 0.5 * (1.0 + tl.erf(said * 0.7071067811865476))
    return said


@triton.autotune(
    choices(
        {"BLOCK_R": 16, "BLOCK_E": 128},
        {"BLOCK_R": 16, "BLOCK_E": 256},
        {"BLOCK_R": 32, "BLOCK_E": 64},
        {"BLOCK_R": 32, "BLOCK_E": 128},
        {"BLOCK_R": 64, "BLOCK_E": 64},
    ),
    key=["E", "R", "bucket", "LINES"],
)
@triton.jit
def read_kernel(
    x, weight, gate, bias, gate_bias, fill, keep, listed, count, out,
    B, E, R, bucket,
    WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, DOT: tl.constexpr, LINES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A program reads BLOCK_R rows of weights once, for all rows of the batch; gate and fill may be None.
    Blocks are tuned for each `bucket`, the power of two above `most`."""
    n = tl.load(count)
    begin = tl.program_id(0) * BLOCK_R
    if begin >= n * WIDTH:
        return
    row, unit, there = find_rows(listed, n, begin, WIDTH, BLOCK_R)
    columns, lines = tl.arange(0, BLOCK_E), tl.arange(0, LINES)
    if LINES == 1:  # partial sums stay with their threads up to the end
        sums = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
        gates = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
    else:
        sums = tl.zeros((LINES, BLOCK_R), tl.float32)
        gates = tl.zeros((LINES, BLOCK_R), tl.float32)
    for start in range(0, E, BLOCK_E):
        column = start + columns
        at = row[:, None] * E + column[None, :]
        inside = there[:, None] & (column < E)[None, :]
        w = tl.load(weight + at, mask=inside, other=0.0, eviction_policy="evict_first")
        if LINES == 1:
            read = tl.load(x + column, mask=column < E, other=0.0).to(tl.float32)[None, :]
            sums += w.to(tl.float32) * read
            if gate is not None:
                g = tl.load(gate + at, mask=inside, other=0.0, eviction_policy="evict_first")
                gates += g.to(tl.float32) * read
        else:
            real = (lines < B)[:, None] & (column < E)[None, :]
            tile = tl.load(x + lines[:, None] * E + column[None, :], mask=real, other=0.0).to(DOT)
            sums = tl.dot(tile, tl.trans(w.to(DOT)), sums, input_precision="ieee")
            if gate is not None:
                g = tl.load(gate + at, mask=inside, other=0.0, eviction_policy="evict_first")
                gates = tl.dot(tile, tl.trans(g.to(DOT)), gates, input_precision="ieee")
    if LINES == 1:
        said = tl.sum(sums, 1)[None, :]
        gated = tl.sum(gates, 1)[None, :]
    else:
        said = sums
        gated = gates
    if bias is not None:
        said += tl.load(bias + row, mask=there, other=0.0).to(tl.float32)[None, :]
    if gate is not None:
        if gate_bias is not None:
            gated += tl.load(gate_bias + row, mask=there, other=0.0).to(tl.float32)[None, :]
        said *= activate(gated, ACTIVATION)
    else:
        said = activate(said, ACTIVATION)
    if fill is not None:
        said -= tl.load(fill + row, mask=there, other=0.0)[None, :]
    real = (lines < B)[:, None] & there[None, :]
    stays = tl.load(keep + lines[:, None] * (R // WIDTH) + unit[None, :], mask=real, other=0)
    said = tl.where(stays != 0, said, 0.0)
    tl.store(out + lines[:, None] * R + row[None, :], said.to(out.dtype.element_ty), mask=real)


@triton.autotune(
    choices(
        {"BLOCK_R": 16, "BLOCK_E": 128},
        {"BLOCK_R": 32, "BLOCK_E": 128},
        {"BLOCK_R": 16, "BLOCK_E": 256},
        {"BLOCK_R": 64, "BLOCK_E": 64},
    ),
    key=["E", "R", "bucket", "LINES"],
)
@triton.jit
def write_kernel(
    x, weight, listed, count, parts,
    B, E, R, bucket,
    WIDTH: tl.constexpr, DOT: tl.constexpr, LINES: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A program adds up one share of the kept rows, in BLOCK_E columns, into a line of parts of its own."""
    n = tl.load(count)
    share = tl.cdiv(tl.cdiv(n * WIDTH, BLOCK_R), SPLITS) * BLOCK_R
    split = tl.program_id(1)
    column = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    lines = tl.arange(0, LINES)
    if LINES == 1:
        sums = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
    else:
        sums = tl.zeros((LINES, BLOCK_E), tl.float32)
    for begin in range(split * share, tl.minimum((split + 1) * share, n * WIDTH), BLOCK_R):
        row, _, there = find_rows(listed, n, begin, WIDTH, BLOCK_R)
        inside = there[:, None] & (column < E)[None, :]
        w = tl.load(weight + row[:, None] * E + column[None, :], mask=inside, other=0.0,
                    eviction_policy="evict_first")  # fmt: skip
        if LINES == 1:
            said = tl.load(x + row, mask=there, other=0.0).to(tl.float32)
            sums += said[:, None] * w.to(tl.float32)
        else:
            real = (lines < B)[:, None] & there[None, :]
            said = tl.load(x + lines[:, None] * R + row[None, :], mask=real, other=0.0).to(DOT)
            sums = tl.dot(said, w.to(DOT), sums, input_precision="ieee")
    if LINES == 1:
        sums = tl.sum(sums, 0)[None, :]
    real = (lines < B)[:, None] & (column < E)[None, :]
    tl.store(parts + (split * B + lines[:, None]) * E + column[None, :], sums, mask=real)


@triton.jit
def add_kernel(
    parts, factor, base, before, out, size, E, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out: the parts, in their order, so that the sum does not vary, times factor, plus base and what was
    before; factor and before may be None."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + split * size + at, mask=inside, other=0.0)
    if factor is not None:
        total *= tl.load(factor + at % E, mask=inside, other=0.0)
    total += tl.load(base + at % E, mask=inside, other=0.0)
    if before is not None:
        total += tl.load(before + at, mask=inside, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def read_units(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    units: Units,
    activation: str = "none",
    gate: Tensor | None = None,
    gate_bias: Tensor | None = None,
    fill: Tensor | None = None,
) -> Tensor:
    """What kept units read: activation(x W) or activation(x gate) * x W, less `fill`; zero in the rows of the
    batch that drop a unit, and undefined where all do.

    x: [B, E]; weight, gate: [U * width, E], of x's dtype; biases, fill: [U * width], the last float32
    -> [B, U * width].
    """
    (rows, width), count = x.shape, len(weight)
    out = x.new_empty(rows, count)

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(units.most * units.width, meta["BLOCK_R"]),)

    read_kernel[grid](
        x, weight, gate, bias, gate_bias, fill, units.keep, units.listed, units.found, out,
        rows, width, count, triton.next_power_of_2(units.most),
        WIDTH=units.width, ACTIVATION=activation, DOT=dot_type(x.dtype), LINES=lines_of(rows),
    )  # fmt: skip
    return out


def write_units(x: Tensor, weight: Tensor, units: Units, base: Tensor, stream: Tensor) -> None:
    """stream += x W + base, of the rows of W that belong to units which stay.

    x: [B, U * width], zero where a row of the batch drops a unit; weight: [U * width, E], of x's dtype; base:
    float32 [E]; stream: float32 [B, E].
    """
    (rows, count), width = x.shape, weight.shape[1]
    splits = splits_of(width, units.most * units.width)
    parts = torch.empty(splits, rows, width, device=x.device)

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return (triton.cdiv(width, meta["BLOCK_E"]), splits)

    write_kernel[grid](
        x, weight, units.listed, units.found, parts,
        rows, width, count, triton.next_power_of_2(units.most),
        WIDTH=units.width, DOT=dot_type(x.dtype), LINES=lines_of(rows), SPLITS=splits,
    )  # fmt: skip
    add(parts, None, base, stream, stream)


def splits_of(width: int, most: int) -> int:
    """Into how many parts a sum over so many rows of weights is cut."""
    wanted = triton.cdiv(PROGRAMS, triton.cdiv(width, 128))
    return triton.next_power_of_2(min(32, wanted, triton.cdiv(most, 64)))


def add(parts: Tensor, factor: Tensor | None, base: Tensor, before: Tensor | None, out: Tensor) -> None:
    """out = before + base + factor * the sum of parts. parts: float32 [splits, B, E]; factor, base: float32
    [E]; before: float32 [B, E], may be out itself; out: [B, E]."""
    (splits, rows, width), block = parts.shape, 256
    size = rows * width
    add_kernel[(triton.cdiv(size, block),)](
        parts, factor, base, before, out, size, width, SPLITS=splits, BLOCK=block
    )
