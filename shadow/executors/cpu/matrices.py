"""A matrix in any storage: as rows that are multiplied with states, or as rows that are added up."""

import numpy as np
import torch
from torch import Tensor

from shadow.executors.cpu.grouped import InRows, OutRows, empty_in, empty_out, put_in, put_out
from shadow.executors.cpu.storage import Rows, allocate, as_tensor, put
from shadow.executors.cpu.widen import widen_in, widen_out
from shadow.executors.options import BITS, Storage

In = Rows | InRows
Out = Rows | OutRows


def empty_rows(storage: Storage, layers: int, rows: int, width: int) -> In:
    """Of rows that are multiplied; zeros."""
    if storage in BITS:
        found = empty_in(BITS[storage], layers, rows, width)
        found.records[:] = 0
        return found
    plain = allocate(storage, layers, rows, width)
    plain.values[:] = 0
    return plain


def put_rows(rows: In, layer: int, weight: Tensor, start: int = 0) -> None:
    """weight: [R', E], the rows from `start` on."""
    if isinstance(rows, InRows):
        put_in(rows, layer, weight, start)
    else:
        as_tensor(rows, layer)[start : start + len(weight)] = weight


def read(rows: In | Out, layer: int, lines: Tensor | None = None) -> Tensor:
    """-> float32 [R, E], or of these lines alone; float32 rows asked for whole are not copied."""
    if not isinstance(rows, Rows):
        return widened(rows, layer, lines)
    values = as_tensor(rows, layer)
    return (values if lines is None else values[lines]).float()


def widened(rows: InRows | OutRows, layer: int, lines: Tensor | None = None) -> Tensor:
    """-> float32 [R, E], or of these lines alone."""
    numbers = np.arange(rows.rows) if lines is None else lines.numpy()
    out = torch.empty(len(numbers), rows.width, dtype=torch.float32)
    (widen_in if isinstance(rows, InRows) else widen_out)(rows, layer, numbers, out.numpy())
    return out


def rounded(weight: Tensor, storage: Storage, turned: bool) -> Tensor:
    """What a storage makes of a weight [outputs, inputs]; turned: as rows that are added up."""
    rows: In | Out
    if storage not in BITS:
        rows = allocate(storage, 1, *weight.shape)
        put(rows, 0, weight)
    elif turned:
        rows = empty_out(BITS[storage], 1, *weight.T.shape)
        put_out(rows, 0, weight.T)
        return read(rows, 0).T.contiguous()
    else:
        rows = empty_in(BITS[storage], 1, *weight.shape)
        put_in(rows, 0, weight)
    return read(rows, 0)


def count_rows(rows: In | Out) -> int:
    """Of a layer."""
    return rows.values.shape[1] if isinstance(rows, Rows) else rows.rows


def width_of(rows: In | Out) -> int:
    return rows.values.shape[2] if isinstance(rows, Rows) else rows.width


def bytes_of(rows: In | Out, share: float = 1.0) -> float:
    """That a token reads where this share of the rows stays; grids of 32 rows are read as they are."""
    if isinstance(rows, Rows):
        return share * rows.values.nbytes
    grids = rows.grids.nbytes if isinstance(rows, OutRows) else 0
    return share * rows.layers * rows.rows * rows.stride + grids


def weights_in(rows: In | Out) -> int:
    return rows.values.size if isinstance(rows, Rows) else rows.layers * rows.rows * rows.width
