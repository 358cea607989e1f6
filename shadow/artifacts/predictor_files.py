"""A predictor's files are a stranger's until they are checked: their sizes, shapes, dtypes and numbers."""

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from shadow.models.sites import KINDS, Kind, SiteKey, Source
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.paper_nets import MLPShape
from shadow.scorers.predicted import Pooling

MEANS = "means."  # how the names of means begin among the weights


def unfit_config(config: Mapping[str, Any]) -> str | None:
    """What is wrong with what config.json says, in words; None if nothing is."""
    sizes = {"layers": config["layers"], "width": config["width"], "ahead": config["ahead"]}
    for name, value in sizes.items():
        if not is_whole(value, 0 if name == "ahead" else 1):
            return f"its {name} is {value!r}"
    kinds, units, taps, net = config["kinds"], config["units"], config["taps"], config["net"]
    if not (isinstance(kinds, list) and kinds and set(kinds) <= set(KINDS)):
        return f"its kinds are {kinds!r}"
    if not (isinstance(units, dict) and all(is_whole(units.get(kind), 1) for kind in kinds)):
        return f"its units are {units!r}"
    if not (isinstance(taps, list) and taps and all(is_whole(tap, 0) for tap in taps)):
        return f"its taps are {taps!r}"
    if taps != sorted(set(taps)) or taps[-1] + config["ahead"] >= config["layers"]:
        return f"its taps are {taps!r} of {config['layers']} layers"
    fields = NetShape._fields if isinstance(net, dict) and "rank" in net else MLPShape._fields
    if not (isinstance(net, dict) and set(net) <= set(fields) and all(is_whole(n, 0) for n in net.values())):
        return f"its net is {net!r}"
    if config["pooling"] not in get_args(Pooling) or config["source"] not in get_args(Source):
        return f"it reads {config['pooling']!r} of {config['source']!r}"
    if not isinstance(config["deviates"], bool):
        return f"its deviates is {config['deviates']!r}"
    return None


def is_whole(value: object, least: int) -> bool:
    """Switches are whole too; more than any model has is not."""
    return isinstance(value, int) and least <= value < 2**31


def empty_net(config: Mapping[str, Any]) -> TapNet:
    """Of the shape that config.json tells of, without memory for weights that the file may not have."""
    shape = NetShape(**config["net"]) if "rank" in config["net"] else MLPShape(**config["net"])
    units: dict[Kind, int] = {kind: config["units"][kind] for kind in config["kinds"]}
    with torch.device("meta"):
        return TapNet(config["taps"], config["layers"], config["width"], units, shape, config["ahead"])


def fill_net(net: TapNet, tensors: Mapping[str, Tensor]) -> TapNet:
    """A RuntimeError, torch's own, where names or shapes are others."""
    odd = [f"{name} is {values.dtype}" for name, values in tensors.items() if values.dtype != torch.float32]
    if odd:
        raise TypeError(f"{odd[0]}, and not torch.float32")
    net.load_state_dict(dict(tensors), assign=True)
    return net


def means_in(tensors: dict[str, Tensor], units: Mapping[Kind, int], layers: int) -> dict[SiteKey, Tensor]:
    """Taken out of the tensors: [U, D] of each layer and kind."""
    found: dict[SiteKey, Tensor] = {}
    for name in [name for name in tensors if name.startswith(MEANS)]:
        layer, _, kind = name.removeprefix(MEANS).partition(".")
        values = tensors.pop(name)
        known = layer.isdecimal() and int(layer) < layers and kind in KINDS
        if not known or values.dim() != 2 or values.dtype != torch.float32:
            raise TypeError(f"{name} is {values.dtype} {list(values.shape)}")
        if len(values) != units.get(kind, len(values)):  # type: ignore[call-overload]
            raise TypeError(f"{name} is of {len(values)} units")
        found[int(layer), kind] = values
    return found
