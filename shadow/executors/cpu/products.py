"""Torch's products with stored rows, which are widened, or gathered, a few at a time."""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shadow.executors.cpu.matrices import In, Out, count_rows, widened, width_of
from shadow.executors.cpu.storage import Rows, as_tensor

TILE = 2**19  # numbers that are widened at once, into 2 MB that stay in a core's cache


class Products(Protocol):
    """Who multiplies a prompt's states: this module, or `in_blocks.Blocks`."""

    def across(
        self, x: Tensor, rows: In, layer: int, lines: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor: ...

    def along(self, x: Tensor, rows: Out, layer: int, lines: Tensor | None = None) -> Tensor: ...


def across(
    x: Tensor, rows: In, layer: int, lines: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """x: [..., E] times each row, or each of these lines, plus bias [lines] -> float32 [..., lines]."""
    whole = exact(rows, layer)
    if whole is not None and lines is None:
        return F.linear(x, whole, bias)
    flat = x.reshape(-1, x.shape[-1])
    said = torch.empty(len(flat), count_rows(rows) if lines is None else len(lines), dtype=torch.float32)
    for at, tile in tiles(rows, layer, lines):
        torch.mm(flat, tile.T, out=said[:, at])
    if bias is not None:
        said += bias
    return said.view(*x.shape[:-1], -1)


def along(x: Tensor, rows: Out, layer: int, lines: Tensor | None = None) -> Tensor:
    """x: [..., R], or [..., lines], how much of each row -> their float32 sums [..., E]."""
    whole = exact(rows, layer)
    if whole is not None and lines is None:
        return x @ whole
    flat = x.reshape(-1, x.shape[-1])
    said = torch.zeros(len(flat), width_of(rows), dtype=torch.float32)
    for at, tile in tiles(rows, layer, lines):
        said.addmm_(flat[:, at], tile)
    return said.view(*x.shape[:-1], -1)


def exact(rows: In | Out, layer: int) -> Tensor | None:
    """float32 rows, where they lie."""
    return as_tensor(rows, layer) if isinstance(rows, Rows) and rows.values.itemsize == 4 else None


def tiles(rows: In | Out, layer: int, lines: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Where each tile's rows stand among those asked for, and the rows in float32, until the next tile."""
    count = count_rows(rows) if lines is None else len(lines)
    step = max(1, TILE // width_of(rows))
    room = torch.empty(min(step, count), width_of(rows), dtype=torch.float32)
    for start in range(0, count, step):
        at = slice(start, min(start + step, count))
        if isinstance(rows, Rows):
            values = as_tensor(rows, layer)
            yield at, room[: at.stop - start].copy_(values[at] if lines is None else values[lines[at]])
        else:
            yield at, widened(rows, layer, torch.arange(at.start, at.stop) if lines is None else lines[at])
