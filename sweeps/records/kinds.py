"""Kinds of unit, as tables name them."""

from collections.abc import Iterable, Mapping

KINDS = ("head", "neuron", "channel", "row", "block")  # that have a column in every CSV


def plural(kind: str) -> str:
    return f"{kind}s"


def named_kinds(kinds: Iterable[str]) -> str:
    return " and ".join(map(plural, kinds))


def kinds_in(shares: Iterable[Mapping[str, float]]) -> list[str]:
    """The kinds that have a share anywhere, in the order of KINDS, then others by name."""
    found = {kind for one in shares for kind in one}
    return [*filter(found.__contains__, KINDS), *sorted(found - set(KINDS))]
