"""A layer of a `transformers` cache whose keys and values lie in an executor's memory."""

import copy
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from shadow.errors import UserError
from shadow.executors.families import Sizes


class Known(NamedTuple):
    """Of the columns that a cache holds. start: [B], each row's first real one, the next one where there is
    none yet; offset: [B], what columns count above positions."""

    start: Tensor
    offset: Tensor


class Memory(Protocol):
    """What an executor holds of the texts of a batch. A position that is written is never written again, so
    layers of several caches may lie in one memory; who goes on from an earlier position copies first."""

    sizes: Sizes
    rows: int
    length: int  # positions that are written

    @property
    def known(self) -> Known: ...

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """-> keys and values [B, G, room, D] of the key-value heads that are held."""
        ...

    def missing(self, layer: int, length: int) -> str | None:
        """Why the first `length` positions are of no use to another reader; None: nothing is missing."""
        ...


class HeldLayer(DynamicLayer):
    """Keys and values [B, G, T, D], as those of a `DynamicLayer`.

    They lie in the memory until another reader than its executor adds to them. What is cropped, repeated,
    chosen or reordered is noted alone, and copied when somebody reads it.
    """

    def __init__(self, memory: Memory, index: int) -> None:
        super().__init__()
        self.index = index
        self.lay_in(memory)

    def lay_in(self, memory: Memory) -> None:
        self.memory: Memory | None = memory
        self.length = memory.length
        self.order: Tensor | None = (
            None  # int64 [B], the memory's rows that are this layer's; None: all of them
        )
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        held = memory.of_layer(self.index)[0]
        self.dtype, self.device, self.is_initialized = held.dtype, held.device, True

    def lies_in(self, memory: Memory) -> bool:
        """To its last position, and row by row."""
        return (
            self.memory is memory
            and self.length == memory.length
            and self.order is None
            and self._keys is None
            and self._values is None
        )

    @property
    def has_own(self) -> bool:
        """Whether keys or values are no longer the memory's."""
        return self._keys is not None or self._values is not None

    def shape(self) -> tuple[int, int, int, int]:
        """What keys and values would have, were those of all heads held, while they are the memory's."""
        assert self.memory is not None
        sizes = self.memory.sizes
        return len(self._order()), sizes.kv_heads, self.length, sizes.head_width

    @property
    def keys(self) -> Tensor | None:
        return self._read(0) if self._keys is None and self.memory is not None else self._keys

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self._keys = keys

    @property
    def values(self) -> Tensor | None:
        return self._read(1) if self._values is None and self.memory is not None else self._values

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self._values = values

    def _read(self, which: int) -> Tensor:
        assert self.memory is not None
        missing = self.memory.missing(self.index, self.length)
        if missing is not None:
            raise UserError(missing)
        held = [part[:, :, : self.length] for part in self.memory.of_layer(self.index)]
        if self.order is not None:  # a copy, which becomes this layer's own: who reads it may write to it
            held = [part[self.order] for part in held]
            self._keys, self._values = (
                held[0] if self._keys is None else self._keys,
                held[1] if self._values is None else self._values,
            )
        return held[which]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Another reader's positions behind these, in its dtype."""
        keys, values = self.keys, self.values
        if self.is_initialized and keys is not None and values is not None:
            self._keys, self._values = keys.to(key_states), values.to(value_states)
            self.dtype, self.device = key_states.dtype, key_states.device
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        if self.memory is None or self._keys is not None:
            return super().get_seq_length()
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0 or self.memory is None or self.has_own:
            super().crop(tokens_to_remove)
        else:
            self.length = max(0, self.length + tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.get_seq_length() > 0:
            own = self._keys
            rows = self._order() if own is None else torch.arange(len(own))
            self._take(torch.arange(len(rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._take(indices)

    def reset(self) -> None:
        self.memory = self._keys = self._values = None
        self.is_initialized = False

    def _order(self) -> Tensor:
        assert self.memory is not None
        return torch.arange(self.memory.rows) if self.order is None else self.order

    def _take(self, rows: Tensor) -> None:
        """rows: what picks rows of a tensor, in their new order."""
        if self.get_seq_length() == 0:
            return
        if self.memory is not None:
            same = self._order()
            taken = same[rows.to("cpu") if isinstance(rows, Tensor) else rows]
            if not torch.equal(taken, same):
                self.order = taken
        self._keys, self._values = (None if own is None else own[rows] for own in (self._keys, self._values))

    def __copy__(self) -> "HeldLayer":
        twin = HeldLayer.__new__(HeldLayer)
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict) -> "HeldLayer":
        twin = copy.copy(self)
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def __reduce__(self) -> tuple:
        """Of a file, a stock layer comes back."""
        if not self.is_initialized:
            return DynamicLayer, ()
        assert self.keys is not None
        assert self.values is not None
        return _plain, (self.keys.contiguous(), self.values.contiguous())


def _plain(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.update(keys, values)
    return layer


Held = TypeVar("Held", bound=Memory)


def memory_of(cache: Cache, kind: type[Held]) -> Held | None:
    """What holds a cache's first layer, and all that is decided of its texts; None: nothing of this kind."""
    first = cache.layers[0] if cache.layers else None
    memory = first.memory if isinstance(first, HeldLayer) else None
    return memory if isinstance(memory, kind) else None


def lying(cache: Cache, kind: type[Held]) -> Held | None:
    """The memory in which all of a cache lies as it stands; None: something was done to it."""
    memory = memory_of(cache, kind)
    if memory is None:
        return None
    for layer in cache.layers:
        if not isinstance(layer, HeldLayer) or not layer.lies_in(memory):
            return None
    return memory


def known_of(cache: Cache, rows: int) -> Known | None:
    """None: it was filled by the dense model, or its rows are no longer those that it was filled with."""
    first = cache.layers[0]
    if not isinstance(first, HeldLayer) or first.memory is None:
        return None
    known, order = first.memory.known, first.order
    if order is not None:
        known = Known(known.start[order], known.offset[order])
    return known if len(known.start) == rows else None


def layers_of(cache: Cache) -> list[DynamicLayer]:
    """Of a cache that can be filled."""
    found = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        found.append(layer)
    return found


def lay_in(cache: Cache, memory: Memory) -> None:
    """The caller's own cache goes on being the cache: its layers are put in the memory."""
    for index in range(memory.sizes.layers):
        layer = cache.layers[index] if index < len(cache.layers) else None
        if isinstance(layer, HeldLayer):
            layer.lay_in(memory)
        elif layer is None:
            cache.layers.append(HeldLayer(memory, index))
        else:
            cache.layers[index] = HeldLayer(memory, index)


def lengthen(cache: Cache, memory: Memory) -> None:
    """To what the memory has been written to."""
    for layer in cache.layers:
        assert isinstance(layer, HeldLayer)
        layer.length = memory.length
