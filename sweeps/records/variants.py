"""Names for scorers that differ in a setting which no point has."""

from collections.abc import Sequence
from dataclasses import replace

from .record import Point, Record

# overrides that do not make another curve: in the point already, or about where, what and how to log
SAME_CURVE = ("seed", "sparsity.level", "measure", "measure.tasks", "sweep", "launch", "tags", "debug")
SAME_CURVE_MORE = ("task_name", "make_missing", "reuse_points")
SAME_CURVE_GROUPS = ("hydra", "logger", "paths", "callbacks")
CONTENDER = "contender"  # of sweeps that choose several settings by one

Overrides = dict[str, str]


def name_variants(records: list[Record]) -> list[Record]:
    """Adds what differs in a curve to its scorer's name, lest a sweep of it pass for seeds."""
    overrides_of = [dict(filter(parts_curves, map(split_override, record.overrides))) for record in records]
    by_curve: dict[Point, list[tuple[Record, Overrides]]] = {}
    for record, overrides in zip(records, overrides_of):
        by_curve.setdefault(curve_of(record), []).append((record, overrides))
    varied: dict[str, set[str]] = {}  # by scorer, so that all of its curves are named alike
    for curve, group in by_curve.items():
        keys = {key for _, overrides in group for key in overrides}
        varied.setdefault(curve.scorer, set()).update(key for key in keys if differs(key, group))
    return [
        with_word(record, words(record, overrides, varied[record.point.scorer]))
        for record, overrides in zip(records, overrides_of)
    ]


def differs(key: str, group: Sequence[tuple[Record, Overrides]]) -> bool:
    """By what was set, whoever set it; by the overrides that name it where not every record has it.

    A setting of the measure makes another curve only where it changes a metric that both have.
    """
    if key.startswith("measure."):
        pairs = [(one, other) for n, one in enumerate(group) for other in group[:n] if rivals(one, other)]
        return any(differing(key, pair) for pair in pairs)
    return differing(key, group)


def rivals(one: tuple[Record, Overrides], other: tuple[Record, Overrides]) -> bool:
    """Whether they would be one point, of metrics that both have."""
    return one[0].point == other[0].point and not one[0].metrics.keys().isdisjoint(other[0].metrics)


def differing(key: str, group: Sequence[tuple[Record, Overrides]]) -> bool:
    found = [setting(record.settings, key) for record, _ in group]
    if any(value is None or isinstance(value, dict) for value in found):  # an option, or of one sweep alone
        return len({overrides[key] for _, overrides in group if key in overrides}) > 1
    return any(value != found[0] for value in found)


def setting(settings: dict, key: str) -> object:
    """None where there is none."""
    for part in key.replace("/", ".").split("."):
        if not isinstance(settings, dict) or part not in settings:
            return None
        settings = settings[part]
    return settings


def words(record: Record, overrides: Overrides, varied: set[str]) -> str:
    """The last part of a key, where it is no other's; of a contender, what the point does not say."""
    lasts = [key.split(".")[-1] for key in varied]
    found = []
    for key in sorted(varied & overrides.keys()):
        last = key.split(".")[-1]
        if key == CONTENDER:
            found += unsaid(record.point, overrides[key])
        else:
            found.append(f"{last if lasts.count(last) == 1 else key}={overrides[key]}")
    return " ".join(found)


def unsaid(point: Point, contender: str) -> list[str]:
    said = {point.scorer, point.scope, point.criterion, point.decided_at}
    return [word for word in contender.strip("[]").split(",") if word not in said]


def curve_of(record: Record) -> Point:
    return replace(record.point, level=0.0, seed=0)


def split_override(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def parts_curves(override: tuple[str, str]) -> bool:
    key = override[0]
    return (
        key not in (*SAME_CURVE, *SAME_CURVE_MORE)
        and key.split(".")[0].split("/")[0] not in SAME_CURVE_GROUPS
    )


def with_word(record: Record, word: str) -> Record:
    scorer = f"{record.point.scorer} {word}" if word else record.point.scorer
    return replace(record, point=replace(record.point, scorer=scorer))


def without_word(record: Record, word: str) -> Record:
    scorer = record.point.scorer.replace(f" {word}", "", 1) if word else record.point.scorer
    return replace(record, point=replace(record.point, scorer=scorer))
