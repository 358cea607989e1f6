"""Learnt policies: thresholds as JSON in the folder of the predictor whose scores they cut."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from shadow.artifacts.files import write_json
from shadow.errors import UserError
from shadow.models.sites import SiteKey
from shadow.plans.policy import SparsityPolicy

PATTERN = "thresholds-*.json"
TOLD = [field.name for field in fields(SparsityPolicy) if field.name not in ("scope", "levels", "thresholds")]

CURE = (
    "`shadow evaluate predictor=NAME sparsity=threshold make_missing=true`, with this level and the "
    "settings of the predictor, leaves them in its folder"
)
Case = tuple[str, float]  # decided_at and level


def case_of(decided_at: str, level: float) -> Case:
    return decided_at, round(level, 9)  # range(0,0.9,0.1) gives 0.30000000000000004


def rows_of(thresholds: Mapping[SiteKey, float]) -> list[list[Any]]:
    """JSON has no infinity: null where none is to go."""
    return [[*unit, None if value == -math.inf else value] for unit, value in thresholds.items()]


def thresholds_of(rows: Iterable[tuple]) -> dict[SiteKey, float]:
    return {(layer, kind): -math.inf if value is None else value for layer, kind, value in rows}


def is_row(row: object) -> bool:
    """Layer, slot, and a number or null: JSON from strangers may hold anything, NaN too."""
    match row:
        case [int(layer), str(_), None | int() | float() as value]:
            plain = not isinstance(layer, bool) and not isinstance(value, bool)
            return plain and layer >= 0 and (value is None or math.isfinite(value))
    return False


def save(folder: Path, decided_at: str, policy: SparsityPolicy, learnt: Mapping[str, Any]) -> None:
    """In place of another that was learnt for the same level and place to decide.

    learnt: on what, for the reader of the file.
    """
    assert policy.thresholds is not None, "no thresholds were learnt"
    settings = {name: getattr(policy, name) for name in TOLD}
    settings |= {
        name: None if settings[name] is None else list(settings[name])
        for name in ("dense_layers", "kinds", "slots")
    }
    told = {"decided_at": decided_at, "learnt": dict(learnt), "thresholds": rows_of(policy.thresholds)}
    file = folder / f"thresholds-{decided_at}-{policy.level:g}.json"
    write_json(file, settings | told)


def load(folder: Path) -> dict[Case, SparsityPolicy]:
    found: dict[Case, SparsityPolicy] = {}
    for file in sorted(folder.glob(PATTERN)):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            thresholds = thresholds_of(told["thresholds"])
            settings = {name: told[name] for name in TOLD if name in told}
            unfit = [row for row in told["thresholds"] if not is_row(row)]
            if unfit:
                raise ValueError(f"a threshold is {unfit[0]!r}")
            policy = SparsityPolicy(**settings, scope="threshold", thresholds=thresholds)
            found[case_of(told["decided_at"], policy.level)] = policy
        except (KeyError, TypeError, ValueError) as error:  # a UserError is a ValueError too
            raise UserError(f"{file} holds no thresholds ({error}): remove it; {CURE}") from error
    return found
