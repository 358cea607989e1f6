"""lm-eval's `--use_cache`: which answers kept before are of the same model, method and libraries."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from shadow.models.digest import digest

# arguments of `hf` that say where and how fast; all others decide the answers
WHERE = ("device", "batch_size", "max_batch_size", "offload_folder", "max_memory_per_gpu", "max_cpu_memory")
PACKAGES = ("torch", "transformers", "lm-eval")


def answers_key(model: HFLM, hf: Mapping[str, Any], predictor: str | None, *method: object) -> str:
    """Names what decides the answers. predictor: its checksum; method: what its repr tells from another."""
    tokenizer = model.tokenizer
    fast = getattr(tokenizer, "backend_tokenizer", None)
    told = {
        "weights": digest(model.model),
        "dtype": str(model.model.dtype),
        "tokenizer": repr(tokenizer) if fast is None else fast.to_str(),
        "hf": {name: repr(value) for name, value in hf.items() if name not in WHERE},
        "predictor": predictor,
        "method": [repr(part) for part in method],
        "versions": [importlib.metadata.version(name) for name in PACKAGES],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def keep_apart(hook: CacheHook, key: str) -> None:
    """lm-eval names an answer by its request alone: those of a key get a table of their own in the file."""
    kept = hook.dbdict
    if kept is None:
        return
    table = f"shadow_{key}"
    type(kept)(kept.filename, tablename=table).close()  # makes it
    kept.tablename = table
