"""A prompt's products with weights in 8 and 4 bits, as whole numbers."""

import numpy as np
import torch
from torch import Tensor

from shadow.executors.cpu.blocks import add_block, multiply_block
from shadow.executors.cpu.grouped import VECTOR, InRows, OutRows
from shadow.executors.cpu.matrices import In, Out
from shadow.executors.cpu.panel_products import ABREAST
from shadow.executors.cpu.panels import TOGETHER, Panels, empty_panels
from shadow.executors.cpu.states import States, empty_states
from shadow.executors.cpu.team import Team


class Blocks:
    """As `products.across` and `along`, of states that are rounded as a new token's are: each row is read and
    laid out once for all positions."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.panels: dict[tuple[int, int], Panels] = {}
        self.states: dict[int, States] = {}

    def across(
        self, x: Tensor, rows: In, layer: int, lines: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        assert isinstance(rows, InRows)
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        numbers = np.arange(rows.rows) if lines is None else np.ascontiguousarray(lines.numpy())
        out = room_for(len(flat), len(numbers))
        self.team.run(
            multiply_block,
            rows,
            layer,
            numbers,
            flat.numpy(),
            self.states_of(len(flat), rows.width),
            self.panels_of(1, rows.width),
            out,
        )
        said = torch.from_numpy(out)[: len(flat), : len(numbers)]
        return (said if bias is None else said.add_(bias)).unflatten(0, x.shape[:-1])

    def along(self, x: Tensor, rows: Out, layer: int, lines: Tensor | None = None) -> Tensor:
        assert isinstance(rows, OutRows)
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        if lines is not None:
            flat = flat.new_zeros(len(flat), rows.rows).index_copy_(1, lines, flat)
        out = room_for(len(flat), rows.width)
        self.team.run(
            add_block,
            rows,
            layer,
            flat.numpy(),
            self.states_of(len(flat), rows.rows),
            self.panels_of(VECTOR // rows.bits // TOGETHER, rows.rows),
            out,
        )
        return torch.from_numpy(out)[: len(flat), : rows.width].unflatten(0, x.shape[:-1])

    def states_of(self, positions: int, width: int) -> States:
        """Room for these, and for those that fill a block."""
        known = self.states.get(width)
        if known is None or len(known.scale) // int(known.length[1]) < positions + ABREAST - 1:
            self.states[width] = known = empty_states(positions + ABREAST - 1, width)
        return known

    def panels_of(self, panels: int, width: int) -> Panels:
        if (panels, width) not in self.panels:
            self.panels[panels, width] = empty_panels(self.team.members, panels, width)
        return self.panels[panels, width]


def room_for(positions: int, outputs: int) -> np.ndarray:
    """float32, with the lines and columns that whole panels write beyond these."""
    return np.empty((positions + ABREAST - 1, -(-outputs // TOGETHER) * TOGETHER + TOGETHER), np.float32)
