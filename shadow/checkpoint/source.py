"""Tensors by name, as a method is written and read: a stranger's until names and shapes are checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.models.kinds import find_sites
from shadow.models.sites import Kind, Site, SiteKey

Told = dict[str, Any]  # JSON
Tensors = dict[str, Tensor]


def put_by_site(tensors: Tensors, prefix: str, values: Mapping[SiteKey, Tensor]) -> None:
    for (layer, slot), one in values.items():
        tensors[f"{prefix}.{layer}.{slot}"] = one


@dataclass(frozen=True)
class Source:
    """model: that the method is for; tensors: all that its file has. What does not fit raises a ValueError,
    which the reader of the file makes a sentence of."""

    model: PreTrainedModel
    tensors: Mapping[str, Tensor]

    def sites(self, kinds: Sequence[Kind]) -> dict[SiteKey, Site]:
        return {site.key: site for site in find_sites(self.model, list(kinds))}

    def under(self, prefix: str) -> Tensors:
        """Those whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(f"{prefix}."): values
            for name, values in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }

    def one(self, name: str, shape: Sequence[int | None], dtype: torch.dtype = torch.float32) -> Tensor:
        """shape: None where any size will do."""
        if name not in self.tensors:
            raise ValueError(f"it has no {name}")
        found = self.tensors[name]
        fits = len(found.shape) == len(shape) and all(
            asked in (None, size) for asked, size in zip(shape, found.shape)
        )
        if not fits or found.dtype != dtype:
            sizes = [("any" if size is None else size) for size in shape]
            raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, and not {dtype} {sizes}")
        return found.to(self.model.device)

    def by_site(
        self,
        prefix: str,
        shape: Callable[[Site], Sequence[int | None]],
        kinds: Sequence[Kind] = get_args(Kind),
    ) -> dict[SiteKey, Tensor]:
        """Of the sites that it has numbers for; these must be sites of the model."""
        sites, found = self.sites(kinds), {}
        for name in self.under(prefix):
            layer, _, slot = name.partition(".")
            key = (int(layer) if layer.isdecimal() else -1, slot)
            if key not in sites:
                raise ValueError(f"{prefix}.{name} is of no site of this model")
            found[key] = self.one(f"{prefix}.{name}", shape(sites[key]))
        return found
