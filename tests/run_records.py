"""Made-up run records, for the tests of what follows a sweep."""

import csv
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path


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
    measured: dict | None = None,
    **point: str | int,
) -> Path:
    """One run.json as evaluate.py writes it. With samples, metrics are their means."""
    if samples is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "samples.json").write_text(json.dumps(samples))
        means = {name: statistics.fmean(values) for name, values in samples.items()}
        metrics = {n: (math.exp(m) if n == "perplexity" else m, 1.0) for n, m in means.items()}
    if metrics is None:
        metrics = {"perplexity": (100 * math.exp(level), 3.0), "choices/acc": (0.8 - level / 2, 0.05)}
    place = {
        "model": "tiny",
        "data": "builtin",
        "criterion": "l2_norm",
        "decided_at": "token",
        "scope": "layer",
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
        **({"content": measured} if measured else {}),
        "achieved": {} if error else achieved or {"head": level * 0.9, "neuron": level * 0.8},
        "metrics": {}
        if error
        else {name: {"value": value, "stderr": stderr} for name, (value, stderr) in metrics.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(content))
    return folder / "run.json"


def csv_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))
