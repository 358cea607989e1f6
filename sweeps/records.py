"""From run.json files to records."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class RecordError(ValueError):
    """A folder or run.json cannot be used. The message names it."""


class Measured(NamedTuple):
    value: float
    stderr: float | None


@dataclass(frozen=True)
class Point:
    """What a job measured; `level` 0 is the dense model, whatever the scorer."""

    model: str
    data: str
    criterion: str
    scorer: str
    decided_at: str
    scope: str
    level: float
    seed: int


@dataclass(frozen=True)
class Record:
    """A finished job. `achieved`: the share of each kind of unit that was skipped, over the whole model.

    samples: of a metric, a figure for each example, in order. Their mean is the value, or its log.
    """

    file: Path
    point: Point
    achieved: dict[str, float]
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


def read(folders: Iterable[Path]) -> Records:
    """The evaluate jobs below the folders, in the order of their paths."""
    done: list[Record] = []
    failed: list[Failure] = []
    files, silent = find(folders)
    for file in files:
        content = load(file)
        try:
            if content["task"] != "evaluate":
                continue
            if content["status"] == "failed":
                cause = content["error"] or "no cause was recorded"
                failed.append(Failure(file, tuple(content["overrides"]), cause))
            elif content["status"] == "done":
                done.append(record(file, content))
            else:
                raise RecordError(f"the status in {file} must be done or failed, got {content['status']!r}")
        except KeyError as error:
            raise RecordError(f"{file} is not a whole run record: it has no {error}") from error
    return Records(done, failed, silent)


def find(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The run.json files below the folders, and the job folders that have none."""
    files: set[Path] = set()
    jobs: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise RecordError(
                f"{folder} is not a folder; give the folder of a sweep, such as logs/evaluate/multiruns/..."
            )
        files |= {file.resolve() for file in folder.rglob("run.json")}
        jobs |= {mark.resolve().parent.parent for mark in folder.rglob(".hydra/overrides.yaml")}
    silent = jobs - {file.parent for file in files}
    return sorted(files, key=in_order), sorted(silent, key=in_order)


def in_order(path: Path) -> list[tuple[int, str]]:
    """Sorts job 10 after job 2."""
    return [(int(part) if part.isdecimal() else -1, part) for part in path.parts]


def load_samples(record: Path) -> dict[str, list[float]]:
    """What lies beside a run.json; nothing if it is of before there were samples."""
    file = record.with_name("samples.json")
    return load(file) if file.is_file() else {}


def load(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: half a JSON, or not even text
        raise RecordError(f"cannot read {file}: {error}; delete it and run its job again") from error
    if not isinstance(content, dict):
        raise RecordError(f"{file} is not a run record: it holds a {type(content).__name__}")
    return content


def contents(told: dict) -> dict[str, str]:
    """By metric, where the record tells: `<task>/acc` is of that task's files, others of the text."""
    measured = told.get("content")
    if not measured:
        return {}
    names = {name: measured["tasks"].get(name.split("/")[0], measured["text"]) for name in told["metrics"]}
    return {name: known for name, known in names.items() if known is not None}


def record(file: Path, content: dict) -> Record:
    named = content["point"]
    point = Point(
        **{
            name: str(named[name]) for name in ("model", "data", "criterion", "scorer", "decided_at", "scope")
        },
        level=round(float(named["level"]), 9),  # range(0,0.9,0.1) gives 0.30000000000000004
        seed=named["seed"],
    )
    if point.level > 0 and not content["achieved"]:
        raise RecordError(f"{file} has level {point.level:g} but no achieved sparsity")
    sha = content["commit"]["sha"]
    return Record(
        file=file,
        point=point,
        achieved=content["achieved"],
        metrics={
            name: Measured(math.nan if measured["value"] is None else measured["value"], measured["stderr"])
            for name, measured in content["metrics"].items()
        },
        settings=content["settings"],
        overrides=tuple(content["overrides"]),
        commit=(sha[:10] if sha else "no commit") + (" (dirty)" if content["commit"]["dirty"] else ""),
        versions=content["versions"],
        seconds=content["seconds"],
        reused_from=content["reused_from"],
        samples=load_samples(file),
        predictor=content.get("predictor"),  # not in records of before, as what follows
        content=contents(content),
    )
