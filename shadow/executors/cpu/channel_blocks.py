"""Positions of prompts, batches and drafts through rows of inputs, many at once."""

import numpy as np
import torch
from torch import Tensor

from shadow.executors.cpu.attention import LANES
from shadow.executors.cpu.block_attention import EIGHT
from shadow.executors.cpu.blocks import ABREAST
from shadow.executors.cpu.channels import SLOTS, Above, ChannelWeights, Written
from shadow.executors.cpu.decode import Memory
from shadow.executors.cpu.grouped import VECTOR
from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.cpu.panels import TOGETHER, empty_panels
from shadow.executors.cpu.pass_channels import Pass, pass_channels
from shadow.executors.cpu.states import empty_states
from shadow.executors.cpu.team import Team


class ChannelBlocks:
    def __init__(self, weights: ChannelWeights, above: Above, written: Written, team: Team) -> None:
        self.weights, self.above, self.written, self.team = weights, above, written, team
        self.room: Pass | None = None

    def run(
        self, memory: Memory, ids: Tensor, real: Tensor, whole: Tensor | None, before: int
    ) -> tuple[Tensor, np.ndarray]:
        """ids: [B, T] behind so many columns; real, whole: bool [B, T], None: nowhere. -> the last norm's
        output [B, T, E], and int64 [L, 4], channels of each slot that stayed at real positions."""
        count, columns = ids.numel(), memory.turns.shape[1]
        room = self.room
        if room is None or len(room.h) < count or room.weights.shape[1] < columns + 32:
            held = (0, 0) if room is None else (len(room.h), room.weights.shape[1] - 32)
            self.room = room = self.empty(max(count, held[0]), max(columns, held[1]))
        lines = room._replace(
            h=room.h[:count], x=room.x[:count], context=room.context[:count], said=room.said[:count]
        )
        room.kept[:] = 0
        whole = torch.zeros_like(real) if whole is None else whole
        self.team.run(
            pass_channels,
            self.weights,
            self.above,
            self.written,
            lines,
            memory,
            np.ascontiguousarray(ids.numpy()),  # of any other layout the code would be compiled anew
            real.flatten().numpy(),
            whole.flatten().numpy(),
            before,
        )
        return torch.from_numpy(lines.x.copy()).view(*ids.shape, -1), room.kept.sum(0)

    def empty(self, count: int, columns: int) -> Pass:
        sizes, members = self.weights.sizes, self.team.members
        inner = sizes.heads * sizes.head_width
        most = max(sizes.width, inner, sizes.neurons)
        matrices = self.weights.qkv, self.weights.o, self.weights.gate_up, self.weights.down
        outputs = max(matrix.width for matrix in matrices)
        panels = max(VECTOR // matrix.bits // TOGETHER for matrix in matrices)

        def floats(*shape: int) -> np.ndarray:
            return lined_up(shape, np.dtype(np.float32))

        return Pass(
            h=floats(count, sizes.width),
            x=floats(count, sizes.width),
            y=floats(count + ABREAST - 1, (outputs // TOGETHER + 2) * TOGETHER),
            context=floats(count, inner),
            said=floats(count, sizes.neurons),
            of_width=empty_states(count + ABREAST - 1, sizes.width),
            of_heads=empty_states(count + ABREAST - 1, inner),
            of_neurons=empty_states(count + ABREAST - 1, sizes.neurons),
            panels=empty_panels(members, panels, most),
            turned=floats(members, sizes.head_width + 16),
            weights=floats(members, columns + 32),
            queries=floats(members, EIGHT, sizes.head_width),
            eights=floats(members, EIGHT, columns + LANES),
            turned_keys=floats(members, sizes.head_width * (columns + LANES)),
            scores=floats(members, most),
            keep=np.empty((members, most), np.bool_),
            ranked=np.empty((members, most), np.int32),
            kept=np.zeros((members, sizes.layers, len(SLOTS)), np.int64),
        )
