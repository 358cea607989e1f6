"""Learnt stand-ins and routers on disk: what they are for as JSON, and their numbers as safetensors, with a
checksum."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import nn

from shadow.artifacts.files import write_json, writing
from shadow.errors import UserError

CONFIG, STAND_IN, ROUTER = "config.json", "stand_in.safetensors", "router.safetensors"


def write(folder: Path, file: str, net: nn.Module, config: dict[str, Any]) -> None:
    """The config last: where it is, the folder is whole."""
    content = save({name: values.detach().contiguous() for name, values in net.state_dict().items()})
    with writing(folder / file) as unfinished:
        unfinished.write_bytes(content)
    write_json(folder / CONFIG, config | {"sha256": hashlib.sha256(content).hexdigest()})


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def read(folder: Path, file: str, into: nn.Module) -> None:
    """into: of the sites that it was learnt for."""
    content = (folder / file).read_bytes()
    if hashlib.sha256(content).hexdigest() != read_config(folder)["sha256"]:
        raise UserError(
            f"{folder / file} is damaged, for it does not match the checksum in {CONFIG}: remove the "
            "folder, and it is learnt again"
        )
    into.load_state_dict(load(content))
