"""One record for each point."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from .metrics import with_means
from .record import Point, Record
from .variants import name_variants, split_override, with_word

log = logging.getLogger(__name__)


def one_per_point(records: Iterable[Record]) -> list[Record]:
    """Settings that vary and are not in the point go into the scorer's name."""
    named = name_variants(list(records))
    once: dict[Point, Record] = {}
    overruled = 0
    for record in named:
        earlier = once.get(record.point)
        overruled += earlier is not None and differ(earlier, record)
        # a second sweep may measure what the first did not; of a value measured twice the last one counts
        once[record.point] = joined(earlier, record) if earlier else record
    if overruled:
        log.info("%d records repeat a point with other figures; the last one counts", overruled)
    peers = {place_of(group[0]): group for group in by_place(once.values())}
    return [replace(record, metrics=with_means(record, peers[place_of(record)])) for record in once.values()]


def differ(earlier: Record, later: Record) -> bool:
    """Whether they have a metric of different values, as those of a point that was looked up have not."""
    return any(
        later.metrics[name].value != found.value
        for name, found in earlier.metrics.items()
        if name in later.metrics
    )


def one_per_point_and_word(
    word_of: Callable[[Record], str], records: Iterable[Record], in_word: Sequence[str]
) -> list[Record]:
    """One record per point and `word_of` it, which no Point has and the scorer's name has from here on.

    in_word: overrides that the point and its word tell already, or that change nothing.
    """
    records = list(records)
    overrides = {record.file: record.overrides for record in records}
    without = [
        replace(
            record,
            overrides=tuple(one for one in record.overrides if split_override(one)[0] not in in_word),
        )
        for record in (with_word(record, word_of(record)) for record in records)
    ]
    return [replace(record, overrides=overrides[record.file]) for record in one_per_point(without)]


def joined(earlier: Record, later: Record) -> Record:
    samples = {name: values for name, values in earlier.samples.items() if name not in later.metrics}
    content = {name: known for name, known in earlier.content.items() if name not in later.metrics}
    return replace(
        later,
        metrics=earlier.metrics | later.metrics,
        samples=samples | later.samples,
        content=content | later.content,
    )


def place_of(record: Record) -> tuple[str, str]:
    return record.point.model, record.point.data


def by_place(records: Iterable[Record]) -> list[list[Record]]:
    """A group for each model and data set, in the order of the records."""
    places: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        places.setdefault(place_of(record), []).append(record)
    return list(places.values())
