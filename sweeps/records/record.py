"""What a run record says."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class RecordError(ValueError):
    """A folder or run.json cannot be used. The message names it."""


class Measured(NamedTuple):
    value: float
    stderr: float | None


class Bytes(NamedTuple):
    """Shares of the weight bytes of all projections and the lm_head that a decoded token does not read.

    skipped: the sum of by_kind less added; below 0 where a predictor costs more than it saves.
    skipped_of_layers: the same of the layers' projections alone. added: what predictors and factors read.
    """

    skipped: float
    skipped_of_layers: float
    by_kind: dict[str, float]
    added: float


@dataclass(frozen=True)
class Point:
    """What a job measured; `level` 0 is the dense model, whatever the scorer.

    tokens: which positions are sparse. scored: which positions are scored.
    """

    model: str
    data: str
    criterion: str
    scorer: str
    decided_at: str
    scope: str
    tokens: str
    scored: str
    level: float
    seed: int


@dataclass(frozen=True)
class Record:
    """A finished job. `achieved`: the share of each kind of unit that was skipped, over the whole model.

    samples: of a metric, a number for each example, in order. Their mean is the value, or its log.
    """

    file: Path
    point: Point
    achieved: dict[str, float]
    bytes: Bytes
    metrics: dict[str, Measured]
    settings: dict
    overrides: tuple[str, ...]
    commit: str
    versions: dict[str, str]
    seconds: float
    reused_from: str | None
    samples: dict[str, list[float]]
    predictor: dict | None  # how large the net is that decides, if one does
    content: dict[str, str]  # of each metric, what names the content of the files that it was measured on


class Failure(NamedTuple):
    file: Path
    overrides: tuple[str, ...]
    cause: str


class Records(NamedTuple):
    done: list[Record]
    failed: list[Failure]
    silent: list[Path]  # job folders without a run.json: still running, or killed
