"""What new tokens have kept, added up in arrays: a sum of each site in Python takes too long."""

from collections.abc import Sequence
from threading import Lock

import numpy as np

from shadow.executors.planner import Planner
from shadow.models.sites import SiteKey


class NewTokens:
    """units: of every site, in the order in which compiled code counts them."""

    def __init__(self, units: Sequence[tuple[SiteKey, int]]) -> None:
        self.units, self.lock = units, Lock()
        self.rows, self.kept = 0, np.zeros(len(units), np.int64)
        self.told = 0, self.kept.copy()  # of them, what `tell` has told

    def add(self, kept: np.ndarray, rows: int) -> None:
        """kept: [L, N], of so many real rows' units at each layer's sites."""
        with self.lock:
            self.rows += rows
            self.kept += kept.ravel()

    def tell(self, planner: Planner) -> None:
        """Of the tokens since it was told last; prompts it counts itself."""
        counts = planner.counts
        with self.lock, planner.lock:
            rows, kept = self.rows - self.told[0], self.kept - self.told[1]
            self.told = self.rows, self.kept.copy()
            counts.tokens += rows
            for (key, units), stay in zip(self.units, kept.tolist()):
                counts.total[key] += rows * units
                counts.kept[key] += stay

    def share_kept(self, slot: str) -> float:
        """Of the units at the sites of this slot, over all new tokens."""
        of_slot = [(stay, units) for ((_, name), units), stay in zip(self.units, self.kept) if name == slot]
        return float(sum(stay / (self.rows * units) for stay, units in of_slot) / len(of_slot))
