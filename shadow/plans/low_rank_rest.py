"""A stand-in of low rank: dropped inputs go through a part of the weights that is read for all of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from shadow.models.sites import Site, SiteKey


class LowRankRest:
    """W x becomes W x_kept + W_r x_dropped, W_r the truncated singular value decomposition of W.

    As W_r = W V V', with V the first R right singular vectors, the readers' input becomes x_kept + V V'
    x_dropped, which is what this computes; an executor that saves reads would keep V and W V instead.
    """

    def __init__(self, bases: Mapping[SiteKey, Tensor]) -> None:
        """bases: [U, R] of each site, orthonormal columns: V."""
        self.bases = dict(bases)

    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        basis = self.bases[site.key].to(x)
        stays = keep[..., None]
        dropped = torch.where(stays, 0, x)[..., 0]
        return torch.where(stays, x, 0) + (dropped @ basis @ basis.T)[..., None]

    def weights_at(self, site: Site) -> float:
        """Of both factors, V' and W V."""
        return self.bases[site.key].shape[1] * (site.units + site.cost)


def bases_of(site: Site, rank: int) -> Tensor:
    """-> [U, R]: the first right singular vectors of all that reads this site, one under the other."""
    weight = site.columns()[..., 0].float()  # [E, U]
    vectors = torch.linalg.eigh(weight.T @ weight).eigenvectors  # cheaper than the SVD of a long matrix
    return vectors.flip(-1)[:, :rank].contiguous()
