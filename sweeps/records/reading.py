"""From run.json files to records."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

from .record import Bytes, Failure, Measured, Point, Record, RecordError, Records

WORDS = ("model", "data", "criterion", "scorer", "decided_at", "scope", "tokens", "scored")  # of a point
DENSE = Bytes(0.0, 0.0, {}, 0.0)  # it reads everything, whatever a predictor beside it would read


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
        except RecordError:
            raise
        except (AttributeError, TypeError, ValueError) as error:  # a list where names belong, and the like
            raise RecordError(f"{file} is no run record ({error}): run its job again") from error
    return Records(done, failed, silent)


def read_some(folders: Iterable[Path]) -> Records:
    folders = list(folders)
    records = read(folders)
    if not any(records):
        raise RecordError(f"no run.json of an evaluate job below {', '.join(map(str, folders))}")
    return records


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


def load(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: half a JSON, or not even text
        raise RecordError(f"cannot read {file}: {error}; delete it and run its job again") from error
    if not isinstance(content, dict):
        raise RecordError(f"{file} is not a run record: it holds a {type(content).__name__}")
    return content


def record(file: Path, content: dict) -> Record:
    named = content["point"]
    lacks = [name for name in ("tokens", "scored") if name not in named]
    lacks += ["bytes"] if "bytes" not in content else []
    if lacks:
        raise RecordError(
            f"{file} was written by another version and has no {' and no '.join(lacks)}: run its job again"
        )
    point = Point(
        **{name: str(named[name]) for name in WORDS},
        level=round(float(named["level"]), 9),  # range(0,0.9,0.1) gives 0.30000000000000004
        seed=named["seed"],
    )
    if point.level > 0 and not content["achieved"]:
        raise RecordError(f"{file} has level {point.level:g} but no achieved sparsity")
    sha = content["commit"]["sha"]
    return Record(
        file=file,
        point=point,
        achieved={str(kind): number(share) for kind, share in content["achieved"].items()},
        bytes=bytes_of(content["bytes"]) if point.level else DENSE,
        metrics={
            name: Measured(
                math.nan if measured["value"] is None else number(measured["value"]),
                None if measured["stderr"] is None else number(measured["stderr"]),
            )
            for name, measured in content["metrics"].items()
        },
        settings=content["settings"],
        overrides=tuple(content["overrides"]),
        commit=(sha[:10] if sha else "no commit") + (" (dirty)" if content["commit"]["dirty"] else ""),
        versions=content["versions"],
        seconds=number(content["seconds"]),
        reused_from=content["reused_from"],
        samples={
            name: [int(value) if isinstance(value, bool) else number(value) for value in values]  # or answers
            for name, values in load(file.with_name("samples.json")).items()
        },
        predictor=content["predictor"],
        content=content_by_metric(content),
    )


def bytes_of(told: dict) -> Bytes:
    by_kind = {str(kind): number(share) for kind, share in told["by_kind"].items()}
    skipped, of_layers, added = (number(told[name]) for name in ("skipped", "skipped_of_layers", "added"))
    return Bytes(skipped, of_layers, by_kind, added)


def number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def content_by_metric(content: dict) -> dict[str, str]:
    """`<task>/acc` is of that task's files, other metrics of the text; no name where neither has one."""
    measured = content["content"]
    of = {name: measured["tasks"].get(name.split("/")[0], measured["text"]) for name in content["metrics"]}
    return {name: known for name, known in of.items() if known is not None}
