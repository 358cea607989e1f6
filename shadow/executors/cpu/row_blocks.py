"""Positions of prompts, batches and drafts through rows of heads and neurons, many at once."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from shadow.executors.cpu.cache import KeyValues
from shadow.executors.cpu.compact import everything
from shadow.executors.cpu.grouped import VECTOR, OutRows
from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.cpu.matrices import width_of
from shadow.executors.cpu.panels import TOGETHER
from shadow.executors.cpu.pass_rows import Scored, Spoken, pass_rows
from shadow.executors.cpu.prefill import Fills
from shadow.executors.cpu.room import Room, empty_room, of_positions, with_room
from shadow.executors.cpu.scoring import Choice, Nets, Rule, kept_by, list_all, no_nets, no_rule
from shadow.executors.cpu.storage import CHUNK
from shadow.executors.cpu.team import Team
from shadow.executors.cpu.weights import Weights, storage_of
from shadow.executors.planner import Planner
from shadow.models.sites import KINDS

AT_ONCE = 2**26  # units, times positions with a plan of their own, that one compiled call is told of


class RowBlocks:
    """Prompts are planned by the scorer itself, between compiled calls of the layers behind its signals; what
    follows them by nets, as one new token is."""

    def __init__(
        self, planner: Planner, weights: Weights, fills: Fills, nets: Nets, rule: Rule, team: Team
    ) -> None:
        self.planner, self.weights, self.nets, self.rule, self.team = planner, weights, nets, rule, team
        self.spoken = Spoken(
            fills.of["head"].flatten(1).numpy(), fills.of["neuron"].flatten(1).numpy(), fills.bases.numpy()
        )
        self.unplanned = no_nets(storage_of(weights.down)), no_rule(weights.sizes.layers)
        self.room: Room | None = None
        self.scored: Scored | None = None
        self.choice: Choice | None = None  # of each position behind a prompt

    def read(self, memory: KeyValues, ids: Tensor) -> Tensor:
        """ids: [B, T], a prompt, whose keys and values the memory, empty so far, then holds -> the last
        norm's output [B, T, E]."""
        sizes, planner = self.weights.sizes, self.planner
        signals = {signal.layer: signal for signal in planner.signals}
        step = max(1, AT_ONCE // (ids.numel() * sizes.neurons))
        for begin, end in pairwise(sorted({0, *signals, sizes.layers})):
            if begin in signals:
                if begin == 0:
                    self.run(memory, ids, everything(sizes, 1, 0), 0, 0)
                planner.decide(
                    signals[begin], torch.from_numpy(self.lines(memory, ids).h).view(*ids.shape, -1)
                )
            for first in range(begin, end, step):
                last = min(end, first + step)
                self.run(memory, ids, self.planned_choice(ids, first, last), first, last)
        memory.length = ids.shape[1]
        return torch.from_numpy(self.lines(memory, ids).x.copy()).view(*ids.shape, -1)

    def pass_on(self, memory: KeyValues, ids: Tensor, real: Tensor) -> tuple[Tensor, np.ndarray]:
        """ids: [B, T], the positions behind those in the memory, which then holds them too; real: bool
        [B, T]. -> the last norm's output [B, T, E], and int64 [L, 2], units that stayed at real positions."""
        sizes, nets = self.weights.sizes, self.nets
        choice, chosen, planned = memory.decided.plan.choice, sizes.layers, None
        if len(nets.taps):
            choice, chosen = self.choice_of_each(ids.numel()), int(nets.taps[0, 1])
            planned = nets, self.rule
        before = choice.kept.copy()
        self.run(memory, ids, choice, 0, sizes.layers, planned, real)
        kept = kept_by(choice, choice.kept - before, chosen, real)
        memory.length += ids.shape[1]
        return torch.from_numpy(self.lines(memory, ids).x.copy()).view(*ids.shape, -1), kept

    def run(
        self,
        memory: KeyValues,
        ids: Tensor,
        choice: Choice,
        first: int,
        last: int,
        planned: tuple[Nets, Rule] | None = None,
        real: Tensor | None = None,
    ) -> None:
        count = ids.numel()
        real = torch.ones(count, dtype=torch.bool) if real is None else real
        self.team.run(
            pass_rows,
            self.weights,
            *(planned or self.unplanned),
            choice,
            count // len(choice.heads),
            self.spoken,
            self.room_to_score(count if planned else 1),
            self.lines(memory, ids),
            memory.memory,
            np.ascontiguousarray(ids.numpy()),  # of any other layout the code would be compiled anew
            np.ascontiguousarray(real.flatten().numpy()),
            first,
            last,
            memory.length,
        )

    def planned_choice(self, ids: Tensor, first: int, last: int) -> Choice:
        """What stays of these layers, and counts it: a line for all positions, or for each row or position
        where some plan differs there."""
        keeps = [[self.planner.keep((layer, kind)) for kind in KINDS] for layer in range(first, last)]
        shapes = [keep.shape for each in keeps for keep in each if keep is not None]
        apart = [any(len(shape) > 2 and shape[dim] > 1 for shape in shapes) for dim in range(2)]
        rows, tokens = ids.shape if apart[1] else (len(ids), 1) if apart[0] else (1, 1)
        choice = everything(self.weights.sizes, rows * tokens, last - first)
        for at, each in enumerate(keeps):
            for stays, keep in zip((choice.heads, choice.neurons), each):
                if keep is not None:
                    torch.from_numpy(stays).view(rows, tokens, last - first, -1)[:, :, at] = keep
        list_all(choice)
        return choice

    def choice_of_each(self, count: int) -> Choice:
        if self.choice is None or len(self.choice.heads) != count:
            self.choice = everything(self.weights.sizes, count, self.weights.sizes.layers)
            list_all(self.choice)
        return self.choice

    def lines(self, memory: KeyValues, ids: Tensor) -> Room:
        """Room for these positions, where they are found again until another call."""
        count, columns = ids.numel(), memory.room
        self.room = with_room(self.room, count, columns, self.empty)
        return of_positions(self.room, count)

    def empty(self, count: int, columns: int) -> Room:
        sizes, weights = self.weights.sizes, self.weights
        inner, stored = sizes.heads * sizes.head_width, sizes.kv_heads * sizes.head_width
        outputs = max(inner + 2 * stored, 2 * sizes.neurons, sizes.width) + 3 * TOGETHER
        written = weights.output, weights.down
        panels = max(VECTOR // rows.bits // TOGETHER for rows in written if isinstance(rows, OutRows))
        return empty_room(sizes, outputs, panels, self.team.members, count, columns)

    def room_to_score(self, count: int) -> Scored:
        """Of a prompt nothing is scored in compiled code."""
        if self.scored is not None and len(self.scored.told) == count:
            return self.scored
        sizes, nets, members = self.weights.sizes, self.nets, self.team.members

        def floats(*shape: int) -> np.ndarray:
            return lined_up(shape, np.dtype(np.float32))

        self.scored = Scored(
            scaled=floats(members, count, sizes.width),
            hidden=floats(max(1, int(nets.depth[0])), count, width_of(nets.bend)),
            told=floats(count, nets.down_bias.shape[1]),
            bent=floats(count, nets.down_bias.shape[1]),
            head_scores=floats(count, sizes.layers * sizes.heads),
            neuron_scores=floats(count, sizes.layers * sizes.neurons),
            ranked=np.empty((members, max(sizes.heads, sizes.neurons)), np.int32),
            lines=np.empty((members, CHUNK + 8), np.int32),
            every=np.arange(max(sizes.heads * sizes.head_width, sizes.neurons), dtype=np.int32),
            attend=np.empty((members, sizes.heads), np.bool_),
        )
        return self.scored
