"""How weights lie in memory, and the two products that read them row by row."""

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.options import Storage
from shadow.plans.compiled import compiled

TOGETHER = 8  # rows that `dots` and `adds` read at once
CHUNK = 64  # rows that a batch reads before the next ones, so that all of its lines find them in a cache
FAST = {"reassoc", "contract", "nsz"}  # sums may be taken in vectors; infinity stays infinity


class Rows(NamedTuple):
    """Rows of weights that are read whole. values: [L, R, E], float32 or uint16 (the upper half of a float32,
    which is a bfloat16)."""

    values: np.ndarray


def allocate(storage: Storage, layers: int, rows: int, width: int) -> Rows:
    dtype = np.float32 if storage == "float32" else np.uint16
    return Rows(lined_up((layers, rows, width), np.dtype(dtype)))


def put(rows: Rows, layer: int, weight: Tensor) -> None:
    """weight: [R, E]"""
    as_tensor(rows, layer).copy_(weight)


def as_tensor(rows: Rows, layer: int) -> Tensor:
    """-> [R, E] in the same memory: float32 or bfloat16."""
    values = torch.from_numpy(rows.values)[layer]  # of all layers, so that the views have one storage
    return values.view(torch.bfloat16) if rows.values.dtype == np.uint16 else values


@intrinsic
def _widen(typing: Any, value: Any) -> Any:
    """A stored number as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (stored,) = args
        if value == types.uint16:
            bits = builder.shl(builder.zext(stored, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(bits, ir.FloatType())
        return stored

    return types.float32(value), generate


@compiled(FAST)
def dot(x: np.ndarray, b: int, rows: Rows, layer: int, row: int) -> np.float32:
    """x: float32 [B, E] -> the product of its line b with this row."""
    values = rows.values
    total = np.float32(0)
    for e in range(values.shape[2]):
        total += x[b, e] * _widen(values[layer, row, e])
    return total


@compiled(FAST)
def dots(
    x: np.ndarray,
    b: int,
    rows: Rows,
    bias: np.ndarray,
    layer: int,
    lines: np.ndarray,
    count: int,
    out: np.ndarray,
) -> None:
    """x: float32 [B, E], bias: [L, R], out: [B, R]; line b of `out` becomes, at the first `count` of `lines`,
    these rows' products with x's line b, plus the bias. lines: int32, with room for seven more.

    The processor fetches a row ahead of what is read of it, and of eight rows at once it has more under way
    than a program may ask for. Rows that are read one after the other, not at once, are neighbours in
    `lines`: where they are neighbours in memory too, it goes on from one to the next.
    """
    values = rows.values
    apart = -(-count // TOGETHER)
    for at in range(count, apart * TOGETHER):
        lines[at] = lines[0]
    for at in range(apart):
        r0, r1, r2, r3 = lines[at], lines[at + apart], lines[at + 2 * apart], lines[at + 3 * apart]
        r4, r5, r6, r7 = (
            lines[at + 4 * apart],
            lines[at + 5 * apart],
            lines[at + 6 * apart],
            lines[at + 7 * apart],
        )
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
        for e in range(values.shape[2]):
            number = x[b, e]
            s0 += number * _widen(values[layer, r0, e])
            s1 += number * _widen(values[layer, r1, e])
            s2 += number * _widen(values[layer, r2, e])
            s3 += number * _widen(values[layer, r3, e])
            s4 += number * _widen(values[layer, r4, e])
            s5 += number * _widen(values[layer, r5, e])
            s6 += number * _widen(values[layer, r6, e])
            s7 += number * _widen(values[layer, r7, e])
        out[b, r0] = s0 + bias[layer, r0]
        out[b, r1] = s1 + bias[layer, r1]
        out[b, r2] = s2 + bias[layer, r2]
        out[b, r3] = s3 + bias[layer, r3]
        out[b, r4] = s4 + bias[layer, r4]
        out[b, r5] = s5 + bias[layer, r5]
        out[b, r6] = s6 + bias[layer, r6]
        out[b, r7] = s7 + bias[layer, r7]


@compiled(FAST)
def adds(
    y: np.ndarray, b: int, factors: np.ndarray, rows: Rows, layer: int, lines: np.ndarray, count: int
) -> None:
    """y: float32 [B, E]; its line b += the rows of the first `count` of `lines`, each times its factor.

    Rows are read as by `dots`; lines and factors have room for seven more.
    """
    values = rows.values
    apart = -(-count // TOGETHER)
    for at in range(count, apart * TOGETHER):
        lines[at], factors[at] = lines[0], np.float32(0)
    for at in range(apart):
        r0, r1, r2, r3 = lines[at], lines[at + apart], lines[at + 2 * apart], lines[at + 3 * apart]
        r4, r5, r6, r7 = (
            lines[at + 4 * apart],
            lines[at + 5 * apart],
            lines[at + 6 * apart],
            lines[at + 7 * apart],
        )
        f0, f1 = factors[at], factors[at + apart]
        f2, f3 = factors[at + 2 * apart], factors[at + 3 * apart]
        f4, f5 = factors[at + 4 * apart], factors[at + 5 * apart]
        f6, f7 = factors[at + 6 * apart], factors[at + 7 * apart]
        for e in range(values.shape[2]):
            y[b, e] += (
                f0 * _widen(values[layer, r0, e])
                + f1 * _widen(values[layer, r1, e])
                + f2 * _widen(values[layer, r2, e])
                + f3 * _widen(values[layer, r3, e])
                + f4 * _widen(values[layer, r4, e])
                + f5 * _widen(values[layer, r5, e])
                + f6 * _widen(values[layer, r6, e])
                + f7 * _widen(values[layer, r7, e])
            )
