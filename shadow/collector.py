"""Collecting traces: all criteria of a batch, reduced to window rows and sampled token rows."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor
from transformers import PreTrainedModel

from shadow.batches import Batch
from shadow.criteria import CRITERIA
from shadow.scores import score
from shadow.sites import Site, count_units, find_layers, find_sites
from shadow.traces import write_shard

log = logging.getLogger(__name__)


class CriterionCollector(pl.LightningModule):
    """One forward and one backward a batch; returns its rows as float32 arrays named as in the store.

    Needs `Trainer(inference_mode=False)`. The language model is no child module: Lightning never moves one
    that is spread over devices, and never makes it part of a checkpoint.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        criteria: Sequence[str],
        taps: Sequence[int],
        tokens_per_window: int,
        batch_size: int,
        seed: int,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.outside = (model,)
        self.criteria = list(criteria)
        self.taps = list(taps)
        self.tokens_per_window = tokens_per_window
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def on_predict_start(self) -> None:
        (model,) = self.outside
        if not hasattr(model, "hf_device_map"):
            model.to(self.device)  # type: ignore[arg-type]

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        (model,) = self.outside
        first = self.start + batch_idx * self.batch_size
        where = self.sample(batch.lengths.tolist(), first)  # [M, 2] of row and position
        row, position = where[:, 0].to(batch.ids.device), where[:, 1].to(batch.ids.device)
        real, layers, units = batch.real(), len(find_layers(model)), count_units(find_sites(model))
        arrays: dict[str, Tensor] = {}
        for name in self.criteria:
            for kind, count in units.items():
                arrays[f"window/{name}/{kind}"] = torch.empty(len(batch.ids), layers, count)
                arrays[f"token/{name}/{kind}"] = torch.empty(len(where), layers, count)

        def receive(name: str, site: Site, per_token: Tensor) -> None:
            arrays[f"window/{name}/{site.kind}"][:, site.layer] = CRITERIA[name].reduce(per_token, real).cpu()
            arrays[f"token/{name}/{site.kind}"][:, site.layer] = per_token[row, position].cpu()

        found = score(model, batch, self.criteria, receive, self.taps)
        states = torch.stack([found[tap].float() for tap in self.taps], 2)  # [B, T, taps, E]
        arrays["token/state"] = states[row, position].cpu()
        for name, inside in {"prompt": batch.in_prompt(), "sequence": real}.items():
            arrays[f"window/{name}/last"] = last_of(states, inside).cpu()
            arrays[f"window/{name}/mean"] = mean_of(states, inside).cpu()
        arrays["window/window"] = torch.arange(first, first + len(batch.ids))
        arrays["token/window"], arrays["token/position"] = first + where[:, 0], where[:, 1]
        return arrays

    def sample(self, lengths: Sequence[int], first: int) -> Tensor:
        """Positions to keep -> [M, 2] of row and position; drawn by the window's number, not its batch."""
        chosen = []
        for row, length in enumerate(lengths):
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + first + row)
            positions = torch.randperm(length, generator=draw)[: self.tokens_per_window].sort().values
            chosen.append(torch.stack([torch.full_like(positions, row), positions], 1))
        return torch.cat(chosen)


def last_of(states: Tensor, inside: Tensor) -> Tensor:
    """states: [B, T, ...], inside: bool [B, T] -> [B, ...]: each row's state at its last inside position."""
    positions = torch.arange(inside.shape[1], device=inside.device)
    last = torch.where(inside, positions, 0).amax(1)  # generation pads on the left
    return states[torch.arange(len(states), device=states.device), last]


def mean_of(states: Tensor, inside: Tensor) -> Tensor:
    """states: [B, T, ...], inside: bool [B, T] -> [B, ...]: the mean over each row's inside positions."""
    weights = inside.float() / inside.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,bt...->b...", weights, states)


class ShardWriter(BasePredictionWriter):
    """Writes a shard after every `batches` batches and at the end; what was written survives any crash."""

    def __init__(self, folder: Path, batches: int, first_shard: int) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.batches = batches
        self.next_shard = first_shard
        self.waiting: list[dict[str, Tensor]] = []

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: dict[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self.waiting.append(prediction)
        if len(self.waiting) == self.batches:
            self.flush()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.waiting:
            self.flush()

    def flush(self) -> None:
        arrays = {name: torch.cat([part[name] for part in self.waiting]) for name in self.waiting[0]}
        write_shard(self.folder, self.next_shard, arrays)
        self.next_shard += 1
        self.waiting = []
