"""How dark a cell of a heat map is, and the colours of all that share a unit."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from .panels import Heat

# dark is bad; monotonic in lightness, for any kind of colour vision
LOW_IS_GOOD, HIGH_IS_GOOD = "viridis_r", "viridis"
ROOT = 0.5  # what is good differs by little, and gets the most of the colours


class Shades(NamedTuple):
    """low, high: the ends of the colours. low_is_bad: then shades are even, else the root's."""

    low: float
    high: float
    low_is_bad: bool

    @property
    def gamma(self) -> float:
        return 1.0 if self.low_is_bad else ROOT

    @property
    def colours(self) -> str:
        return HIGH_IS_GOOD if self.low_is_bad else LOW_IS_GOOD

    def shade(self, value: float) -> float:
        """From 0 to 1, along the colours."""
        spread = self.high - self.low
        return min(max((value - self.low) / spread, 0.0), 1.0) ** self.gamma if spread else 0.0

    def value(self, shade: float) -> float:
        return self.low + (self.high - self.low) * shade ** (1 / self.gamma)

    def is_dark(self, value: float) -> bool:
        return (self.shade(value) > 0.5) != self.low_is_bad


def shades_of(heats: Iterable[Heat]) -> dict[str, Shades]:
    """By unit."""
    heats = list(heats)
    found = {}
    for unit in dict.fromkeys(heat.unit for heat in heats):
        alike = [heat for heat in heats if heat.unit == unit]
        values = [cell.value for heat in alike for cell in heat.cells if math.isfinite(cell.value)]
        found[unit] = Shades(min(values, default=0.0), max(values, default=1.0), alike[0].low_is_bad)
    return found


def number(value: float) -> str:
    """What is written in a cell."""
    return f"{value + 0.0:.2f}" if math.isfinite(value) else "inf"
