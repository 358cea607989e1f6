"""Weights in 8 and 4 bits: how groups of 32 inputs lie in memory, whichever way a matrix is read."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shadow.executors.cpu.grids import GROUP, grid_of, lies_on
from shadow.executors.cpu.lined_up import lined_up

BLOCK = 4  # groups whose codes fill a vector of 64 bytes, in 4 bits
VECTOR = 512  # bits, of as many outputs as are written at a time
SLACK = 4096  # bytes behind the last row, which vectors and prefetching may run into


class InRows(NamedTuple):
    """Rows that are multiplied with states: [L, R, E], E inputs. records: uint8, flat; a row's is `stride`
    long: its codes, then float16 scales and, of 4 bits, minima of its groups.

    Codes of 4 bits lie as in Q4_1: a group's first 16 in the lower halves of 16 bytes, its last in the upper
    ones. Of 8 bits the first 16 of each group of a block come first, then the last 16.
    """

    records: np.ndarray
    bits: int
    layers: int
    rows: int
    width: int
    groups: int
    stride: int


class OutRows(NamedTuple):
    """Rows that are added up: [L, U, E], E outputs, where 32 neighbouring rows share each output's scale.
    records: uint8, flat; a row's is `stride` long, its codes in `blocks` vectors of 64 bytes, the last of
    which may be shorter; grids: uint8, flat: of each 32 rows float16 scales and, of 4 bits, minima, [P] each,
    where P outputs fill the vectors.

    column: int64 [E], where of P an output stands, so that products come out in this order. unit: int32
    [L, U], which row of the whole matrix each one is, where these are copies of some.
    """

    records: np.ndarray
    grids: np.ndarray
    column: np.ndarray
    unit: np.ndarray
    bits: int
    layers: int
    rows: int
    width: int
    blocks: int
    stride: int


Grouped = InRows | OutRows


def groups_in(count: int) -> int:
    return -(-count // GROUP)


def bits_for(weights: list[Tensor], bits: int) -> int:
    """weights: [R, inputs] of each layer. Where 4 are asked for: 8, if this is exactly what a file holds."""
    if bits == 8:
        return 8
    cut = [in_groups(weight[: 4096 // len(weights) + 1]).flatten(0, 1) for weight in weights]
    if all(lies_on(part, 4) for part in cut) or not all(lies_on(part, 8) for part in cut):
        return 4
    return 8 if all(lies_on(in_groups(weight).flatten(0, 1), 8) for weight in weights) else 4


def in_groups(weight: Tensor) -> Tensor:
    """[R, inputs] -> float32 [R, G, 32]; the last group is filled up with its last weight."""
    missing = -weight.shape[1] % GROUP
    weight = weight.float()
    filled = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1) if missing else weight
    return filled.unflatten(1, (-1, GROUP))


def empty_in(bits: int, layers: int, rows: int, width: int) -> InRows:
    groups = groups_in(width)
    stride = groups * (20 if bits == 4 else 34)
    records = lined_up((layers * rows * stride + SLACK,), np.dtype(np.uint8))
    records[-SLACK:] = 0
    return InRows(records, bits, layers, rows, width, groups, stride)


def empty_out(bits: int, layers: int, rows: int, width: int) -> OutRows:
    lanes = groups_in(width)
    stride = lanes * GROUP * bits // 8
    blocks = -(-stride * 8 // VECTOR)
    grid = blocks * VECTOR // bits * (4 if bits == 4 else 2)
    records = lined_up((layers * rows * stride + SLACK,), np.dtype(np.uint8))
    grids = lined_up((layers * groups_in(rows) * grid + SLACK,), np.dtype(np.uint8))
    grids[:], records[-SLACK:] = 0, 0
    unit = np.tile(np.arange(rows, dtype=np.int32), (layers, 1))
    return OutRows(records, grids, columns(width, bits), unit, bits, layers, rows, width, blocks, stride)


def columns(width: int, bits: int) -> np.ndarray:
    """-> int64 [E], where outputs stand. A last vector that is not full leaves holes."""
    at, size = np.arange(width), VECTOR // bits
    lanes = np.minimum(4, 4 * (groups_in(width) * GROUP - at // size * size) // size)
    part, rest = np.divmod(at % size, 8 * lanes)
    return at // size * size + part * 32 + rest


def put_in(rows: InRows, layer: int, weight: Tensor, start: int = 0) -> None:
    """weight: [R', E], the rows from `start` on."""
    record = _of_layer(rows.records, layer, rows.rows, rows.stride)[start : start + len(weight)]
    code_bytes = rows.groups * GROUP * rows.bits // 8
    for lines in torch.arange(len(weight)).split(4096):
        grid = grid_of(in_groups(weight[lines]).flatten(0, 1), rows.bits)
        codes = grid.codes.view(len(lines), rows.groups, 2, 16)
        if rows.bits == 4:
            found = (codes[:, :, 0] | codes[:, :, 1] << 4).flatten(1)
        else:
            found = torch.cat([block.transpose(1, 2).flatten(1) for block in codes.split(BLOCK, 1)], 1)
        kept = (grid.scale, grid.minimum) if rows.bits == 4 else (grid.scale,)
        scales = [part.view(len(lines), rows.groups).view(torch.uint8) for part in kept]
        record[lines, :code_bytes], record[lines, code_bytes:] = found, torch.cat(scales, 1)


def put_out(rows: OutRows, layer: int, weight: Tensor) -> None:
    """weight: [U, E]; a group is 32 neighbours of U."""
    record = _of_layer(rows.records, layer, rows.rows, rows.stride)
    groups, lanes = groups_in(rows.rows), groups_in(rows.width)
    grids = rows.grids[:-SLACK].reshape(rows.layers, groups, -1, rows.blocks * VECTOR // rows.bits * 2)[layer]
    grid = grid_of(in_groups(weight.T).flatten(0, 1), rows.bits)
    codes = torch.zeros(rows.rows, lanes * GROUP, dtype=torch.uint8)
    codes[:, : rows.width] = grid.codes.view(rows.width, -1)[:, : rows.rows].T
    size = VECTOR // rows.bits
    for start in range(0, lanes * GROUP, size):
        block = codes[:, start : start + size]
        woven = block.view(len(block), 8 // rows.bits, 2, -1, 8).transpose(2, 3).flatten(2)
        found = woven[:, 0] | woven[:, 1] << 4 if rows.bits == 4 else woven[:, 0]
        record[:, start * rows.bits // 8 :][:, : found.shape[1]] = found
    column = torch.from_numpy(rows.column)
    for number, kept in enumerate((grid.scale, grid.minimum) if rows.bits == 4 else (grid.scale,)):
        held = torch.from_numpy(grids[:, number].view(np.float16))
        held[:, column] = kept.view(rows.width, groups).T


def _of_layer(records: np.ndarray, layer: int, rows: int, stride: int) -> Tensor:
    """-> uint8 [R, stride] in the same memory."""
    return torch.from_numpy(
        records[layer * rows * stride : (layer + 1) * rows * stride].reshape(rows, stride)
    )
