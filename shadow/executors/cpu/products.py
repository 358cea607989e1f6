"""Torch's products with stored rows, which are widened, or gathered, a few at a time."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from shadow.executors.cpu.storage import Rows, as_tensor

TILE = 2**19  # numbers that are widened at once, into 2 MB that stay in a core's cache


def across(
    x: Tensor, rows: Rows, layer: int, lines: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """x: [..., E] times each row, or each of these lines, plus bias [lines] -> float32 [..., lines]."""
    values = as_tensor(rows, layer)
    if values.dtype == torch.float32 and lines is None:
        return F.linear(x, values, bias)
    flat = x.reshape(-1, x.shape[-1])
    said = torch.empty(len(flat), len(values) if lines is None else len(lines), dtype=torch.float32)
    for at, tile in tiles(values, lines):
        torch.mm(flat, tile.T, out=said[:, at])
    if values.dtype == torch.int8:
        said *= scales(rows, layer, lines)
    if bias is not None:
        said += bias
    return said.view(*x.shape[:-1], -1)


def along(x: Tensor, rows: Rows, layer: int, lines: Tensor | None = None) -> Tensor:
    """x: [..., R], or [..., lines], how much of each row -> their float32 sums [..., E]."""
    values = as_tensor(rows, layer)
    if values.dtype == torch.float32 and lines is None:
        return x @ values
    flat = x.reshape(-1, x.shape[-1])
    if values.dtype == torch.int8:
        flat = flat * scales(rows, layer, lines)
    said = torch.zeros(len(flat), values.shape[1], dtype=torch.float32)
    for at, tile in tiles(values, lines):
        said.addmm_(flat[:, at], tile)
    return said.view(*x.shape[:-1], -1)


def scales(rows: Rows, layer: int, lines: Tensor | None) -> Tensor:
    scale = torch.from_numpy(rows.scale[layer])
    return scale if lines is None else scale[lines]


def tiles(values: Tensor, lines: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Where each tile's rows stand among those asked for, and the rows in float32, until the next tile."""
    count = len(values) if lines is None else len(lines)
    step = max(1, TILE // values.shape[1])
    room = torch.empty(min(step, count), values.shape[1], dtype=torch.float32)
    for start in range(0, count, step):
        at = slice(start, min(start + step, count))
        part = values[at] if lines is None else values[lines[at]]
        yield at, room[: len(part)].copy_(part)
