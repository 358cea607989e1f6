"""Quantiles of more numbers than memory holds, from counts in bins."""

import torch
from torch import Tensor

SHIFT = 15  # of a float32's 23 bits of fraction 8 are told apart: bins are at most 0.4 % wide
BINS = 2 ** (32 - SHIFT)


class Quantiles:
    """Counts of float32 numbers by their leading bits, which lie in the order of the numbers themselves."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """values: of any shape, none of them NaN."""
        bits = values.detach().float().contiguous().view(torch.int32)
        ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        bins = (ordered >> SHIFT).long().flatten() + BINS // 2
        self.counts += torch.bincount(bins, minlength=BINS).cpu()

    def quantile(self, share: float) -> float:
        """The number below which this share of all lies; within its bin they are taken to lie evenly."""
        total = int(self.counts.sum())
        assert total, "nothing was counted"
        below = self.counts.cumsum(0)
        place = share * total
        found = int(torch.searchsorted(below, torch.tensor(place), right=True).clamp(max=BINS - 1))
        inside = int(self.counts[found])
        part = (place - int(below[found] - inside)) / inside if inside else 0.0
        low, high = edge(found), edge(found + 1)
        return low + part * (high - low)


def edge(index: int) -> float:
    """The least number of this bin."""
    ordered = (index - BINS // 2) << SHIFT
    bits = torch.tensor(ordered if ordered >= 0 else ordered ^ 0x7FFFFFFF, dtype=torch.int32)
    return float(bits.view(torch.float32))
