"""Criteria on weights and their gradients, of each sample and each token by itself, without a backward each.

A weight's gradient is a sum over tokens of outer products (own side times other side), so a single token's
needs no matrix of its own, and a norm needs only the tokens' inner products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightRead:
    """One projection, seen from the units: dL/dweight[u, d, e] of a sample = sum_t own[t, u, d] other[t, e].

    A neuron owns a row of each projection that writes it (own: gradient of its value before the
    non-linearity, other: what the FFN reads). A head owns its columns of the output projection, the only
    weights that are its alone under grouped-query attention (own: its output, other: gradient of what the
    projection writes). own: [B, T, U, D]; other: [B, T, E]; weight: [U, D, E]; all float32.
    """

    own: Tensor
    other: Tensor
    weight: Tensor


class WeightForm(Protocol):
    def tokens(self, reads: Sequence[WeightRead]) -> Tensor: ...

    def window(self, reads: Sequence[WeightRead], inside: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Weighed:
    """One weight form at one site of one batch."""

    form: WeightForm
    reads: Sequence[WeightRead]

    def tokens(self) -> Tensor:
        """-> [B, T, U]: the score at each position by itself."""
        return self.form.tokens(self.reads)

    def at(self, row: Tensor, position: Tensor) -> Tensor:
        """row, position: [M] -> [M, U]: `tokens` there."""
        return self.tokens()[row, position]

    def window(self, inside: Tensor) -> Tensor:
        """inside: bool [B, T] -> [B, U]: the score over these positions together."""
        return self.form.window(self.reads, inside)


class PlainActWeight:
    """sum |w·dL/dw| over the unit's weights. Loss units.

    The form in which the paper's code computes "plainact" for neurons; for heads it has none.
    """

    def tokens(self, reads: Sequence[WeightRead]) -> Tensor:
        parts = []
        for read in reads:
            reach = torch.einsum("bte,ude->btud", read.other.abs(), read.weight.abs())
            parts.append((read.own.abs() * reach).sum(-1))
        return torch.stack(parts).sum(0)

    def window(self, reads: Sequence[WeightRead], inside: Tensor) -> Tensor:
        rows = []
        for row, where in enumerate(inside):  # one sample's weight gradient at a time: U x D x E numbers
            of_reads = [
                torch.einsum("tud,te->ude", read.own[row, where], read.other[row, where])
                .mul_(read.weight)
                .abs_()
                .sum((1, 2))
                for read in reads
            ]
            rows.append(torch.stack(of_reads).sum(0))
        return torch.stack(rows)


class GradNormWeight:
    """||dL/dw||_2 over the unit's weights. Loss per weight unit. In the paper's code for neurons only."""

    def tokens(self, reads: Sequence[WeightRead]) -> Tensor:
        squares = [read.own.square().sum(-1) * read.other.square().sum(-1, keepdim=True) for read in reads]
        return torch.stack(squares).sum(0).sqrt()

    def window(self, reads: Sequence[WeightRead], inside: Tensor) -> Tensor:
        squares = []
        for read in reads:
            other = read.other.masked_fill(~inside[..., None], 0)
            own = read.own.masked_fill(~inside[..., None, None], 0)
            mixed = torch.einsum("bts,bsud->btud", other @ other.mT, own)
            squares.append((mixed * own).sum((1, 3)))
        return torch.stack(squares).sum(0).clamp(min=0).sqrt()  # rounding leaves -1e-12 where it is 0


WEIGHT_FORMS: dict[str, WeightForm] = {
    "plainact_weight": PlainActWeight(),
    "grad_norm_weight": GradNormWeight(),
}
