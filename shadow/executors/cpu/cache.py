"""Keys and values of a generation under way, of the heads that stay alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from shadow.errors import UserError
from shadow.executors.cpu.compact import Plan
from shadow.executors.cpu.decode import Memory
from shadow.executors.families import Sizes

ROOM = 64  # positions that memory is at first larger than the prompt


class Remembered(NamedTuple):
    """What a prompt leaves in one layer. groups: int64 [G'], the key-value heads that are stored; keys and
    values: [B, G', T, D], keys turned; states: [B, T, E], what the heads read."""

    groups: Tensor
    keys: Tensor
    values: Tensor
    states: Tensor


NOT_YET = "search beams, or take tokens back: use executor=masked, or generate greedily or by sampling"


class OwnCache(DynamicCache):
    """What `generate` hands back at each token; of stock caches it has the length, and no more."""

    length: int  # positions so far
    start: Tensor  # [B], each row's first position

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise UserError(f"executor=gathered does not {NOT_YET}")

    def crop(self, max_length: int) -> None:
        raise UserError(f"executor=gathered does not {NOT_YET}")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise UserError(f"executor=gathered does not {NOT_YET}")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise UserError(f"executor=gathered does not {NOT_YET}")


class GatheredCache(OwnCache):
    """Of key-value heads that no token will need nothing is held."""

    def __init__(
        self,
        sizes: Sizes,
        layers: Sequence[Remembered],
        start: Tensor,
        turns: tuple[Tensor, float] | None,
        late: bool,
        plan: Plan,
    ) -> None:
        """start: [B], each row's first real position; late: also hold the states that late keys come from;
        plan: what the prompt decided, or where tokens note what they choose."""
        super().__init__()
        rows, _, length, _ = layers[0].keys.shape
        self.sizes, self.rows, self.length, self.start, self.late = sizes, rows, length, start, late
        self.turning, self.plan = turns, plan
        self.groups = [layer.groups for layer in layers]
        self.room = length + ROOM
        self.memory = self.empty()
        for index, layer in enumerate(layers):
            keys, values = self.of_layer(index)
            keys[:, :, :length], values[:, :, :length] = layer.keys, layer.values
            if late:
                torch.from_numpy(self.memory.states)[index, :, :length] = layer.states
                self.memory.written[index, :, :, :length] = True

    def empty(self) -> Memory:
        sizes, room = self.sizes, self.room
        slots = np.array([len(groups) for groups in self.groups], np.int64)
        ends = np.cumsum(slots * self.rows * room * sizes.head_width)
        slot = np.full((sizes.layers, sizes.kv_heads), -1, np.int64)
        for layer, groups in enumerate(self.groups):
            slot[layer, groups.numpy()] = np.arange(len(groups))
        turns = np.zeros((2, room, 0), np.float32)
        if self.turning is not None:
            frequencies, factor = self.turning
            angles = torch.arange(room).float()[:, None] * frequencies
            turns = (torch.stack([angles.cos(), angles.sin()]) * factor).numpy()
        late = room if self.late else 0
        return Memory(
            keys=np.empty(ends[-1], np.float32),
            values=np.empty(ends[-1], np.float32),
            base=np.concatenate([[0], ends[:-1]]),
            slots=slots,
            slot=slot,
            start=self.start.numpy(),
            turns=turns,
            states=np.empty((sizes.layers, self.rows, late, sizes.width), np.float32),
            written=np.zeros((sizes.layers, self.rows, sizes.kv_heads, late), np.bool_),
        )

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """-> keys and values [B, G', room, D], in this memory."""
        shape = (self.rows, int(self.memory.slots[layer]), self.room, self.sizes.head_width)
        start = int(self.memory.base[layer])
        lines = slice(start, start + int(np.prod(shape)))
        keys, values = (torch.from_numpy(flat[lines]) for flat in (self.memory.keys, self.memory.values))
        return keys.view(shape), values.view(shape)

    def make_room(self) -> None:
        """For one more position: twice as many, when there is none."""
        if self.length < self.room:
            return
        before, old = self.memory, [self.of_layer(layer) for layer in range(self.sizes.layers)]
        self.room *= 2
        self.memory = self.empty()
        for layer, (keys, values) in enumerate(old):
            new_keys, new_values = self.of_layer(layer)
            new_keys[:, :, : self.length], new_values[:, :, : self.length] = keys, values
        if self.late:
            self.memory.states[:, :, : self.length] = before.states
            self.memory.written[..., : self.length] = before.written

    def bytes_a_position(self) -> int:
        """Of one row: what its keys and values take, in all layers."""
        return int(self.memory.slots.sum()) * self.sizes.head_width * 2 * 4

    def bytes_held(self) -> int:
        """Of all rows: what the keys and values of the positions so far take, and with late keys the states
        that they come from; room for later positions is not counted."""
        states = self.sizes.layers * self.sizes.width * 4 if self.late else 0
        return self.rows * self.length * (self.bytes_a_position() + states)

    def bytes_of_dense(self) -> int:
        """What a float32 cache of all key-value heads takes for these positions."""
        sizes = self.sizes
        return self.rows * self.length * sizes.layers * sizes.kv_heads * sizes.head_width * 2 * 4
