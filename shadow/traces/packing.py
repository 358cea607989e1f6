"""Scores in few bytes: half precision with a scale, or 8-bit ranks with a curve; bits of the best units."""

import functools
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Stored = Literal["float16", "ranks"]

CODES = 256
# of the 256 ranks, those whose score is kept; the others' lie on straight lines between them
KNOTS = (0, 1, 8, 16, 32, 64, 96, 128, 160, 192, 208, 224, 240, 248, 252, 254, 255)


def pack(values: Tensor) -> tuple[Tensor, Tensor]:
    """values: float32 [..., U] -> float16 [..., U] and float32 scales [...]: factors of values, to 11 bits.

    The scale is the power of two that brings a row's largest value near 2**14: squared gradients survive.
    """
    largest = values.abs().amax(-1)
    if not torch.isfinite(largest).all():  # NaN is larger than any number
        raise ValueError(
            "scores or states are not finite: the model overflows in its dtype (try model.dtype=float32)"
        )
    _, exponent = torch.frexp(largest)
    scale = torch.ldexp(
        torch.ones_like(values[..., 0]), (exponent - 14).clamp(min=-126)
    )  # below, floats run out
    return (values / scale[..., None]).half(), scale


def unpack(packed: Tensor, scale: Tensor) -> Tensor:
    return packed.float().mul_(scale[..., None])


def rank(values: Tensor) -> tuple[Tensor, Tensor]:
    """values: float32 [..., U], U > 256 -> uint8 [..., U], ranks in 256ths from the lowest, and [..., 17].

    Equal values have equal ranks: the neurons that ReLU silenced are all 0. The second are the scores at
    KNOTS, at 0 the row's least, at 255 the mean of those ranked so; they make ranks scores again, about.
    """
    rows = values.flatten(0, -2)
    units = rows.shape[-1]
    ordered = torch.from_numpy(np.sort(rows.numpy(), -1))  # several times faster than torch's
    edges = ordered[:, [-(-code * units // CODES) for code in range(1, CODES)]]
    codes = torch.searchsorted(edges, rows).to(torch.uint8)
    middles = [(2 * code + 1) * units // (2 * CODES) for code in KNOTS[1:-1]]
    top = ordered[:, (CODES - 1) * units // CODES :].mean(-1, keepdim=True)
    knots = torch.cat([ordered[:, :1], ordered[:, middles], top], -1)
    return codes.view(values.shape), knots.view(*values.shape[:-1], len(KNOTS))


def unrank(codes: Tensor, knots: Tensor) -> Tensor:
    """-> float32 [..., U]: each rank's score on the row's curve."""
    table = knots @ _lines().T  # [..., 256]
    return table.flatten(0, -2).gather(-1, codes.flatten(0, -2).long()).view(codes.shape)


@functools.cache
def _lines() -> Tensor:
    """-> [256, 17]: what each rank takes of each knot."""
    identity = np.eye(len(KNOTS))
    columns = [np.interp(np.arange(CODES), KNOTS, column) for column in identity]
    return torch.from_numpy(np.stack(columns, -1)).float()


def encode(values: Tensor, stored: Stored, top: float | None = None) -> dict[str, Tensor]:
    """values: float32 [..., U] -> arrays by the suffix of their name.

    Up to 256 units, float16 takes hardly more and keeps more than ranks do. top: also keep, as a bit a unit,
    which units are this share of the best.
    """
    if stored == "ranks" and values.shape[-1] > CODES:
        codes, knots = rank(values)
        packed, scale = pack(knots)
        arrays = {"": codes, "/knots": packed, "/knots/scale": scale}
    else:
        packed, scale = pack(values)
        arrays = {"": packed, "/scale": scale}
    if top is not None:
        arrays["/top"] = top_bits(values, top)
    return arrays


def decode(arrays: dict[str, Tensor]) -> Tensor:
    """What `encode` gave, or any rows of it -> float32 [..., U], about the values."""
    if arrays[""].dtype == torch.uint8:
        return unrank(arrays[""], unpack(arrays["/knots"], arrays["/knots/scale"]))
    return unpack(arrays[""], arrays["/scale"])


def top_bits(values: Tensor, share: float) -> Tensor:
    """values: [..., U] -> uint8 [..., ceil(U / 8)]: a bit a unit, set for the round(share * U) best."""
    count = round(share * values.shape[-1])
    best = values.argsort(dim=-1, descending=True, stable=True)[..., :count]
    mask = torch.zeros(values.shape, dtype=torch.bool).scatter_(-1, best, True)
    return torch.from_numpy(np.packbits(mask.numpy(), -1))


def from_bits(bits: Tensor, units: int) -> Tensor:
    """-> bool [..., U], True at the units that were among the best."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), -1, count=units)).bool()
