"""The formulas: from activation and gradient at a site to an importance of each unit; higher matters more."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Criterion(Protocol):
    needs_grad: ClassVar[bool]

    def per_token(self, act: Tensor, grad: Tensor | None) -> Tensor:
        """act, grad: float32 [B, T, U, D] -> [B, T, U], at least 0."""
        ...

    def reduce(self, per_token: Tensor, tokens: Tensor) -> Tensor:
        """per_token: [B, T, ...], tokens: bool [B, T], the positions that count -> [B, ...]."""
        ...


def _sum(per_token: Tensor, tokens: Tensor) -> Tensor:
    where = tokens.view(*tokens.shape, *[1] * (per_token.dim() - 2))
    return per_token.masked_fill(~where, 0).sum(1)


class PlainAct:
    """|sum_d a·g|: first-order change of the loss when the unit is removed at this token; summed over tokens.

    Loss units. ShadowLLM (arXiv 2406.16635), section 3.2, in its activation form for heads and for neurons.
    """

    needs_grad: ClassVar[bool] = True

    def per_token(self, act: Tensor, grad: Tensor | None) -> Tensor:
        assert grad is not None
        return (act * grad).sum(-1).abs()

    def reduce(self, per_token: Tensor, tokens: Tensor) -> Tensor:
        return _sum(per_token, tokens)


class L2Norm:
    """||a||_2 over the unit's width, and over tokens: how much the unit says. Activation units.

    For neurons a is what the down projection reads, after the non-linearity; the reference takes it before.
    """

    needs_grad: ClassVar[bool] = False

    def per_token(self, act: Tensor, grad: Tensor | None) -> Tensor:
        return torch.linalg.vector_norm(act, dim=-1)

    def reduce(self, per_token: Tensor, tokens: Tensor) -> Tensor:
        return _sum(per_token.square(), tokens).sqrt()


class GradNorm:
    """||g||_2 over the unit's width, and over tokens: how much the loss listens. Loss per activation unit."""

    needs_grad: ClassVar[bool] = True

    def per_token(self, act: Tensor, grad: Tensor | None) -> Tensor:
        assert grad is not None
        return torch.linalg.vector_norm(grad, dim=-1)

    def reduce(self, per_token: Tensor, tokens: Tensor) -> Tensor:
        return _sum(per_token.square(), tokens).sqrt()


class Fisher:
    """sum_d (a·g)^2, summed over tokens: empirical Fisher information of a mask on each channel.

    Loss units squared. The reference averages over tokens instead, which ranks the units of a window alike.
    """

    needs_grad: ClassVar[bool] = True

    def per_token(self, act: Tensor, grad: Tensor | None) -> Tensor:
        assert grad is not None
        return (act * grad).square().sum(-1)

    def reduce(self, per_token: Tensor, tokens: Tensor) -> Tensor:
        return _sum(per_token, tokens)


CRITERIA: dict[str, Criterion] = {
    "plainact": PlainAct(),
    "l2_norm": L2Norm(),
    "grad_norm": GradNorm(),
    "fisher": Fisher(),
}
