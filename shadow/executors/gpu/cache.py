"""Keys and values of a generation under way, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from shadow.executors.cpu.cache import ROOM, OwnCache
from shadow.executors.families import Sizes
from shadow.executors.gpu.choice import Choice
from shadow.models.sites import Kind


class DeviceCache(OwnCache):
    """On the device.

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
    ) -> None:
        """left: keys and values [B, G, T, D] that the prompt leaves in each layer; turning: the frequency of
        each pair of a head's numbers, and what cosines and sines are multiplied by."""
        super().__init__()
        self.sizes, self.turning, self.choices = sizes, turning, choices
        self.start, self.length = start.to(torch.int32), left[0][0].shape[2]
        self.end = torch.full((1,), self.length, dtype=torch.int32, device=start.device)
        self.room = 0
        self.grow(self.length + ROOM, left)

    def grow(self, room: int, old: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.room = room
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for keys, values in old:
            rows, groups, _, width = keys.shape
            for whole, part in ((self.keys, keys), (self.values, values)):
                whole.append(part.new_zeros(rows, groups, room, width))
                whole[-1][:, :, : self.length] = part[:, :, : self.length]
        self.turns: Tensor | None = None
        if self.turning is not None:
            frequencies, factor = self.turning
            angles = torch.arange(room, device=frequencies.device)[:, None] * frequencies
            self.turns = torch.stack([angles.cos(), angles.sin()]) * factor

    def make_room(self) -> None:
        """For one more position: twice as many, when there is none."""
        if self.length == self.room:
            self.grow(2 * self.room, list(zip(self.keys, self.values)))

    def advance(self) -> None:
        self.length += 1
        self.end += 1


def taken_from(cache: Cache | None) -> list[tuple[Tensor, Tensor]]:
    """The keys and values [B, G, T, D] of each layer of a stock cache."""
    assert isinstance(cache, DynamicCache)
    found = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        found.append((layer.keys, layer.values))
    return found
