"""Prompts and new tokens of a model whose weights are rows of inputs."""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.executors.cpu.cache import KeyValues, Remembered
from shadow.executors.cpu.channel_blocks import ChannelBlocks
from shadow.executors.cpu.channels import SLOTS, ChannelWeights, above_of, written_of
from shadow.executors.cpu.decode import Bench, Memory
from shadow.executors.cpu.decode_channels import Channels, step_channels
from shadow.executors.cpu.grouped import VECTOR, OutRows
from shadow.executors.cpu.lined_up import lined_up
from shadow.executors.cpu.prefill import Prompt
from shadow.executors.cpu.prefill_channels import prefill_channels
from shadow.executors.cpu.products import Products
from shadow.executors.cpu.scoring import Choice
from shadow.executors.cpu.team import Team
from shadow.executors.planner import Planner
from shadow.models.sites import SiteKey
from shadow.plans.stand_ins import Learnt


class ChannelTokens:
    """Planned at the very input that each projection reads, by |x|, or |x| times a factor of each channel."""

    def __init__(self, model: PreTrainedModel, planner: Planner, weights: ChannelWeights, team: Team) -> None:
        sites, stand_in = planner.corrected_sites, planner.stand_in
        self.planner, self.weights = planner, weights
        self.written = written_of(weights, sites, stand_in if isinstance(stand_in, Learnt) else None)
        self.corrected = {site.key: site for site in sites}
        self.above = above_of(model, planner.scorer, planner.policy)
        self.signals = {(signal.layer, signal.slot): signal for signal in planner.signals}
        self.room: Channels | None = None
        self.blocks = ChannelBlocks(weights, self.above, self.written, team)

    def pass_on(
        self, memory: KeyValues, ids: Tensor, real: Tensor, whole: Tensor | None = None
    ) -> tuple[Tensor, np.ndarray]:
        """ids: [B, T], the positions behind those in the memory, which then holds them too -> as
        `ChannelBlocks.run`."""
        found = self.blocks.run(memory.memory, ids, real, whole, memory.length)
        memory.length += ids.shape[1]
        return found

    def read(
        self, turns: tuple[Tensor, float] | None, prompt: Prompt, products: Products
    ) -> tuple[Tensor, list[Remembered]]:
        return prefill_channels(self.weights, turns, prompt, self.drop, self.correct, products)

    def drop(self, key: SiteKey, x: Tensor) -> Tensor:
        """x: [B, T, U], the input of a site -> without what its plan drops."""
        if key in self.signals:
            self.planner.decide(self.signals[key], x)
        keep = self.planner.keep(key)
        return x if keep is None else torch.where(keep, x, 0.0)

    def correct(self, key: SiteKey, x: Tensor, y: Tensor) -> Tensor:
        """y: [B, T, N], what the readers of a site have written of x, one behind the other."""
        site = self.corrected.get(key)
        if site is None:
            return y
        parts = y.split([projection.out_features for projection in site.readers], -1)
        found = [self.planner.correct(site, reader, x, part) for reader, part in enumerate(parts)]
        return torch.cat([part if new is None else new for part, new in zip(parts, found)], -1)

    def run(
        self,
        team: Team,
        choice: Choice,
        memory: Memory,
        bench: Bench,
        ids: np.ndarray,
        real: np.ndarray,
        position: int,
    ) -> np.ndarray:
        """ids, real: [B], a token of each row -> int64 [L, 4], channels of each slot that stayed, over real
        rows."""
        if self.room is None or len(self.room.said) != len(ids):
            self.room = self.empty(team.members, len(ids))
        self.room.kept[:] = 0
        args = (choice, memory, bench, ids, real, position)
        team.run(step_channels, self.weights, self.above, self.written, self.room, *args)
        return self.room.kept

    def empty(self, members: int, rows: int) -> Channels:
        sizes = self.weights.sizes
        most = max(sizes.width, sizes.heads * sizes.head_width, sizes.neurons)

        def sums(matrix: OutRows) -> np.ndarray:
            return lined_up((rows, matrix.blocks * VECTOR // matrix.bits), np.dtype(np.float32))

        return Channels(
            qkv=sums(self.weights.qkv),
            o=sums(self.weights.o),
            gate_up=sums(self.weights.gate_up),
            down=sums(self.weights.down),
            said=lined_up((rows, sizes.neurons), np.dtype(np.float32)),
            scores=lined_up((members, most), np.dtype(np.float32)),
            keep=np.empty((members, most), np.bool_),
            ranked=np.empty((members, most), np.int32),
            kept=np.zeros((sizes.layers, len(SLOTS)), np.int64),
        )
