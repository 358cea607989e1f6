"""One token's attention over a key-value cache, of kept heads alone."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from shadow.executors.gpu.tuning import dot_type

SPLIT = 256  # positions of a program: long caches are read by many at once


@triton.jit
def turned(base, at, inside, turns, ROOM, position, half, index):
    """The numbers at base + at, int [..., D] along `index`, turned to this position; turns: None for as they
    are, or float32 [2, ROOM, half], cosines and sines."""
    x = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    if turns is not None:
        low = index < half
        pair = position * half + tl.where(low, index, index - half)
        other = tl.load(base + at + tl.where(low, half, -half), mask=inside, other=0.0).to(tl.float32)
        cosine = tl.load(turns + pair, mask=index < 2 * half, other=0.0)
        sine = tl.load(turns + ROOM * half + pair, mask=index < 2 * half, other=0.0)
        x = x * cosine + tl.where(low, -other, other) * sine
    return x


@triton.jit
def remember_kernel(
    key, value, keys, values, turns, start, end, G, D, ROOM, BLOCK_D: tl.constexpr
):  # fmt: skip
    """A program puts one new key, turned, and value behind the others of its row and key-value head."""
    line = tl.program_id(0)  # of [B, G]
    index = tl.arange(0, BLOCK_D)
    inside = index < D
    position = tl.load(end)
    at = line * D + index
    k = turned(key, at, inside, turns, ROOM, position - tl.load(start + line // G), D // 2, index)
    to = (line.to(tl.int64) * ROOM + position) * D + index
    tl.store(keys + to, k.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + to, tl.load(value + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def attend_kernel(
    query, keys, values, turns, keep, start, end, said, highest, total, scaling,
    G, D, ROOM, SPLITS,
    EACH: tl.constexpr, DOT: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """A program reads SPAN positions of one key-value head once, for those of its EACH heads that stay."""
    line, split = tl.program_id(0), tl.program_id(1)  # of [B, G]
    b = line // G
    last, first = tl.load(end), tl.load(start + b)
    begin, stop = tl.maximum(split * SPAN, first), tl.minimum((split + 1) * SPAN, last + 1)
    head = tl.arange(0, BLOCK_H)
    own = line * EACH + head  # of [B, G * EACH]
    stays = tl.load(keep + own, mask=head < EACH, other=0) != 0
    if (begin >= stop) | (tl.max(stays.to(tl.int32)) == 0):
        return
    index, positions = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    wide = (index < D)[None, :]
    asked = stays[:, None] & wide
    q = turned(
        query, own[:, None] * D + index[None, :], asked, turns, ROOM, last - first, D // 2, index[None, :]
    )
    q = (q * (scaling * 1.4426950408889634)).to(DOT)  # powers of two are what the hardware has
    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_H,), tl.float32)
    sums = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    base = line.to(tl.int64) * ROOM
    for t in range(begin, stop, BLOCK_T):
        seen = t + positions < stop
        at = (base + t + positions)[:, None] * D + index[None, :]
        k = tl.load(keys + at, mask=seen[:, None] & wide, other=0.0)
        scores = tl.dot(q, tl.trans(k.to(DOT)), input_precision="ieee")
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(top - higher)
        v = tl.load(values + at, mask=seen[:, None] & wide, other=0.0)
        sums = tl.dot(weights.to(DOT), v.to(DOT), sums * fade[:, None], input_precision="ieee")
        mass = mass * fade + tl.sum(weights, 1)
        top = higher
    part = own * SPLITS + split
    tl.store(said + part[:, None] * D + index[None, :], sums, mask=asked)
    tl.store(highest + part, top, mask=stays)
    tl.store(total + part, mass, mask=stays)


@triton.jit
def combine_kernel(
    said, highest, total, keep, fill, start, end, context, H, D, SPLITS,
    BLOCK_D: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """A program joins the splits of one head, in their order; a dropped head says nothing."""
    line = tl.program_id(0)  # of [B, H]
    index = tl.arange(0, BLOCK_D)
    inside = index < D
    sums = tl.zeros((BLOCK_D,), tl.float32)
    if tl.load(keep + line) != 0:
        top = tl.full((), float("-inf"), tl.float32)
        mass = tl.zeros((), tl.float32)
        for split in range(tl.load(start + line // H) // SPAN, tl.load(end) // SPAN + 1):
            part = line * SPLITS + split
            own = tl.load(highest + part)
            higher = tl.maximum(top, own)
            fade, weight = tl.exp2(top - higher), tl.exp2(own - higher)
            sums = sums * fade + weight * tl.load(said + part * D + index, mask=inside, other=0.0)
            mass = mass * fade + weight * tl.load(total + part)
            top = higher
        sums = sums / mass
        if fill is not None:
            sums -= tl.load(fill + (line % H) * D + index, mask=inside, other=0.0)
    tl.store(context + line * D + index, sums.to(context.dtype.element_ty), mask=inside)


def remember(
    key: Tensor, value: Tensor, keys: Tensor, values: Tensor, turns: Tensor | None, start: Tensor, end: Tensor
) -> None:
    """Put a new key and value behind the others. key, value: [B, G * D]; keys, values: [B, G, room, D];
    turns: float32 [2, room, D / 2]; start: int32 [B], where rows begin; end: int32 [1], this position."""
    rows, groups, room, width = keys.shape
    remember_kernel[(rows * groups,)](
        key, value, keys, values, turns, start, end, groups, width, room,
        BLOCK_D=triton.next_power_of_2(width),
    )  # fmt: skip


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    turns: Tensor | None,
    keep: Tensor,
    start: Tensor,
    end: Tensor,
    scaling: float,
    fill: Tensor | None = None,
) -> Tensor:
    """Contexts of the heads that stay, over positions `start` to `end`, less `fill`; zero of the others.

    query: [B, H * D], not turned yet; keep: int8 [B, H]; fill: float32 [H, D]; the rest as in `remember`
    -> [B, H * D]. Heads of one key-value head that stay share what is read of it; where none stays, nothing
    is read.
    """
    (rows, groups, room, width), heads = keys.shape, keep.shape[1]
    splits, block = triton.cdiv(room, SPLIT), max(16, triton.next_power_of_2(width))
    said = torch.empty(rows, heads, splits, width, device=query.device)
    highest, total = torch.empty(2, rows, heads, splits, device=query.device)
    context = torch.empty_like(query)
    attend_kernel[(rows * groups, splits)](
        query, keys, values, turns, keep, start, end, said, highest, total, scaling,
        groups, width, room, splits,
        EACH=heads // groups, DOT=dot_type(query.dtype),
        BLOCK_H=max(16, triton.next_power_of_2(heads // groups)), BLOCK_D=block, BLOCK_T=64, SPAN=SPLIT,
    )  # fmt: skip
    combine_kernel[(rows * heads,)](
        said, highest, total, keep, fill, start, end, context, heads, width, splits,
        BLOCK_D=triton.next_power_of_2(width), SPAN=SPLIT,
    )  # fmt: skip
    return context
