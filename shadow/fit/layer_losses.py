"""The loss of many layers, one at a time, while what is said of each is in the cache."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class _LayerLosses(torch.autograd.Function):
    """The slopes are found on the way forward: said of all layers at once, with targets and slopes beside it,
    scores are tens of megabytes that a step would carry to memory and back a dozen times."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        latent: Tensor,
        rows: Tensor,
        static: Tensor,
        loss_of: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        units = static.shape[1]
        small_latent, small_rows = latent.bfloat16(), rows.bfloat16()  # of products alone: faster
        to_latent, to_rows, total = torch.zeros_like(latent), torch.empty_like(rows), latent.new_zeros(())
        for layer, bias in enumerate(static):
            here = slice(layer * units, (layer + 1) * units)
            said = (small_latent @ small_rows[here].T).float() + bias
            with torch.enable_grad():
                loss = loss_of(layer, said.requires_grad_()[:, None])
                slope = torch.autograd.grad(loss, said)[0].bfloat16()
            to_latent += slope @ small_rows[here]
            to_rows[here] = slope.T @ small_latent
            total += loss.detach()
        ctx.save_for_backward(to_latent, to_rows)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_latent, to_rows = ctx.saved_tensors
        return slope * to_latent, slope * to_rows, None, None


def layer_losses(
    latent: Tensor, rows: Tensor, static: Tensor, loss_of: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """The sum over layers of loss_of(layer, said), where said is static + rows latent, [N, 1, U].

    latent: float32 [N, R]; rows: [S * U, R]; static: [S, U], which learns nothing. Products are in bfloat16.
    """
    total: Tensor = _LayerLosses.apply(latent, rows, static, loss_of)
    return total
