"""The model that is served, and the executor that runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from shadow.checkpoint.opened import opened_of
from shadow.checkpoint.quantizer import METHOD
from shadow.errors import UserError, require_choice
from shadow.executors.gathered import Gathered
from shadow.executors.options import Storage
from shadow.models.cache_name import cache_of, named_cache
from shadow.models.config_file import read_config
from shadow.models.numbers import require_dtype
from shadow.models.tokenizers import load_tokenizer

Choice = Literal["auto", "gathered", "masked"]


@dataclass(frozen=True)
class Served:
    """context: positions that the model has; None: no end. executor: what runs it, in one sentence."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    executor: str


def load(
    folder: str, name: str | None, executor: Choice, storage: Storage | None, dtype: str | None
) -> Served:
    """executor: `auto` takes the gathered one where it can run the method, with weights in this storage, or
    in that with which the checkpoint was exported."""
    require_choice("--executor", executor, get_args(Choice))
    if executor == "masked" and storage is not None:
        raise UserError(f"--storage={storage} is of --executor=gathered: leave one of them out")
    place = Path(folder).expanduser()
    config = config_of(place)
    stored = config.quantization_config.get("executor")
    storage = storage or (stored.get("storage") if isinstance(stored, dict) else None)
    asked = Gathered(storage)
    config.quantization_config["executor"] = {"name": "masked"}  # until it is known what can run it
    chosen = "auto" if dtype is None else require_dtype("--dtype", dtype)
    model = AutoModelForCausalLM.from_pretrained(place, config=config, dtype=chosen)
    opened = opened_of(model)
    reason = "--executor=masked was given" if executor == "masked" else opened.refuses(asked)
    if executor == "gathered" and reason is not None:
        raise UserError(reason)
    if reason is None:
        opened.open(asked)
        warm(model)
        said = f"executor=gathered reads the weights of kept units alone, in {storage or 'their own type'}"
    else:
        said = f"executor=masked computes everything, for {reason}"
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokenizer = load_tokenizer(str(place), local_files_only=True)
    return Served(name or place.resolve().name, model, tokenizer, positions, said)


@torch.no_grad()
def warm(model: Any) -> None:
    """Compile what a prompt and a new token run, which may take minutes once, before anybody waits for it."""
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    model(ids, use_cache=True, **named_cache(cache_of(model(ids, use_cache=True))))


def config_of(place: Path) -> Any:
    if not (place / "config.json").is_file():
        raise UserError(f"FOLDER must be one that `shadow export` has written, got {str(place)!r}")
    config = read_config(place, local_files_only=True)
    found = getattr(config, "quantization_config", None)
    if not isinstance(found, dict) or found.get("quant_method") != METHOD:
        raise UserError(
            f"FOLDER must be one that `shadow export` has written, and {str(place)!r} has no method: serve a "
            "dense model by `transformers serve`, or export one with sparsity.level=0"
        )
    return config
