"""The language model of a job: loaded once for all jobs of a sweep, and told from others by its weights."""

import json
import logging
import time
from functools import lru_cache
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from shadow.errors import UserError
from shadow.jobs.config import device_of, plain, shares_weights
from shadow.jobs.estimate import check_context
from shadow.models import load as models
from shadow.models.digest import digest
from shadow.models.load import LM
from shadow.traces.collector import place

log = logging.getLogger(__name__)


def load_lm(cfg: DictConfig) -> LM:
    """The jobs of a sweep share one model: nothing is left on it between them."""
    check_context(cfg)
    return _load_lm(json.dumps(plain(cfg.model), sort_keys=True), shares_weights(cfg))


def measured_lm(cfg: DictConfig) -> LM:
    """The model of `load_lm` as it is measured: the same weights in measure.dtype."""
    model = plain(cfg.model)
    settings = json.dumps(model | {"dtype": cfg.measure.dtype or model["dtype"]}, sort_keys=True)
    return placed(cfg, _load_lm(settings, shares_weights(cfg)))


def placed(cfg: DictConfig, lm: LM) -> LM:
    """On the GPU, if this job may use one and accelerate has not spread the model."""
    if device_of(cfg).type == "cuda":
        place(lm.model, device_of(cfg))
    return lm


@lru_cache(maxsize=2)  # the second for measure.dtype
def _load_lm(settings: str, shared: bool) -> LM:
    """shared: whether processes will share it out, which is not undone."""
    model = OmegaConf.create(json.loads(settings))
    start = time.monotonic()
    where = json.loads(settings)["device_map"]  # plain: accelerate's may be a dict
    trusted = model.get("trust_remote_code", False)
    lm = models.load(instantiate(model.source), model.path, model.dtype, where, trusted)
    log.info("loaded %s in %.1f s", model.path or model.name, time.monotonic() - start)
    return lm


def require_weights(folder: Path, recorded: str, lm: LM) -> None:
    if recorded != digest(lm.model):
        raise UserError(
            f"{folder} was made with other weights than the model now loaded: "
            "remove it, or give the model another model.name"
        )
