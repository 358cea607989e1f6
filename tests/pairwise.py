"""Samples of crossed settings: every two values meet in some case, as most faults need no third."""

from collections.abc import Sequence

import pytest
from allpairspy import AllPairs


def pairwise(names: str, *values: Sequence[object]) -> pytest.MarkDecorator:
    """As nested `parametrize`, names parted by commas, with a list of values each; in an order that stays."""
    return pytest.mark.parametrize(names, [tuple(case) for case in AllPairs([list(of) for of in values])])
