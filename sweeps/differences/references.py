"""The point that another is compared with."""

from collections.abc import Sequence

from ..records.record import Record

DENSE = "dense"  # in place of a scorer's name: the dense model
ALIKE = ("criterion", "decided_at", "scope", "tokens", "scored")  # of a point


def dense_of(record: Record, records: Sequence[Record]) -> Record | None:
    """The dense point that is most like this one: above all, it is scored at the same positions."""

    def likeness(other: Record) -> tuple[bool, ...]:
        return tuple(
            getattr(other.point, name) == getattr(record.point, name)
            for name in ("scored", "seed", "decided_at")
        )

    return max((other for other in records if other.point.level == 0), key=likeness, default=None)


def reference_of(record: Record, records: Sequence[Record], against: str) -> Record | None:
    """Of the points of the scorer `against` at this nominal level and seed, the one that is most alike."""
    if against == DENSE:
        return dense_of(record, records)

    def likeness(other: Record) -> int:
        return sum(getattr(other.point, name) == getattr(record.point, name) for name in ALIKE)

    named = [
        other
        for other in records
        if against in (other.point.scorer, other.point.scorer.split(" ")[0])
        and other is not record
        and other.point.level == record.point.level
        and other.point.seed == record.point.seed
    ]
    return max(named, key=likeness, default=None)
