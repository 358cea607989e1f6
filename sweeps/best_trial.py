"""Which predictor the best trial of a search has made."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

RESULTS = "optimization_results.yaml"  # of Hydra's sweeper for Optuna
ASKED = "val/mass@50"  # what train.py returns


def in_words(folder: Path, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Two lines. records: of the sweep's jobs that ended well, below the folder."""
    records = list(records)
    results = OmegaConf.to_container(OmegaConf.load(folder / RESULTS))
    if not isinstance(results, dict) or "best_value" not in results:  # of several directions
        return []
    value = results["best_value"]
    params = " ".join(f"{key}={found}" for key, found in results["best_params"].items())
    lines = [f"best of {len(records)} trials: {params}: {ASKED} {value:.3f}"]
    best = [one for one in records if one["metrics"].get(ASKED, {}).get("value") == value]
    if not best:
        return [*lines, "an earlier search with the same hydra.sweeper.storage made it"]
    return [*lines, f"its predictor: {best[0]['predictor']['folder']}"]
