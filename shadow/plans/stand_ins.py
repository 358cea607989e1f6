"""Stand-ins: what speaks for units that a plan drops."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from shadow.errors import UserError
from shadow.models.sites import Site, SiteKey

ALONE = ("head", "neuron", "o", "down")  # slots whose input nothing else reads


class StandIn(Protocol):
    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        """x: [B, T, U, D], the input of this site; keep: bool [U] or [B, 1 or T, U] -> what it becomes.

        x itself may be changed where nothing else reads it.
        """
        ...


class Mean:
    """Constants: of every unit its calibration mean, or whatever else the values are.

    An executor that reads the weights of kept units alone can do it: W a with dropped parts of a replaced by
    m is W m, a constant vector for each layer, plus the sum over the kept units u of W_u (a_u - m_u).
    """

    def __init__(self, values: Mapping[SiteKey, Tensor]) -> None:
        """values: [U, D] of each site that is pruned."""
        self.values = dict(values)

    def require(self, site: Site) -> None:
        """Refuse to stand in where there are no values, or of another shape."""
        if site.experts > 1:
            raise UserError(
                "the neurons of experts have no mean to stand in for them, as calibration counts tokens that "
                "were sent elsewhere: use sparsity.stand_in=zero, or sparsity.kinds=[head]"
            )
        asked, found = (site.units, site.width), self.values.get(site.key)
        if found is None or tuple(found.shape) != asked:
            has = "nothing" if found is None else f"values of shape {tuple(found.shape)}"
            raise UserError(
                f"stand_in must hold [units, width] = {asked} for the {site.slot}s of layer {site.layer}, "
                f"and has {has} there: fit the predictor again, or leave stand_in out"
            )

    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        return replaced(x, keep, self.values[site.key].to(x), site.slot in ALONE)


class Zero:
    """Nothing."""

    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        return replaced(x, keep, x.new_zeros(x.shape[-2:]), site.slot in ALONE)


def replaced(x: Tensor, keep: Tensor, fill: Tensor, alone: bool) -> Tensor:
    """x: [B, T, U, D] with fill [U, D] where keep, bool [U] or [B, T or 1, U], is False.

    alone: x itself may be changed, and is unless gradients are asked for: fresh memory costs as much as the
    choice.
    """
    if torch.is_grad_enabled() or not alone:
        return torch.where(keep[..., None], x, fill)
    if not x.is_cpu:
        return torch.where(keep[..., None], x, fill, out=x)
    from shadow.plans.selection import fill_rows  # numba takes a second to import

    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]  # NumPy has no bfloat16
    rows = keep.reshape(-1, keep.shape[-1]).contiguous()  # of each position, or of each row's, or of them all
    fill_rows(x.view(bits).numpy(), rows.numpy(), fill.contiguous().view(bits).numpy())
    return x
