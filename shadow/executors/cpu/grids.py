"""Grids: how 32 neighbouring weights become whole numbers, with a scale and a minimum in half precision."""

from typing import NamedTuple

import torch
from torch import Tensor

from shadow.executors.cpu.grid_search import HIGHEST, candidates, nearest

GROUP = 32  # weights that share a scale
AT_ONCE = 2**17  # groups at a time: 17 MB of float32


class Grid(NamedTuple):
    """codes: uint8 [N, 32]; scale, minimum: float16 [N]. A weight is scale * code + minimum in float32; of 8
    bits codes are 128 too high, and the minimum, -128 scales, is not stored."""

    codes: Tensor
    scale: Tensor
    minimum: Tensor


def values_of(grid: Grid, bits: int) -> Tensor:
    """-> float32 [N, 32]"""
    scale = grid.scale.float()[:, None]
    if bits == 8:
        return scale * (grid.codes.float() - 128)
    return scale * grid.codes.float() + grid.minimum.float()[:, None]


def grid_of(weights: Tensor, bits: int) -> Grid:
    """weights: float32 [N, 32]. Those that lie on a grid already keep it to the last bit."""
    parts = [_eight(part) if bits == 8 else _four(part) for part in weights.split(AT_ONCE)]
    return Grid(*(torch.cat(list(part)) for part in zip(*parts)))


def lies_on(weights: Tensor, bits: int) -> bool:
    """Whether all of them are exactly what a file of this many bits holds (4: Q4_0, Q4_1; 8: Q8_0)."""
    for part in weights.split(AT_ONCE):
        found = _eight(part) if bits == 8 else _kept(part)
        if not torch.equal(values_of(found, bits), part):
            return False
    return True


def _eight(weights: Tensor) -> Grid:
    scale = (weights.abs().amax(1) / 127).half()
    step = scale.float()[:, None]
    codes = torch.where(step > 0, weights / step, 0).round().clamp(-127, 127) + 128
    return Grid(codes.to(torch.uint8), scale, torch.zeros_like(scale))


def _four(weights: Tensor) -> Grid:
    found = _kept(weights)
    off = (values_of(found, 4) != weights).any(1)
    if bool(off.any()):
        for kept, searched in zip(found, _searched(weights[off])):
            kept[off] = searched
    return found


def _kept(weights: Tensor) -> Grid:
    """The grid from the least to the greatest, as Q4_1 has it, or else Q4_0's, which is even about 0."""
    low, high = weights.aminmax(dim=1)
    found = _on(weights, ((high - low) / HIGHEST).half(), low.half())
    off = (values_of(found, 4) != weights).any(1)
    if bool(off.any()):
        rest = weights[off]
        scale = (rest.gather(1, rest.abs().argmax(1, keepdim=True))[:, 0] / -8).half()
        for kept, even in zip(found, _on(rest, scale, (scale.float() * -8).half())):
            kept[off] = even
    return found


def _on(weights: Tensor, scale: Tensor, minimum: Tensor) -> Grid:
    step = scale.float()[:, None]
    codes = torch.where(step != 0, (weights - minimum.float()[:, None]) / step, 0)
    return Grid(codes.round().clamp(0, HIGHEST).to(torch.uint8), scale, minimum)


def _searched(weights: Tensor) -> Grid:
    held = weights.detach().numpy()
    lines = [torch.from_numpy(part).half() for part in candidates(held)]
    best, codes = nearest(held, *(part.float().numpy() for part in lines))
    scale, minimum = (part.gather(1, torch.from_numpy(best)[:, None])[:, 0] for part in lines)
    return Grid(torch.from_numpy(codes), scale, minimum)
