"""Criteria that compare many windows with each other: one score a unit for all of them, none for a prompt.

Each takes what a site showed at the sampled tokens of N windows, side by side: [N, K, U, D] -> [U].
"""

from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from shadow.criteria.activation import Need

TINY = 1e-5  # of the published formulas: keeps logarithms and inverses finite


class Shown(NamedTuple):
    """What a statistic takes tokens from: activation or gradient at a site, [B, T, U, D]."""

    values: Tensor


class Statistic(Protocol):
    needs: ClassVar[Need]

    def of(self, seen: Tensor, classes: Tensor) -> Tensor:
        """seen: [N, K, U, D]; classes: [N], the first token of each window's answer -> float32 [U]."""
        ...


class Nwot:
    """log det(K + I), K_ij the number of entries at which windows i and j both fire or both do not.

    High where the unit tells windows apart. NASWOT (Mellor et al. 2021, arXiv 2006.04647) for one unit; I is
    added so that a unit that never fires has a finite score, where the paper's code has -inf. There it is
    computed in batches of one, which leaves the number of silent entries.
    """

    needs: ClassVar[Need] = "activation"

    def of(self, seen: Tensor, classes: Tensor) -> Tensor:
        fires = (_by_unit(seen) > 0).float()
        rests = 1 - fires
        agree = fires @ fires.mT + rests @ rests.mT
        root = torch.linalg.cholesky(agree.double() + torch.eye(len(seen), device=seen.device))
        return 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1).float()


class Jacov:
    """-sum_i (log(v_i + k) + 1/(v_i + k)), v the eigenvalues of the correlations of the windows' gradients.

    High where gradients differ from window to window. Jacobian covariance of Mellor et al. 2020 (arXiv
    2006.04647v1) with the gradients of one unit for rows; k = 1e-5. A window at which a gradient does not
    vary correlates with none, not even itself, and adds a zero to v. Zeros that every unit has, where windows
    outnumber the gradients in each, are left out.
    """

    needs: ClassVar[Need] = "gradient"

    def of(self, seen: Tensor, classes: Tensor) -> Tensor:
        rows = _standardised(_by_unit(seen))
        wide = rows.shape[2] > rows.shape[1]
        gram = rows @ rows.mT if wide else rows.mT @ rows  # the same eigenvalues but for those zeros
        values = torch.linalg.eigvalsh(gram).clamp(min=0)
        return -(torch.log(values + TINY) + 1 / (values + TINY)).sum(-1).float()


class Epenas:
    """sum_cc' |s_c - s_c'|, s_c = sum_ij log(|r_ij| + k), r the correlations of gradients within class c.

    EPE-NAS (Lopes et al. 2021, arXiv 2102.08099) with the gradients of one unit; a window's class is the
    first token of its answer, classes of one window are left out, and with fewer than two classes all scores
    are 0.
    """

    needs: ClassVar[Need] = "gradient"

    def of(self, seen: Tensor, classes: Tensor) -> Tensor:
        rows = _standardised(_by_unit(seen))
        names, counts = classes.unique(return_counts=True)
        sums = []
        for name in names[counts > 1]:
            members = rows[:, classes == name]
            sums.append((members @ members.mT).abs().add(TINY).log().sum((1, 2)))
        if len(sums) < 2:
            return torch.zeros(seen.shape[2])
        per_class = torch.stack(sums, -1)  # [U, C]
        return (per_class[:, :, None] - per_class[:, None]).abs().sum((1, 2)).float()


def _by_unit(seen: Tensor) -> Tensor:
    """[N, K, U, D] -> [U, N, K * D]."""
    return seen.permute(2, 0, 1, 3).flatten(2)


def _standardised(rows: Tensor) -> Tensor:
    """[..., R] -> float64, each row centred and of length 1; a row that does not vary becomes 0."""
    rows = rows.double()
    centred = rows - rows.mean(-1, keepdim=True)
    length, whole = (torch.linalg.vector_norm(values, dim=-1, keepdim=True) for values in (centred, rows))
    varies = length > 1e-9 * whole  # what is float32 varies by more, and what is rounding by less
    return torch.where(varies, centred / length.where(varies, 1), 0)


STATISTICS: dict[str, Statistic] = {"nwot": Nwot(), "jacov": Jacov(), "epenas": Epenas()}
