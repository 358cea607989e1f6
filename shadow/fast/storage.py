"""How weights lie in memory, and the two products that read them row by row."""

from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from shadow.masked import Storage

STORAGES: tuple[Storage, ...] = get_args(Storage)
FAST = {"reassoc", "contract", "nsz"}  # sums may be taken in vectors; infinity stays infinity


class Rows(NamedTuple):
    """Rows of weights that are read whole. values: [L, R, E], float32, uint16 (the upper half of a float32,
    which is a bfloat16) or int8; scale: float32 [L, R], by which a row's values are multiplied."""

    values: np.ndarray
    scale: np.ndarray


def allocate(storage: Storage, layers: int, rows: int, width: int) -> Rows:
    dtype = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}[storage]
    return Rows(np.empty((layers, rows, width), dtype), np.ones((layers, rows), np.float32))


def put(rows: Rows, layer: int, weight: Tensor) -> None:
    """weight: [R, E]. Each row of int8 spans its own -127 to 127."""
    values, scale = rows.values[layer], rows.scale[layer]
    if values.dtype == np.float32:
        torch.from_numpy(values).copy_(weight)
    elif values.dtype == np.uint16:
        torch.from_numpy(values).view(torch.bfloat16).copy_(weight)
    else:
        for lines in torch.arange(len(weight)).split(4096):  # a float32 copy of all could be large
            part = weight[lines].float()
            step = part.abs().amax(1) / 127
            torch.from_numpy(scale)[lines] = step
            torch.from_numpy(values)[lines] = (part / step.where(step > 0, 1)[:, None]).round().to(torch.int8)


def as_tensor(rows: Rows, layer: int) -> Tensor:
    """-> [R, E] in the same memory: float32, bfloat16 or int8."""
    values = torch.from_numpy(rows.values)[layer]  # of all layers, so that the views have one storage
    return values.view(torch.bfloat16) if rows.values.dtype == np.uint16 else values


def read(rows: Rows, layer: int, lines: Tensor | None = None) -> Tensor:
    """-> float32 [R, E], or of these lines alone; float32 rows asked for whole are not copied."""
    values = as_tensor(rows, layer)
    scale = torch.from_numpy(rows.scale[layer])
    if lines is not None:
        values, scale = values[lines], scale[lines]
    return values.float() * scale[:, None] if values.dtype == torch.int8 else values.float()


@intrinsic
def _widen(typing: Any, value: Any) -> Any:
    """A stored number as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (stored,) = args
        if value == types.uint16:
            bits = builder.shl(builder.zext(stored, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(bits, ir.FloatType())
        return builder.sitofp(stored, ir.FloatType()) if value == types.int8 else stored

    return types.float32(value), generate


@intrinsic
def _fetch(typing: Any, values: Any, start: Any) -> Any:
    """Begin to read the cache line of values.flat[start]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(values)(context, builder, args[0])
        pointer = builder.bitcast(builder.gep(array.data, [args[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(fetch, [pointer, number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(values, types.int64), generate


@njit(nogil=True, cache=True, error_model="numpy")
def fetch(rows: Rows, layer: int, row: int) -> None:
    """Begin to read this row into the second cache, where more reads can be under way than in the first: of
    rows that are not neighbours the processor cannot guess the next."""
    _, count, width = rows.values.shape
    start = (layer * count + row) * width
    for e in range(0, width, 64 // rows.values.itemsize):
        _fetch(rows.values, start + e)


@njit(fastmath=FAST, nogil=True, cache=True, error_model="numpy")
def dot(x: np.ndarray, b: int, rows: Rows, layer: int, row: int) -> np.float32:
    """x: float32 [B, E] -> the product of its line b with this row."""
    values = rows.values
    total = np.float32(0)
    for e in range(values.shape[2]):
        total += x[b, e] * _widen(values[layer, row, e])
    return total * rows.scale[layer, row]


@njit(fastmath=FAST, nogil=True, cache=True, error_model="numpy")
def add(y: np.ndarray, b: int, factor: np.float32, rows: Rows, layer: int, row: int) -> None:
    """y: float32 [B, E]; its line b += factor times this row."""
    values = rows.values
    factor = factor * rows.scale[layer, row]
    for e in range(values.shape[2]):
        y[b, e] += factor * _widen(values[layer, row, e])
