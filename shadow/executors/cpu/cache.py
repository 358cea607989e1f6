"""Keys and values of a generation under way, of the heads that stay alone."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from shadow.executors.cache_layer import HeldLayer, Known
from shadow.executors.cpu.compact import Plan, of_rows
from shadow.executors.cpu.decode import Memory
from shadow.executors.families import Sizes

ROOM = 64  # positions that memory is at first larger than the prompt


class Remembered(NamedTuple):
    """What one layer holds of the positions so far. groups: int64 [G'], the key-value heads that are stored;
    keys and values: [B, G', T, D], keys turned; states: [B, T, E], what the heads read, and written: bool
    [B, G, T], whether a head's keys and values are computed; None: of no use, and all of them."""

    groups: Tensor
    keys: Tensor
    values: Tensor
    states: Tensor | None = None
    written: Tensor | None = None


class Decided(NamedTuple):
    """plan: what a prompt decided, or where tokens note what they choose; owner: the run that decided."""

    plan: Plan
    owner: object


class KeyValues:
    """What the texts of a batch leave for their next tokens, in one flat memory. Of key-value heads that no
    token will need nothing is held."""

    def __init__(
        self,
        sizes: Sizes,
        layers: Sequence[Remembered],
        known: Known,
        turns: tuple[Tensor, float] | None,
        late: bool,
        decided: Decided,
        room: int,
    ) -> None:
        """known: where rows begin; turns: as in `Parts`; late: also hold the states that late keys come
        from; room: for so many positions."""
        rows, _, length, _ = layers[0].keys.shape
        self.sizes, self.rows, self.length, self.late = sizes, rows, length, late
        self.turning, self.decided = turns, decided
        self.groups = [layer.groups for layer in layers]
        self.room = room
        self.memory = self.empty(known)
        for index, layer in enumerate(layers):
            keys, values = self.of_layer(index)
            keys[:, :, :length], values[:, :, :length] = layer.keys, layer.values
            if late:
                if layer.states is not None:
                    torch.from_numpy(self.memory.states)[index, :, :length] = layer.states
                written = torch.from_numpy(self.memory.written)[index, :, :, :length]
                written[:] = True if layer.written is None else layer.written

    def empty(self, known: Known) -> Memory:
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
            start=known.start.numpy().astype(np.int64),
            offset=known.offset.numpy().astype(np.int64),
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

    def remembered(self, layer: int, length: int, order: Tensor | None) -> Remembered:
        """Of the first `length` positions; order: int64 [B'], rows; None: all of them."""
        keys, values = self.of_layer(layer)
        found = Remembered(self.groups[layer], keys[:, :, :length], values[:, :, :length])
        if self.late:
            states, written = torch.from_numpy(self.memory.states), torch.from_numpy(self.memory.written)
            found = found._replace(states=states[layer, :, :length], written=written[layer, :, :, :length])
        if order is None:
            return found
        groups, keys, values, *late = found
        return Remembered(
            groups, keys[order], values[order], *(None if part is None else part[order] for part in late)
        )

    def missing(self, layer: int, length: int) -> str | None:
        sizes, held = self.sizes, len(self.groups[layer])
        if held < sizes.kv_heads:
            return (
                f"executor=gathered holds keys and values of {held} of the {sizes.kv_heads} key-value heads "
                f"of layer {layer}, as this text's plan needs no others: go on from this cache inside the "
                "block that made it, or begin without past_key_values"
            )
        columns = np.arange(length) >= self.memory.start[:, None, None]
        if self.late and not (self.memory.written[layer, :, :, :length] | ~columns).all():
            return (
                "executor.kv_policy=recompute has not computed all keys and values of layer "
                f"{layer} yet: go on from this cache inside the block that made it, use "
                "executor.kv_policy=write_all, or begin without past_key_values"
            )
        return None

    def __deepcopy__(self, memo: dict) -> "KeyValues":
        """Weights are not copied: nobody writes to them."""
        twin = copy.copy(self)
        twin.memory = Memory(*(part.copy() for part in self.memory))
        twin.decided = self.decided._replace(plan=of_rows(self.decided.plan, None))
        return twin

    @property
    def known(self) -> Known:
        return Known(torch.from_numpy(self.memory.start), torch.from_numpy(self.memory.offset))

    def stand(self, start: np.ndarray, offset: np.ndarray) -> None:
        """As the last call says, which knows where rows begin that were padding so far. start, offset: [B]"""
        self.memory.start[:], self.memory.offset[:] = start, offset

    def up_to(self, position: int) -> Memory:
        """For a token here: a row that has not begun is read as if it began here."""
        held = self.memory
        if held.start.max() <= position and held.offset.max() <= position:
            return held
        start, offset = np.minimum(held.start, position), np.minimum(held.offset, position)
        return held._replace(start=start, offset=offset)

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


def nothing_yet(sizes: Sizes, rows: int) -> list[Remembered]:
    """Of each layer, of all key-value heads, before the first position."""
    none = torch.empty(rows, sizes.kv_heads, 0, sizes.head_width, dtype=torch.float32)
    return [Remembered(torch.arange(sizes.kv_heads), none, none)] * sizes.layers


def room_for(columns: int, old: KeyValues | None) -> int:
    """old: where they lay, which is twice as large when it does not suffice."""
    if old is None:
        return columns + ROOM
    return old.room if columns <= old.room else max(columns, 2 * old.room)


def remembered(layer: DynamicLayer, own: bool) -> Remembered:
    """own: whether heads without keys may stay so."""
    if own and isinstance(layer, HeldLayer) and isinstance(layer.memory, KeyValues) and not layer.has_own:
        return layer.memory.remembered(layer.index, layer.length, layer.order)
    keys, values = layer.keys, layer.values
    assert keys is not None
    assert values is not None
    return Remembered(torch.arange(keys.shape[1]), keys.float().cpu(), values.float().cpu())
