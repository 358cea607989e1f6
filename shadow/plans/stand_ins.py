"""Stand-ins: what speaks for units that a plan drops."""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from shadow.errors import UserError
from shadow.models.sites import Site, SiteKey

ALONE = ("head", "neuron", "o", "down")  # slots whose input nothing else reads


class StandIn(Protocol):
    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        """x: [B, T, U, D], the input of this site; keep: bool [U] or [B, 1 or T, U] -> what it becomes.

        x itself may be changed where nothing else reads it.
        """
        ...


@runtime_checkable
class Corrects(Protocol):
    """A stand-in that also changes what projections write which read a pruned site."""

    def corrected(self, site: Site, reader: int, y: Tensor) -> Tensor:
        """y: [B, T, N], written by this one of the site's readers -> what it becomes."""
        ...


@runtime_checkable
class Guesses(Protocol):
    """A stand-in that says what rows of the lm_head would write which are not read."""

    def guesses(self, site: Site, x: Tensor) -> Tensor:
        """x: [B, T, E], what the lm_head reads -> [B, T, V]."""
        ...


@runtime_checkable
class Reads(Protocol):
    """A scorer or stand-in that reads numbers of its own at every site that is pruned."""

    def weights_at(self, site: Site) -> float:
        """How many, in weights of the model's own size: a sign is a part of one."""
        ...


class Learnt(nn.Module):
    """A factor and an addend for every number that the readers of pruned sites write: y becomes f * y + a.

    `shadow.fit.stand_ins` learns them, so that the sparse model's next token is distributed as the dense
    one's. They begin as ones and zeros, which change nothing.
    """

    def __init__(self, sites: Iterable[Site], within: StandIn) -> None:
        """sites: the pruned ones; within: what speaks for dropped units among the others."""
        super().__init__()
        self.within = within
        self.factors, self.addends = nn.ParameterDict(), nn.ParameterDict()
        for site in sites:
            for reader, projection in enumerate(site.readers):
                assert isinstance(projection, nn.Linear), "experts are refused before"
                with align_module_device(projection):  # it may lie on disk until it runs
                    size, where = projection.out_features, projection.weight.device
                self.factors[name_of(site, reader)] = nn.Parameter(torch.ones(size, device=where))
                self.addends[name_of(site, reader)] = nn.Parameter(torch.zeros(size, device=where))

    @property
    def weights(self) -> int:
        """Numbers that a token reads of it."""
        return sum(values.numel() for values in self.parameters())

    def weights_at(self, site: Site) -> float:
        """Of what stands in within."""
        return self.within.weights_at(site) if isinstance(self.within, Reads) else 0

    def __call__(self, site: Site, x: Tensor, keep: Tensor) -> Tensor:
        return self.within(site, x, keep)

    def corrected(self, site: Site, reader: int, y: Tensor) -> Tensor:
        name = name_of(site, reader)
        return y * self.factors[name].to(y) + self.addends[name].to(y)


def kind_of_stand_in(stand_in: StandIn) -> str:
    """What it puts in dropped units' places: `zero`, `mean` for constants, or else the stand-in's name."""
    one = stand_in.within if isinstance(stand_in, Learnt) else stand_in
    return {Zero: "zero", Mean: "mean"}.get(type(one), type(one).__name__)


def name_of(site: Site, reader: int) -> str:
    return f"{site.layer}/{site.slot}/{reader}"


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
