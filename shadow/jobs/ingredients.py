"""What a recipe builds its scorer of: found by the job's settings, or made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from torch import Tensor, nn

from shadow.criteria import RANDOM, random_scores_of
from shadow.data.batches import Batch, Loss, batched
from shadow.jobs import routers
from shadow.jobs.calibration import budget_data
from shadow.jobs.fitting import get_predictor, load_predictor
from shadow.jobs.method import new_recipe
from shadow.jobs.stores import get_means, get_traces
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.models.sites import SiteKey
from shadow.scorers.fixed import Fixed
from shadow.scorers.predicted import Predicted
from shadow.scorers.protocol import Scorer
from shadow.scorers.recipe import Schedule


@dataclass(frozen=True)
class JobIngredients:
    """loggers: for a predictor that is fitted on the way."""

    cfg: DictConfig
    lm: LM
    loggers: Sequence[Any] = ()

    @property
    def seed(self) -> int:
        return self.cfg.seed

    @property
    def criterion(self) -> str:
        return self.cfg.criterion.name

    @property
    def loss(self) -> Loss:
        return self.cfg.traces.loss

    def static(self) -> Mapping[SiteKey, Tensor]:
        sites = find_sites(self.lm.model)
        if self.criterion == RANDOM:
            return {(site.layer, site.kind): random_scores_of(site) for site in sites}
        store = get_traces(self.cfg, self.lm)
        means = {kind: store.static_scores(self.criterion, kind) for kind in {site.kind for site in sites}}
        return {(site.layer, site.kind): means[site.kind][site.layer] for site in sites}

    def means(self) -> Mapping[SiteKey, Tensor]:
        return get_means(self.cfg, self.lm)

    def sample(self) -> list[Batch]:
        return calibration_batches(self.cfg, self.lm, self.cfg.sparsity.budget_windows)

    def predictor(self) -> Predicted:
        return load_predictor(get_predictor(self.cfg, self.lm, list(self.loggers)), self.lm)

    def fitted(self, module: pl.LightningModule, net: nn.Module, schedule: Schedule) -> None:
        routers.fitted(self.cfg, self.lm, module, net, schedule, self.loggers)


def calibration_batches(cfg: DictConfig, lm: LM, windows: int) -> list[Batch]:
    """The calibration's first windows."""
    return list(batched(budget_data(cfg).examples(lm)[:windows], cfg.traces.batch_size))


def get_scorer(cfg: DictConfig, lm: LM, loggers: Sequence[Any] = ()) -> Scorer:
    if cfg.sparsity.level == 0:
        return Fixed({})  # nothing is pruned, and nobody asked
    return new_recipe(cfg).build(lm.model, JobIngredients(cfg, lm, loggers))
