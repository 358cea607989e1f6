"""Packed weights on disk: 4 bits take seconds to find, and a fraction of one to read again."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from shadow.artifacts.files import writing
from shadow.errors import UserError
from shadow.executors.cpu.channels import ChannelWeights
from shadow.executors.cpu.grouped import InRows, OutRows
from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.cpu.mapped import file_ranges, let_go
from shadow.executors.cpu.weights import Norms, Weights
from shadow.executors.families import Sizes, describe
from shadow.executors.options import Storage
from shadow.plans.compiled import sources

log = logging.getLogger(__name__)
LARGE = 2**25  # weights; fewer are packed at once
PARTS = {part.__name__: part for part in (ChannelWeights, Weights, InRows, OutRows, Norms, Sizes)}
Packed = Weights | ChannelWeights


Packer = Callable[[PreTrainedModel, Storage], Packed]


def packed(model: PreTrainedModel, storage: Storage, pack: Packer) -> Packed:
    """`pack(model, storage)`, or what an earlier process kept of it. The file's name is of every weight's
    bytes and of the code that packs, so that no other weights are taken for these."""
    if model.num_parameters() < LARGE or model.device.type != "cpu":
        return pack(model, storage)
    name = f"{storage}-{pack.__name__}-{fingerprint(model)}.safetensors"
    file: Path | None = None
    try:
        file = cached_assets_path("shadow-llm", "packed") / name
        if file.is_file():
            return read(file)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("packed weights could not be read, and are packed anew: %s", error)
    found = pack(model, storage)
    if file is not None:
        try:
            write(file, found)
        except (OSError, UserError) as error:
            log.warning("packed weights are not kept for the next start: %s", error)
    return found


def fingerprint(model: PreTrainedModel) -> str:
    found, files = xxhash.xxh3_128(sources().encode()), file_ranges()
    found.update(repr(describe(model)[0]).encode())
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
        let_go(values, files)
    return found.hexdigest()


def write(file: Path, weights: Packed) -> None:
    arrays: dict[str, np.ndarray] = {}
    parts = json.dumps(apart(weights, "weights", arrays, {}))
    with writing(file) as unfinished:
        save_file(arrays, unfinished, {"parts": parts})


def apart(value: Any, name: str, arrays: dict[str, np.ndarray], seen: dict[int, str]) -> Any:
    """What of it is no array, as JSON; a part that is there twice is named the second time."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if not isinstance(value, tuple):
        return value
    if id(value) in seen:
        return {"again": seen[id(value)]}
    seen[id(value)] = name
    fields = value._asdict()  # type: ignore[attr-defined]
    inside = {field: apart(part, f"{name}.{field}", arrays, seen) for field, part in fields.items()}
    return {"name": name, "part": type(value).__name__, "fields": inside}


def read(file: Path) -> Packed:
    with safe_open(file, framework="numpy") as opened:
        parts = json.loads(opened.metadata()["parts"])

        def array(name: str) -> np.ndarray:
            found = opened.get_tensor(name)
            kept = lined_up(found.shape, found.dtype)
            kept[...] = found
            return kept

        return together(parts, array, {})


def together(told: Any, array: Callable[[str], np.ndarray], made: dict[str, Any]) -> Any:
    """As `apart` told it."""
    if not isinstance(told, dict):
        return told
    if "array" in told:
        return array(told["array"])
    if "again" in told:
        return made[told["again"]]
    fields = {field: together(part, array, made) for field, part in told["fields"].items()}
    made[told["name"]] = PARTS[told["part"]](**fields)
    return made[told["name"]]
