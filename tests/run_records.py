"""Made-up run records, for the tests of what follows a sweep."""

import csv
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from shadow.sweeps.curves.chart import Chart
from shadow.sweeps.records.reading import read
from shadow.sweeps.reports import AGAINST, find_report
from shadow.sweeps.reports.markdown import bold
from shadow.sweeps.reports.report import Section, Written
from shadow.sweeps.reports.write import write


def write_job(
    folder: Path,
    level: float = 0.3,
    scorer: str = "unified",
    metrics: Mapping[str, tuple[float | None, float | None]] | None = None,
    error: str | None = None,
    overrides: tuple[str, ...] = (),
    samples: dict[str, list[float]] | None = None,
    settings: dict | None = None,
    predictor: dict | None = None,
    achieved: dict[str, float] | None = None,
    added: float = 0.0,
    measured: dict | None = None,
    **point: str | int,
) -> Path:
    """One run.json as evaluate.py writes it. With samples, metrics are their means.

    added: the share of weight bytes that a predictor reads. measured: what names the content of files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples.json").write_text(json.dumps(samples or {}))
    if samples is not None:
        means = {name: statistics.fmean(values) for name, values in samples.items()}
        metrics = {n: (math.exp(m) if n.endswith("perplexity") else m, 1.0) for n, m in means.items()}
    if metrics is None:
        metrics = {"perplexity": (100 * math.exp(level), 3.0), "choices/acc": (0.8 - level / 2, 0.05)}
    achieved = achieved or {"head": level * 0.9, "neuron": level * 0.8}
    decided_at = point.get("decided_at", "token")
    place = {
        "model": "tiny",
        "data": "builtin",
        "criterion": "l2_norm",
        "decided_at": decided_at,
        "scope": "layer",
        "tokens": "all",
        "scored": "behind the prompt" if decided_at == "prompt" else "all",
    }
    seed = point.get("seed", 1234)
    content = {
        "status": "failed" if error else "done",
        "error": error,
        "task": "evaluate",
        "settings": {"seed": seed, "measure": {"windows": 32}, "sparsity": {"level": level}}
        | (settings or {}),
        "overrides": [f"predictor={scorer}", f"sparsity.level={level}", *overrides],
        "seed": seed,
        "commit": {"sha": "0123456789abcdef", "dirty": True},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "seconds": 12.5,
        "point": place | {"scorer": scorer, "level": level, "seed": seed} | point,
        "reused_from": None,
        "predictor": predictor,
        "content": measured or {"text": None, "tasks": {}},
        "achieved": {} if error else achieved,
        "bytes": bytes_of(achieved, added),
        "metrics": {}
        if error
        else {name: {"value": value, "stderr": stderr} for name, (value, stderr) in metrics.items()},
    }
    (folder / "run.json").write_text(json.dumps(content))
    return folder / "run.json"


# of all weight bytes, those of a kind's units in a model whose lm_head is a tenth of them
OF_ALL = {"head": 0.3, "neuron": 0.6, "channel": 1.0}
OF_LAYERS = 0.9


def bytes_of(achieved: dict[str, float], added: float) -> dict:
    by_kind = {kind: OF_ALL[kind] * share for kind, share in achieved.items()}
    skipped = sum(by_kind.values()) - added
    return {"skipped": skipped, "skipped_of_layers": skipped / OF_LAYERS, "by_kind": by_kind, "added": added}


def csv_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_report(
    folder: Path, name: str = "curve", out: Path | None = None, against: str = AGAINST
) -> Written:
    return write(find_report(name), [folder], out or folder, against)


def only_section(folder: Path, name: str = "curve", against: str = AGAINST) -> Section:
    """The report of a folder of one model and data set."""
    (section,) = find_report(name).sections(read([folder]).done, against)
    return section


def only_chart(folder: Path) -> Chart:
    return only_section(folder).chart


def table_of(section: Section, title: str) -> list[list[str]]:
    (table,) = [one for one in section.tables if one.title == title]
    return bold(table.rows, table.best)
