"""Learnt stand-ins on disk: what they are for as JSON, and their numbers as safetensors, with a checksum."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from shadow.artifacts.files import write_json, writing
from shadow.errors import UserError
from shadow.plans.stand_ins import Learnt

CONFIG, NUMBERS = "config.json", "stand_in.safetensors"


def write(folder: Path, stand_in: Learnt, config: dict[str, Any]) -> None:
    """The config last: where it is, the folder is whole."""
    content = save({name: values.detach().contiguous() for name, values in stand_in.state_dict().items()})
    with writing(folder / NUMBERS) as unfinished:
        unfinished.write_bytes(content)
    write_json(folder / CONFIG, config | {"sha256": hashlib.sha256(content).hexdigest()})


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def read(folder: Path, into: Learnt) -> Learnt:
    """into: of the sites that it was learnt for."""
    content = (folder / NUMBERS).read_bytes()
    if hashlib.sha256(content).hexdigest() != read_config(folder)["sha256"]:
        raise UserError(
            f"{folder / NUMBERS} is damaged, for it does not match the checksum in {CONFIG}: remove the "
            "folder, and it is learnt again"
        )
    into.load_state_dict(load(content))
    return into
