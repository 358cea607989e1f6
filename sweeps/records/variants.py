"""Names for scorers that differ in a setting which no point has."""

from dataclasses import replace

from .record import Point, Record

# overrides that do not make another curve: in the point already, or about where, what and how to log
SAME_CURVE = ("seed", "sparsity.level", "measure", "sweep", "launch", "tags", "debug", "task_name")
SAME_CURVE_GROUPS = ("hydra", "logger", "paths", "callbacks")


def name_variants(records: list[Record]) -> list[Record]:
    """Adds the overrides that differ in a curve to its scorer's name, lest a sweep of them pass for seeds."""
    overrides_of = [dict(filter(parts_curves, map(split_override, record.overrides))) for record in records]
    by_curve: dict[Point, list[dict[str, str]]] = {}
    for record, overrides in zip(records, overrides_of):
        by_curve.setdefault(curve_of(record), []).append(overrides)
    varied = {
        curve: {
            key
            for key in {key for overrides in group for key in overrides}
            if len({overrides.get(key) for overrides in group}) > 1
        }
        for curve, group in by_curve.items()
    }
    words = [
        " ".join(f"{key}={overrides[key]}" for key in sorted(varied[curve_of(record)] & overrides.keys()))
        for record, overrides in zip(records, overrides_of)
    ]
    return [with_word(record, word) for record, word in zip(records, words)]


def curve_of(record: Record) -> Point:
    return replace(record.point, level=0.0, seed=0)


def split_override(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def parts_curves(override: tuple[str, str]) -> bool:
    key = override[0]
    return key not in SAME_CURVE and key.split(".")[0].split("/")[0] not in SAME_CURVE_GROUPS


def with_word(record: Record, word: str) -> Record:
    scorer = f"{record.point.scorer} {word}" if word else record.point.scorer
    return replace(record, point=replace(record.point, scorer=scorer))


def without_word(record: Record, word: str) -> Record:
    scorer = record.point.scorer.replace(f" {word}", "", 1) if word else record.point.scorer
    return replace(record, point=replace(record.point, scorer=scorer))
