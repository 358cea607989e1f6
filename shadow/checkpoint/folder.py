"""What lies in the folder beside the dense model's files: the method in config.json, and its tensors."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers.utils import cached_file

from shadow.artifacts.files import write_json, writing
from shadow.checkpoint.quantizer import METHOD
from shadow.checkpoint.source import Told
from shadow.errors import UserError

CONFIG, TENSORS = "config.json", "shadow.safetensors"
FORMAT = 1
INSTALL = "pip install shadow-llm"
# transformers only warns of a quant_method that it does not know, and would run the dense model. But it asks
# config.json for the name of the weights' file too, and repeats one that it cannot take: an error that says
# what is missing. `ShadowQuantizer` takes it away.
STOPS = (
    f"this checkpoint is sparse when it is loaded, by another package: `{INSTALL}`, and then `import shadow` "
    "before from_pretrained"
)


class Stored(NamedTuple):
    """told: what config.json says of the method; tensors: of its file; where: for messages."""

    told: Told
    tensors: Mapping[str, Tensor]
    where: str


def add(folder: Path, stored: Stored) -> None:
    """To a folder that `save_pretrained` has written; config.json last."""
    told = {"quant_method": METHOD, "format": FORMAT, "install": INSTALL} | stored.told
    told["sha256"] = None
    if stored.tensors:
        content = save(dict(stored.tensors))
        told["sha256"] = hashlib.sha256(content).hexdigest()
        with writing(folder / TENSORS) as unfinished:
            unfinished.write_bytes(content)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config |= {"quantization_config": told, "transformers_weights": STOPS}
    write_json(folder / CONFIG, config)


def read(config: Mapping[str, Any], name: str, folder: Path | None) -> Stored:
    """config: `quantization_config`; name: of the model, a folder or an id on the hub; folder: where its
    weights lie, if that is known."""
    told = dict(config)
    if told.get("format") != FORMAT:
        raise UserError(
            f"{name} was exported in the format {told.get('format')!r}, and this version reads {FORMAT}: "
            "install the version that wrote it, or export again"
        )
    if told.get("sha256") is None:
        return Stored(told, {}, name)
    file = None if folder is None else folder / TENSORS
    if file is None or not file.is_file():
        found = cached_file(name, TENSORS, _raise_exceptions_for_missing_entries=False)
        if found is None:
            raise UserError(f"{name} has no {TENSORS}, which its {CONFIG} tells of: {CURE}")
        file = Path(found)
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != told["sha256"]:
        raise UserError(f"{file} does not match the checksum in {CONFIG}: {CURE}")
    try:
        return Stored(told, load(content), name)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}): {CURE}") from error


CURE = "copy the folder again, or make it anew by `shadow export`"
