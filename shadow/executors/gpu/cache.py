"""Keys and values of a generation under way, on the device."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

from shadow.executors.cache_layer import Known, layers_of
from shadow.executors.cpu.cache import ROOM
from shadow.executors.families import Sizes
from shadow.executors.gpu.choice import Choice
from shadow.models.sites import Kind


class DeviceKeyValues:
    """What the texts of a batch leave for their next tokens, of all key-value heads.

    keys, values: [B, G, room, D] of each layer, keys turned; start: int32 [B], each row's first position;
    end: int32 [1], the next one, which kernels read; `length` is the same, for the host.
    """

    def __init__(
        self,
        sizes: Sizes,
        left: Sequence[tuple[Tensor, Tensor]],
        start: Tensor,
        turning: tuple[Tensor, float] | None,
        choices: dict[Kind, Choice],
        owner: object,
        room: int,
    ) -> None:
        """left: keys and values [B, G, T, D] of each layer so far; turning: the frequency of each pair of a
        head's numbers, and what cosines and sines are multiplied by; owner: the run that decided."""
        self.sizes, self.choices, self.owner = sizes, choices, owner
        self.rows, _, self.length, _ = left[0][0].shape
        self.start, self.room = start.to(torch.int32), max(room, self.length + ROOM)
        self.end = torch.full((1,), self.length, dtype=torch.int32, device=start.device)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for layer in left:
            for whole, part in zip((self.keys, self.values), layer):
                whole.append(part.new_zeros(self.rows, part.shape[1], self.room, part.shape[3]))
                whole[-1][:, :, : self.length] = part
        self.turns: Tensor | None = None
        if turning is not None:
            frequencies, factor = turning
            angles = torch.arange(self.room, device=frequencies.device)[:, None] * frequencies
            self.turns = torch.stack([angles.cos(), angles.sin()]) * factor

    @property
    def known(self) -> Known:
        return Known(self.start.long(), self.start.long())

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.keys[layer], self.values[layer]

    def missing(self, layer: int, length: int) -> str | None:
        return None

    def advance(self) -> None:
        self.length += 1
        self.end += 1

    def __deepcopy__(self, memo: dict) -> "DeviceKeyValues":
        twin = copy.copy(self)
        twin.end = self.end.clone()
        twin.keys, twin.values = ([part.clone() for part in parts] for parts in (self.keys, self.values))
        twin.choices = {kind: choice.of_rows(None) for kind, choice in self.choices.items()}
        return twin


def taken_from(cache: Cache | None) -> list[tuple[Tensor, Tensor]]:
    """The keys and values [B, G, T, D] of each layer."""
    assert cache is not None
    found = []
    for layer in layers_of(cache):
        keys, values = layer.keys, layer.values
        assert keys is not None
        assert values is not None
        found.append((keys, values))
    return found
