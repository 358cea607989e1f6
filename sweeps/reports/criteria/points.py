"""From records to points by which criteria compare: one for each set of pruned kinds."""

from dataclasses import replace
from typing import NamedTuple

from ...curves.chart import POSITIONS, varying
from ...records.merging import one_per_point_and_word
from ...records.record import Record
from ...records.variants import with_word, without_word

# scores against the truth: window by window, against its size alone, or averaged before
QUALITY = ("quality", "quality_size", "quality_static")
# overrides that a point and its kinds tell already, or that change no score: they make no other scorer
IN_WORD = ("contender", "criterion", "predictor", "sparsity.kinds", "traces.criteria")


class Quality(NamedTuple):
    """What the name of a metric says: <family>/<criterion>/<kind>/<statistic>."""

    family: str
    criterion: str
    kind: str
    statistic: str


def kinds_of(record: Record) -> tuple[str, ...]:
    return tuple(sorted(record.settings["sparsity"]["kinds"]))


def kinds_word(record: Record) -> str:
    return "+".join(kinds_of(record))


def with_kinds(record: Record) -> Record:
    """No Point has its kinds; where points must differ by them, the scorer's name has them."""
    return with_word(record, kinds_word(record))


def one_per_point_and_kinds(records: list[Record]) -> list[Record]:
    points = one_per_point_and_word(kinds_word, records, IN_WORD)
    return [without_word(record, kinds_word(record)) for record in points]


def name_settings(records: list[Record]) -> list[Record]:
    """What else of a point varies goes into the scorer's name, as in the label of a curve."""
    names = varying(records, ("decided_at", "scope", *POSITIONS))
    named = []
    for record in records:
        words = [record.point.scorer, *(getattr(record.point, name) for name in names)]
        named.append(replace(record, point=replace(record.point, scorer=", ".join(words))))
    return named


def is_quality(metric: str) -> bool:
    return metric.split("/")[0] in QUALITY


def quality_of(metric: str) -> Quality | None:
    """None for what such a measure tells of something else than a criterion."""
    words = metric.split("/")
    return Quality(*words) if is_quality(metric) and len(words) == len(Quality._fields) else None


def without_quality(records: list[Record]) -> list[Record]:
    """Records that measured nothing else are no points: no task would be common to all points."""
    kept = []
    for record in records:
        metrics = {name: measured for name, measured in record.metrics.items() if not is_quality(name)}
        if metrics:
            kept.append(replace(record, metrics=metrics))
    return kept
