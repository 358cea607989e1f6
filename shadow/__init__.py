"""ShadowLLM: contextual sparsity of large language models."""

from importlib import import_module
from typing import TYPE_CHECKING

from shadow.checkpoint.registering import register_with_transformers

if TYPE_CHECKING:
    from shadow.artifacts.hub import load_predictor
    from shadow.checkpoint.export import export
    from shadow.front import sparse
    from shadow.plans.policy import SparsityPolicy

__all__ = ["SparsityPolicy", "export", "load_predictor", "sparse"]

HOMES = {
    "SparsityPolicy": "shadow.plans.policy",
    "export": "shadow.checkpoint.export",
    "load_predictor": "shadow.artifacts.hub",
    "sparse": "shadow.front",
}


def __getattr__(name: str) -> object:
    """Imported when asked for: Hydra imports this package at every start, and torch takes seconds."""
    if name == "__version__":
        return import_module("importlib.metadata").version("shadow-llm")
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


register_with_transformers()
