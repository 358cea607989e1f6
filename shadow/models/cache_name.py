"""What transformers calls a key-value cache, in a call and in what it hands back."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

NAMES = ("cache", "past_key_values")  # from transformers 5.24 on, which warns of the old name; before
CACHE = next(name for name in NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})


def cache_of(given: Mapping[str, Any]) -> Cache | None:
    """given: the arguments of a call by name, or an output of the model."""
    return next((given[name] for name in NAMES if given.get(name) is not None), None)


def named_cache(cache: Any) -> dict[str, Any]:
    """As an argument, or a field of an output."""
    return {CACHE: cache}
