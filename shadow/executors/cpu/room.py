"""Room for many positions of a batch, which go through the layers in one compiled call."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shadow.executors.cpu.attention import LANES
from shadow.executors.cpu.block_attention import EIGHT
from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.cpu.panel_products import ABREAST
from shadow.executors.cpu.panels import TOGETHER, Panels, empty_panels
from shadow.executors.cpu.states import States, empty_states
from shadow.executors.families import Sizes


class Room(NamedTuple):
    """Of N positions, float32. h, x: [N, E]; y: [N + 3, outputs], what projections write; context: [N, H *
    D]; said: [N, F]; of_width, of_heads, of_neurons: x and these, rounded.

    Of each member, for attention, turned: [members, D + 16], weights: [members, room + 32], queries:
    [members, 8, D], eights: [members, 8, room + 16] and turned_keys: [members, D * (room + 16)]."""

    h: np.ndarray
    x: np.ndarray
    y: np.ndarray
    context: np.ndarray
    said: np.ndarray
    of_width: States
    of_heads: States
    of_neurons: States
    panels: Panels
    turned: np.ndarray
    weights: np.ndarray
    queries: np.ndarray
    eights: np.ndarray
    turned_keys: np.ndarray


def empty_room(sizes: Sizes, outputs: int, panels: int, members: int, count: int, columns: int) -> Room:
    """outputs: that one projection, or some at once, write at most; panels: that are laid out at once;
    columns: positions that a memory has room for."""
    inner = sizes.heads * sizes.head_width

    def floats(*shape: int) -> np.ndarray:
        return lined_up(shape, np.dtype(np.float32))

    return Room(
        h=floats(count, sizes.width),
        x=floats(count, sizes.width),
        y=floats(count + ABREAST - 1, (outputs // TOGETHER + 2) * TOGETHER),
        context=floats(count, inner),
        said=floats(count, sizes.neurons),
        of_width=empty_states(count + ABREAST - 1, sizes.width),
        of_heads=empty_states(count + ABREAST - 1, inner),
        of_neurons=empty_states(count + ABREAST - 1, sizes.neurons),
        panels=empty_panels(members, panels, max(sizes.width, inner, sizes.neurons)),
        turned=floats(members, sizes.head_width + 16),
        weights=floats(members, columns + 32),
        queries=floats(members, EIGHT, sizes.head_width),
        eights=floats(members, EIGHT, columns + LANES),
        turned_keys=floats(members, sizes.head_width * (columns + LANES)),
    )


def with_room(room: Room | None, count: int, columns: int, empty: Callable[[int, int], Room]) -> Room:
    """`room`, or what `empty` makes for so many positions and columns, and no fewer than `room` has: texts in
    turn find the same."""
    if room is None:
        return empty(count, columns)
    held = len(room.h), room.weights.shape[1] - 32
    return (
        room if held[0] >= count and held[1] >= columns else empty(max(count, held[0]), max(columns, held[1]))
    )


def of_positions(room: Room, count: int) -> Room:
    """The same room, of so many positions."""
    return room._replace(
        h=room.h[:count], x=room.x[:count], context=room.context[:count], said=room.said[:count]
    )
