"""Training a predictor: descent on an objective, from the best constant or a regression on."""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import get_scheduler

from shadow.data.batches import mean_of
from shadow.fit.layer_losses import layer_losses
from shadow.fit.objectives import Objective
from shadow.fit.rank_metrics import Places, mass, places, ranks, recall, spearman
from shadow.fit.ridge import Moments
from shadow.fit.rows import Sample, TraceData
from shadow.models.sites import Kind
from shadow.scorers.nets import Tap, TapNet

LEVELS = (0.3, 0.5, 0.7)  # of the plans whose recall and mass are reported


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
            latent, before = reader.latent(batch.states[:, index]).float(), reader.span.start - self.net.first
            for kind in self.net.kinds:
                rows = reader.up[kind].get_parameter("weight")
                loss_of = partial(self.loss_of_layer, batch.scores[kind], kind, before)
                losses.append(layer_losses(latent, rows, reader.static[kind], loss_of))
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
