"""Training a predictor: rows of a trace store in, a net that ranks out."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm
from transformers import get_scheduler

from shadow.data.batches import mean_of
from shadow.errors import UserError
from shadow.fit.layer_losses import layer_losses
from shadow.fit.objectives import Objective
from shadow.fit.rank_metrics import Places, mass, places, ranks, recall, spearman
from shadow.fit.ridge import Moments
from shadow.models.sites import KINDS, Kind
from shadow.scorers.nets import Tap, TapNet
from shadow.traces.store import EMBEDDINGS, FEATURES, Rows, Traces

LEVELS = (0.3, 0.5, 0.7)  # of the plans whose recall and mass are reported


class Sample(NamedTuple):
    """states: [N, taps, E]; scores: the criterion's, float32 [N, S, U] of the scored layers.

    Of whole windows, states: [N, T, E] at the one tap, and inside: bool [N, T], the positions that are read.
    """

    states: Tensor
    scores: dict[Kind, Tensor]
    inside: Tensor | None = None


class Reading(NamedTuple):
    """Which rows of a store a predictor learns from, and what it reads of them.

    state: `state` (a token row's own), or for window rows `prompt/last`, `prompt/mean`, `sequence/last`,
    `sequence/mean`; part: FEATURES or CONTEXTS. Of EMBEDDINGS all positions of the `prompt` or `sequence`.
    """

    rows: Rows
    state: str
    part: str


class TraceRows(Dataset):
    """Rows of the first store, then the same rows of each other one: the states are that store's own, and
    the scores are always the first one's, of the layers from the first tap + ahead on."""

    def __init__(
        self,
        stores: Sequence[Traces],
        indices: Tensor,
        criterion: str,
        taps: list[int],
        reading: Reading,
        ahead: int = 0,
        kinds: Sequence[Kind] = KINDS,
    ) -> None:
        self.stores, self.indices, self.criterion, self.kinds = stores, indices, criterion, kinds
        self.reading, self.first = reading, taps[0] + ahead
        self.taps = [torch.tensor([store.taps.index(tap) for tap in taps]) for store in stores]

    def __len__(self) -> int:
        return len(self.indices) * len(self.stores)

    def __getitems__(self, chosen: list[int]) -> Sample:
        """The chosen rows, in the order of the store, which then reads them at least cost."""
        numbers = torch.tensor(chosen)
        numbers = numbers[(numbers % len(self.indices)).argsort(stable=True)]
        store_of, rows = numbers // len(self.indices), self.indices[numbers % len(self.indices)]
        if self.reading.part == EMBEDDINGS:
            states, inside = self.stores[0].read_embeddings(rows, self.reading.state)
            return Sample(states, self._scores(rows), inside)
        return Sample(self._states(store_of, rows), self._scores(rows))

    def _states(self, store_of: Tensor, rows: Tensor) -> Tensor:
        """Each row's, [N, taps, E], from the store of its number."""
        states: Tensor | None = None
        for number in store_of.unique().tolist():
            here = store_of == number
            found = self.states_in(number, rows[here])
            if states is None:
                states = torch.empty(len(rows), *found.shape[1:])
            states[here] = found
        assert states is not None, "no rows asked for"
        return states

    def states_in(self, number: int, rows: Tensor) -> Tensor:
        """-> [N, taps, E], from the store of this number."""
        found = self.stores[number].read(self.reading.rows, self.reading.part, self.reading.state, rows)
        return found[:, self.taps[number]]

    def in_other_stores(self, rows: Tensor) -> list[Tensor]:
        """[N, taps, E] from each store but the first."""
        return [self.states_in(number, rows) for number in range(1, len(self.stores))]

    def _scores(self, rows: Tensor) -> dict[Kind, Tensor]:
        return {
            kind: self.stores[0].read(self.reading.rows, self.criterion, kind, rows)[:, self.first :]
            for kind in self.kinds
        }


class EpochShuffle(Sampler):
    """A shuffle by seed and epoch alone, so that a resumed fit sees the batches of an unbroken one.

    Of `world` processes each takes every other row, so that their batches together are those of one process.
    Where the rows do not go round evenly, the last few of the shuffle are left out: all must step as often.
    """

    def __init__(self, count: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.seed, self.rank, self.world, self.epoch = count, seed, rank, world, 0

    def set_epoch(self, epoch: int) -> None:  # called by Lightning
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.world

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        rows = torch.randperm(self.count, generator=draw)[: len(self) * self.world]
        yield from rows[self.rank :: self.world].tolist()


class TraceData(pl.LightningDataModule):
    """Token or window rows, split into training and validation by *window*.

    stores: the first one has the scores; the others have other states of the same rows (`TraceRows`).
    """

    def __init__(
        self,
        stores: Sequence[Traces],
        criterion: str,
        taps: list[int],
        reading: Reading,
        val_share: float,
        batch_size: int,
        seed: int,
        ahead: int = 0,
        kinds: Sequence[Kind] = KINDS,
    ) -> None:
        super().__init__()
        traces = stores[0]
        traces.require(criterion)
        missing = [tap for tap in taps if tap not in traces.taps]
        if missing:
            raise UserError(f"predictor.taps={taps} must be among traces.taps={traces.taps}")
        windows = torch.randperm(traces.count("window"), generator=torch.Generator().manual_seed(seed))
        n_val = round(val_share * len(windows))
        if not 0 < n_val < len(windows):
            raise UserError(
                f"predictor.val_share must leave at least one of the {len(windows)} windows on either side, "
                f"got {val_share}"
            )
        owner = traces.read(reading.rows, FEATURES, "window", torch.arange(traces.count(reading.rows)))
        in_val = torch.isin(owner, windows[:n_val])
        numbers = torch.arange(len(owner))
        self.train = TraceRows(stores, numbers[~in_val], criterion, taps, reading, ahead, kinds)
        self.val = TraceRows(stores, numbers[in_val], criterion, taps, reading, ahead, kinds)
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        sampler = EpochShuffle(len(self.train), self.seed, rank, world)
        return DataLoader(self.train, batch_size=self.batch_size // world, sampler=sampler, collate_fn=_as_is)

    def passed(self, name: str) -> Iterator[tuple[Tensor, Sample]]:
        """The training rows of the first store, once and in order: their numbers there, and what they hold;
        with a progress bar of this name."""
        rows = self.train
        with tqdm(total=len(rows.indices), desc=name, leave=False) as bar:
            for chosen in torch.arange(len(rows.indices)).split(self.batch_size):
                yield rows.indices[chosen], rows.__getitems__(chosen.tolist())
                bar.update(len(chosen))

    def val_dataloader(self) -> DataLoader:
        """All of it in each process: what is reported does not depend on their number. In one shuffled order:
        the first batches, which may be all that are asked for, are a sample of every store."""
        order = torch.randperm(len(self.val), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return DataLoader(self.val, batch_size=self.batch_size, sampler=order, collate_fn=_as_is)


def _as_is(sample: Any) -> Any:
    return sample


def agreement(said: Tensor, target: Places, moved: Tensor) -> dict[str, Tensor]:
    """Ranks, places and sizes, [N, S, U] each -> metrics of the layers, [S]."""
    found = {"spearman": spearman(said, target)}
    for level in LEVELS:
        found[f"recall@{round(100 * level)}"] = recall(said, target, level)
        found[f"mass@{round(100 * level)}"] = mass(said, moved, level)
    return found


class Descent(NamedTuple):
    """AdamW's rate, its weight decay, that of a tap's last layer, and beta2, of the mean of squared
    gradients; the share of the steps in which the rate rises, and what it does then, as transformers names
    it."""

    lr: float
    weight_decay: float
    last_weight_decay: float
    beta2: float
    warmup: float
    schedule: str


class PredictorModule(pl.LightningModule):
    """Descent on an objective, the kinds of units weighing alike, from the best constant or the ridge on."""

    def __init__(
        self,
        net: TapNet,
        objectives: Mapping[Kind, Objective],
        descent: Descent,
        norms: Mapping[Kind, Tensor] | None = None,
    ) -> None:
        """objectives: of each kind that the net scores; norms: [L, U] of each, by which a unit's score is
        multiplied in the mass, if given."""
        super().__init__()
        self.net, self.objectives, self.descent = net, dict(objectives), descent
        self.norms = {kind: values[net.first :] for kind, values in (norms or {}).items()}
        self.totals: dict[Kind, dict[str, Tensor]] = {}  # of each metric, [S]: the sum over validation rows
        self.validated = 0  # rows
        self.mean_scores = torch.nn.ParameterDict(
            {kind: torch.nn.Parameter(torch.zeros(net.layers, 1), requires_grad=False) for kind in net.kinds}
        )

    @torch.no_grad()
    def start(self, data: TraceData, ridge: float | None) -> None:
        """Set the net to the best constant and, if `ridge`, the regression of what deviates from it."""
        for values in self.mean_scores.values():
            values.zero_()
        for _, sample in data.passed("means"):
            for kind in self.net.kinds:
                sums = sample.scores[kind].mean(-1, keepdim=True).sum(0)
                self.mean_scores[kind] += sums / len(data.train.indices)
        moments = {tap: Moments(ridge is not None) for tap in self.net.taps}
        for rows, sample in data.passed("start"):
            targets, others = self.targets(sample), data.train.in_other_stores(rows)
            for index, (tap, seen) in enumerate(moments.items()):
                span = self.net.reader(tap).span
                here = slice(span.start - self.net.first, span.stop - self.net.first)
                inside = sample.inside
                states = sample.states[:, index] if inside is None else mean_of(sample.states, inside)
                of_stores = torch.stack([states, *(other[:, index] for other in others)])
                seen.add(of_stores, {kind: values[:, here] for kind, values in targets.items()})
        for tap, seen in moments.items():
            reader = self.net.reader(tap)
            best = {kind: self.objectives[kind].start(mean) for kind, mean in seen.mean().items()}
            reader.set_static(seen.center(), seen.scale(), best)
            if ridge is not None:
                assert isinstance(reader, Tap)
                reader.set_linear(*seen.regress(reader.down.out_features, ridge))

    def targets(self, sample: Sample) -> dict[Kind, Tensor]:
        """-> [N, S, U] of each kind."""
        return {
            kind: self.objectives[kind].target(scores, self.mean_scores[kind])
            for kind, scores in sample.scores.items()
        }

    def loss(self, predicted: dict[Kind, Tensor], targets: dict[Kind, Tensor]) -> Tensor:
        return torch.stack(
            [self.objectives[kind].loss(predicted[kind], targets[kind]) for kind in self.net.kinds]
        ).mean()

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):  # of products alone: faster
            if self.net.plain and all(objective.alone for objective in self.objectives.values()):
                loss = self.loss_by_layers(batch)
            else:
                predicted = self.net(batch.states, batch.inside)
                loss = self.loss(predicted, self.targets(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.states), sync_dist=True)
        return loss

    def loss_by_layers(self, batch: Sample) -> Tensor:
        """What `loss` gives of all layers at once."""
        losses = []
        for index, tap in enumerate(self.net.taps):
            reader = self.net.reader(tap)
            assert isinstance(reader, Tap)
            told, before = reader.told(batch.states[:, index]).float(), reader.span.start - self.net.first
            for kind in self.net.kinds:
                rows = reader.up[kind].get_parameter("weight")
                loss_of = partial(self.loss_of_layer, batch.scores[kind], kind, before)
                losses.append(layer_losses(told, rows, reader.static[kind], loss_of))
        return torch.stack(losses).sum() / (len(self.net.kinds) * self.net.layers)

    def loss_of_layer(self, scores: Tensor, kind: Kind, before: int, layer: int, said: Tensor) -> Tensor:
        """scores: [N, S, U] of all layers; said: [N, 1, U] of the one that comes `layer` behind `before`."""
        here = slice(before + layer, before + layer + 1)
        objective = self.objectives[kind]
        return objective.loss(said, objective.target(scores[:, here], self.mean_scores[kind][here]))

    def on_validation_epoch_start(self) -> None:
        self.totals, self.validated = {kind: {} for kind in self.net.kinds}, 0

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        targets, predicted = self.targets(batch), self.net(batch.states, batch.inside)
        found: dict[str, list[Tensor]] = defaultdict(list)
        for kind in self.net.kinds:
            static = torch.cat([self.net.reader(tap).static[kind] for tap in self.net.taps])
            constant = static.expand_as(targets[kind])
            found["val/loss"].append(self.objectives[kind].loss(predicted[kind], targets[kind]))
            found["val/static_loss"].append(self.objectives[kind].loss(constant, targets[kind]))
            # not after each epoch of a fit: ranking would take longer than learning
            if self.trainer.state.fn == TrainerFn.VALIDATING:
                for name, of_layers in self.ranked(kind, batch, predicted[kind], static).items():
                    found[f"val/{name}"].append(of_layers.mean())
                    totals, whole = self.totals[kind], of_layers * len(batch.states)
                    totals[name] = totals.get(name, 0) + whole
        self.validated += len(batch.states)
        for name, of_kinds in found.items():
            self.log(name, torch.stack(of_kinds).mean(), batch_size=len(batch.states), sync_dist=True)

    def ranked(self, kind: Kind, batch: Sample, predicted: Tensor, static: Tensor) -> dict[str, Tensor]:
        """How well the net ranks, [S] of each metric, and beside it its constant, as `static_`."""
        moved, target = batch.scores[kind], places(batch.scores[kind])
        if self.norms:
            moved = moved * self.norms[kind].to(moved.device)
        found = agreement(ranks(predicted), target, moved)
        of_static = agreement(ranks(static).expand_as(moved), target, moved)
        return found | {f"static_{name}": values for name, values in of_static.items()}

    def metrics_of_layers(self) -> list[dict[str, int | str | float]]:
        """Of the last validation, a row for each scored layer and kind."""
        return [
            {
                "layer": self.net.first + index,
                "kind": kind,
                **{name: float(total[index]) / self.validated for name, total in totals.items()},
            }
            for kind, totals in self.totals.items()
            for index in range(len(self.mean_scores[kind]))
        ]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self.descent
        first = [p for name, p in self.net.named_parameters() if p.requires_grad and ".up." not in name]
        last = [p for name, p in self.net.named_parameters() if p.requires_grad and ".up." in name]
        groups: list[dict[str, Any]] = [
            {"params": first, "weight_decay": settings.weight_decay},
            {"params": last, "weight_decay": settings.last_weight_decay},
        ]
        optimizer = torch.optim.AdamW(groups, settings.lr, (0.9, settings.beta2), fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(settings.schedule, optimizer, round(settings.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
