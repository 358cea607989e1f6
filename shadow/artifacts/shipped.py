"""Predictors that come with this package."""

from importlib.util import find_spec
from pathlib import Path

MODULES = {"opt-mini": "shadow.opt_mini"}  # of the model that it was trained for, which lies there too
FOLDER = "predictor"


def shipped(name: str) -> Path | None:
    """The folder of the predictor of this name; None if there is none."""
    spec = find_spec(MODULES[name]) if name in MODULES else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / FOLDER
