"""Positions of prompts, batches and drafts through rows of inputs, many at once."""

import numpy as np
import torch
from torch import Tensor

from shadow.executors.cpu.channels import SLOTS, Above, ChannelWeights, Written
from shadow.executors.cpu.decode import Memory
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.cpu.panels import TOGETHER
from shadow.executors.cpu.pass_channels import Picked, pass_channels
from shadow.executors.cpu.room import Room, empty_room, of_positions, with_room
from shadow.executors.cpu.team import Team


class ChannelBlocks:
    def __init__(self, weights: ChannelWeights, above: Above, written: Written, team: Team) -> None:
        self.weights, self.above, self.written, self.team = weights, above, written, team
        self.room: Room | None = None
        self.picked = self.empty_picked()

    def run(
        self, memory: Memory, ids: Tensor, real: Tensor, whole: Tensor | None, before: int
    ) -> tuple[Tensor, np.ndarray]:
        """ids: [B, T] behind so many columns; real, whole: bool [B, T], None: nowhere. -> the last norm's
        output [B, T, E], and int64 [L, 4], channels of each slot that stayed at real positions."""
        count, columns = ids.numel(), memory.turns.shape[1]
        self.room = with_room(self.room, count, columns, self.empty)
        lines, picked = of_positions(self.room, count), self.picked
        picked.kept[:] = 0
        whole = torch.zeros_like(real) if whole is None else whole
        self.team.run(
            pass_channels,
            self.weights,
            self.above,
            self.written,
            lines,
            picked,
            memory,
            np.ascontiguousarray(ids.numpy()),  # of any other layout the code would be compiled anew
            real.flatten().numpy(),
            whole.flatten().numpy(),
            before,
        )
        return torch.from_numpy(lines.x.copy()).view(*ids.shape, -1), picked.kept.sum(0)

    def empty(self, count: int, columns: int) -> Room:
        matrices = self.weights.qkv, self.weights.o, self.weights.gate_up, self.weights.down
        outputs = max(matrix.width for matrix in matrices)
        panels = max(VECTOR // matrix.bits // TOGETHER for matrix in matrices)
        return empty_room(self.weights.sizes, outputs, panels, self.team.members, count, columns)

    def empty_picked(self) -> Picked:
        sizes, members = self.weights.sizes, self.team.members
        most = max(sizes.width, sizes.heads * sizes.head_width, sizes.neurons)
        return Picked(
            scores=lined_up((members, most), np.dtype(np.float32)),
            keep=np.empty((members, most), np.bool_),
            ranked=np.empty((members, most), np.int32),
            kept=np.zeros((members, sizes.layers, len(SLOTS)), np.int64),
            heads=np.ones(sizes.heads, np.bool_),
        )
