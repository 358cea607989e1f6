"""ShadowLLM: contextual sparsity of large language models."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shadow.hub import load_predictor
    from shadow.masked import sparse
    from shadow.sparsity import SparsityPolicy

__all__ = ["SparsityPolicy", "load_predictor", "sparse"]

HOMES = {"SparsityPolicy": "shadow.sparsity", "load_predictor": "shadow.hub", "sparse": "shadow.masked"}


def __getattr__(name: str) -> object:
    """Imported when asked for: Hydra imports this package at every start, and torch takes seconds."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
