"""Collecting traces: all criteria of a batch, reduced to window rows and sampled token rows."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.criteria import Seen
from shadow.criteria.one_pass import score
from shadow.criteria.statistics import STATISTICS, Shown
from shadow.data.batches import Batch, Loss, Positions, last_of, mean_of
from shadow.data.calibration import Numbered
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import KINDS, Site, SiteKey
from shadow.signals import Signal, hook_signals, hook_sites
from shadow.traces.packing import Stored, encode, pack
from shadow.traces.shards import CONTEXTS, EMBEDDINGS, FEATURES, MEANS, NO_CRITERION, write_shard

Arrays = dict[str, Tensor]
EMBEDDED = Signal(0, "layer_input")


@dataclass(frozen=True)
class Keeping:
    """What is kept of a window, and how: the settings `traces` of the same names."""

    taps: Sequence[int]
    tokens_per_window: int
    statistic_tokens: int
    loss: Loss
    summed: Positions
    dtype: Stored
    top: float | None
    seed: int

    def sample(self, window: int, length: int) -> Tensor:
        """Positions to keep, in order; drawn by the window's number, not its batch."""
        return self._draw(window, length)[: self.tokens_per_window].sort().values

    def statistic_sample(self, window: int, length: int) -> Tensor:
        """As many positions for every window, to compare them; a short window gives its own again."""
        drawn = self._draw(window, length)
        return drawn.repeat(-(-self.statistic_tokens // length))[: self.statistic_tokens]

    def _draw(self, window: int, length: int) -> Tensor:
        return torch.randperm(length, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + window))


class CriterionCollector(pl.LightningModule):
    """One forward and one backward a batch; returns arrays for each part of the store that misses them.

    Needs `Trainer(inference_mode=False)`. The language model is no child module: Lightning never moves one
    that is spread over devices, and never makes it part of a checkpoint.
    """

    def __init__(
        self, model: PreTrainedModel, keeping: Keeping, means: Mapping[SiteKey, Tensor] | None = None
    ) -> None:
        """means: what `read_means` gives, for criteria of deviations from them."""
        super().__init__()
        self.outside = (model,)
        self.keeping, self.means = keeping, means
        self.layers = len(find_layers(model))

    def on_predict_start(self) -> None:
        place(self.outside[0], self.device)

    def predict_step(self, numbered: Numbered, batch_idx: int) -> dict[str, Arrays]:
        """-> each part's arrays; of a statistic what it compares, as `shown/<kind>`: [B, L, K, U, D]; of the
        means what they are of, as `sum/<kind>`: [1, L, U, D] and `tokens`: [1]."""
        (model,), keeping, batch = self.outside, self.keeping, numbered.batch
        lengths = batch.lengths.tolist()
        row, position = sampled(keeping, numbered)
        compared = torch.stack(
            [keeping.statistic_sample(numbered.first + index, n) for index, n in enumerate(lengths)]
        )
        summed = batch.positions(keeping.summed)
        parts: dict[str, Arrays] = {name: {} for name in numbered.parts}

        def receive(name: str, site: Site, seen: Seen | Shown) -> None:
            if isinstance(seen, Shown):
                chosen = seen.values[torch.arange(len(lengths))[:, None], compared].cpu()
                self.put(parts[name], f"shown/{site.kind}", site.layer, {"": chosen})
                return
            window, token = seen.window(summed), seen.at(row, position)
            for rows, values in {"window": window, "token": token}.items():
                self.put(
                    parts[name],
                    f"{rows}/{site.kind}",
                    site.layer,
                    encode(values.cpu(), keeping.dtype, keeping.top),
                )

        def add_up(site: Site, x: Tensor) -> None:
            real = batch.real().flatten().to(x.device, torch.float32)
            total = (real @ x.detach().flatten(0, 1).flatten(1).float()).view(1, *x.shape[2:])
            self.put(parts[MEANS], f"sum/{site.kind}", site.layer, {"": total.double().cpu()})

        criteria = [name for name in numbered.parts if name not in NO_CRITERION]
        taps = keeping.taps if FEATURES in numbered.parts else ()
        heads = [Signal(tap, "head_output") for tap in keeping.taps]
        contexts: dict[Signal, Tensor] = {}
        read: dict[Signal, Tensor] = {}
        with ExitStack() as stack:
            if MEANS in numbered.parts:
                stack.enter_context(hook_sites(model, find_sites(model), add_up))
            if CONTEXTS in numbered.parts:
                stack.enter_context(hook_signals(model, heads, contexts.__setitem__))
            if EMBEDDINGS in numbered.parts:
                stack.enter_context(hook_signals(model, [EMBEDDED], read.__setitem__))
            found = score(model, batch, criteria, receive, taps, keeping.loss, self.means)
        if MEANS in numbered.parts:
            parts[MEANS]["tokens"] = batch.lengths.sum()[None].cpu()
        if FEATURES in numbered.parts:
            states = torch.stack([found[tap].float().cpu() for tap in taps], 2)  # [B, T, taps, E]
            parts[FEATURES] = features(states, batch.to("cpu"), row, position, numbered.first)
        if CONTEXTS in numbered.parts:
            given = torch.stack([contexts[signal].detach().float().cpu() for signal in heads], 2)
            parts[CONTEXTS] = pooled(given, batch.to("cpu"))
        if EMBEDDINGS in numbered.parts:
            parts[EMBEDDINGS] = embeddings(read[EMBEDDED].detach().float().cpu(), batch.to("cpu"))
        answers = batch.prompt.clamp(max=batch.lengths - 1)
        for name in set(criteria) & set(STATISTICS):
            parts[name]["class"] = batch.ids.gather(1, answers[:, None])[:, 0].cpu()
        return parts

    def put(self, arrays: Arrays, name: str, layer: int, of_layer: Mapping[str, Tensor]) -> None:
        """of_layer: arrays [n, ...] by the suffix of their name; they become layer `layer` of [n, L, ...]."""
        for suffix, values in of_layer.items():
            if name + suffix not in arrays:
                shape = (len(values), self.layers, *values.shape[1:])
                arrays[name + suffix] = torch.empty(shape, dtype=values.dtype)
            arrays[name + suffix][:, layer] = values


def place(model: PreTrainedModel, device: torch.device) -> None:
    if not hasattr(model, "hf_device_map"):
        model.to(device)  # type: ignore[arg-type]


def sampled(keeping: Keeping, numbered: Numbered) -> tuple[Tensor, Tensor]:
    """-> row, position: [M], the tokens of a batch that are kept."""
    chosen = [
        keeping.sample(numbered.first + index, length)
        for index, length in enumerate(numbered.batch.lengths.tolist())
    ]
    row = torch.repeat_interleave(torch.arange(len(chosen)), torch.tensor(list(map(len, chosen))))
    return row, torch.cat(chosen)


def features(states: Tensor, batch: Batch, row: Tensor, position: Tensor, first: int) -> Arrays:
    """states: [B, T, taps, E]; row, position: [M], the sampled tokens -> the features' arrays."""
    arrays = pooled(states, batch)
    arrays["token/state"], arrays["token/state/scale"] = pack(states[row, position])
    arrays["window/window"] = torch.arange(first, first + len(states))
    arrays["token/window"], arrays["token/position"] = first + row, position
    return arrays


def embeddings(states: Tensor, batch: Batch) -> Arrays:
    """states: [B, T, E] -> those of all real positions, window after window, and how many each window has."""
    arrays: Arrays = {"window/length": batch.lengths, "window/prompt": batch.in_prompt().sum(1)}
    arrays["position/state"], arrays["position/state/scale"] = pack(states[batch.real()])
    return arrays


def pooled(values: Tensor, batch: Batch) -> Arrays:
    """values: [B, T, taps, E] -> of each window's prompt and of all of it the last one's and the mean."""
    arrays: Arrays = {}
    for name, inside in {"prompt": batch.in_prompt(), "sequence": batch.real()}.items():
        for how, of in {"last": last_of, "mean": mean_of}.items():
            name_of = f"window/{name}/{how}"
            arrays[name_of], arrays[f"{name_of}/scale"] = pack(of(values, inside))
    return arrays


class ShardWriter(pl.Callback):
    """Writes a shard's parts when its last batch is there; what was written survives any crash.

    ends: the number after each shard's last window.
    """

    def __init__(self, folder: Path, store: str, shard_windows: int, ends: Mapping[int, int]) -> None:
        self.folder, self.store, self.shard_windows, self.ends = folder, store, shard_windows, ends
        self.waiting: list[dict[str, Arrays]] = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: dict[str, Arrays],
        batch: Numbered,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not batch.kept:
            return  # this process only ran along
        self.waiting.append({part: outputs[part] for part in batch.kept})
        shard = batch.first // self.shard_windows
        if batch.first + len(batch.batch.ids) == self.ends[shard]:
            self.flush(shard, trainer.global_rank, trainer.world_size)

    def flush(self, shard: int, rank: int, world: int) -> None:
        for part in self.waiting[0]:
            arrays = {
                name: torch.cat([batch[part][name] for batch in self.waiting])
                for name in self.waiting[0][part]
            }
            if part in STATISTICS:
                arrays = compare(part, arrays)
            elif part == MEANS:
                arrays = average(arrays)
            windows = self.ends[shard] - shard * self.shard_windows
            tokens = next((len(values) for name, values in arrays.items() if name.startswith("token/")), 0)
            write_shard(self.folder, self.store, part, shard, (windows, tokens), arrays, rank, world)
        self.waiting = []


def average(arrays: Arrays) -> Arrays:
    """Sums and counts of a shard's batches -> float32 [L, U, D] of each kind."""
    means = {
        f"mean/{kind}": (arrays[f"sum/{kind}"].sum(0) / arrays["tokens"].sum()).float() for kind in KINDS
    }
    if not all(torch.isfinite(mean).all() for mean in means.values()):
        raise ValueError(
            "activations are not finite: the model overflows in its dtype (try model.dtype=float32)"
        )
    return means


def compare(name: str, arrays: Arrays) -> Arrays:
    """What a statistic compares, of the windows of a shard -> its scores, [1, L, U] of each kind."""
    classes, statistic = arrays["class"], STATISTICS[name]
    scores = {}
    for kind in KINDS:
        shown = arrays[f"shown/{kind}"]
        of_layers = [statistic.of(shown[:, layer], classes) for layer in range(shown.shape[1])]
        scores[f"shard/{kind}"] = torch.stack(of_layers)[None]
    return scores
