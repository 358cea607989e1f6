"""From a composed config to models, traces, predictors and scorers: found by their settings, or made."""

import hashlib
import json
import logging
import time
import zipfile
from functools import lru_cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from shadow import models, traces
from shadow.artifacts import write_json, writing
from shadow.collector import CriterionCollector, ShardWriter
from shadow.data import CalibrationExamples
from shadow.errors import UserError
from shadow.jobs.settings import (
    calibration_data,
    check_traces,
    plain,
    predictor_folder,
    predictor_settings,
    reads,
    trace_settings,
    traces_folder,
)
from shadow.models import LM
from shadow.predictor_module import PredictorModule, TraceData
from shadow.predictors import Fixed, Oracle, Predicted, Scorer, TapNet, random_scores
from shadow.sites import KINDS, count_units, find_layers, find_sites
from shadow.traces import Traces

log = logging.getLogger(__name__)


def load_lm(cfg: DictConfig) -> LM:
    """The jobs of a sweep share one model: nothing is left on it between them."""
    return _load_lm(json.dumps(plain(cfg.model), sort_keys=True))


@lru_cache(maxsize=1)
def _load_lm(settings: str) -> LM:
    model = OmegaConf.create(json.loads(settings))
    start = time.monotonic()
    lm = models.load(instantiate(model.source), model.path, model.dtype, model.device_map)
    log.info("loaded %s in %.1f s", model.path or model.name, time.monotonic() - start)
    return lm


def digest(model: PreTrainedModel) -> str:
    """Tells one set of weights from another by a few numbers of every parameter."""
    found = hashlib.sha256()
    for name, values in model.named_parameters():
        flat = values.detach().flatten()
        found.update(name.encode() + flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def require_weights(folder: Path, recorded: str, lm: LM) -> None:
    if recorded != digest(lm.model):
        raise UserError(
            f"{folder} was made with other weights than the model now loaded: "
            "remove that folder, or give the model another model.name"
        )


# Traces


def get_traces(cfg: DictConfig, lm: LM) -> Traces:
    """The finished store of these settings; what is missing of it is collected."""
    check_traces(cfg)
    folder = traces_folder(cfg)
    if not (folder / "manifest.json").is_file():
        collect(cfg, lm, folder)
    store = Traces(folder)
    require_weights(folder, store.manifest["weights"], lm)
    return store


def collect(cfg: DictConfig, lm: LM, folder: Path) -> None:
    start = time.monotonic()
    examples = calibration_data(cfg).examples(lm)
    layers, settings = len(find_layers(lm.model)), cfg.traces
    taps = list(range(layers)) if settings.taps == "all" else list(settings.taps)
    if any(not 0 <= tap < layers for tap in taps):
        raise UserError(f"traces.taps must be layers in [0, {layers}) of this model, got {taps}")
    done = traces.finished_shards(folder)
    first = done * settings.shard_windows
    if first < len(examples):
        log.info(
            "collecting %s on %d examples, %d done -> %s",
            list(settings.criteria),
            len(examples),
            first,
            folder,
        )
        collector = CriterionCollector(
            lm.model,
            settings.criteria,
            taps,
            settings.tokens_per_window,
            settings.batch_size,
            cfg.seed,
            first,
        )
        progress = [instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback]
        writer = ShardWriter(folder, settings.shard_windows // settings.batch_size, done)
        trainer = instantiate(
            cfg.trainer,
            callbacks=[writer, *progress],
            logger=False,
            enable_checkpointing=False,
            inference_mode=False,
        )
        trainer.predict(
            collector, CalibrationExamples(examples, settings.batch_size, first), return_predictions=False
        )
    facts = {
        "criteria": list(settings.criteria),
        "taps": taps,
        "layers": layers,
        "width": lm.model.config.hidden_size,
        "units": count_units(find_sites(lm.model)),
        "parameters": lm.model.num_parameters(),
        "weights": digest(lm.model),
    }
    traces.finish(folder, trace_settings(cfg), facts)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    log.info(
        "traces: %d examples, %.2f GB, %.0f s -> %s",
        len(examples),
        size / 1e9,
        time.monotonic() - start,
        folder,
    )


# Predictors


def get_predictor(cfg: DictConfig, lm: LM, loggers: list) -> Path:
    """The folder of the finished predictor of these settings; what is missing of it is fitted."""
    folder = predictor_folder(cfg)
    if not (folder / "meta.json").is_file():
        fit(cfg, get_traces(cfg, lm), folder, loggers)
    (folder / "last.ckpt").unlink(missing_ok=True)  # it was for going on
    return folder


def predictor_taps(cfg: DictConfig, layers: int) -> list[int]:
    taps = list(range(1, layers)) if cfg.predictor.taps == "each" else list(cfg.predictor.taps)
    if not taps or taps != sorted(set(taps)) or not all(isinstance(t, int) and 0 <= t < layers for t in taps):
        raise UserError(
            f"predictor.taps must be `each` or rising layers in [0, {layers}), got {cfg.predictor.taps}"
        )
    return taps


def fit(cfg: DictConfig, store: Traces, folder: Path, loggers: list) -> None:
    start = time.monotonic()
    settings, facts = cfg.predictor, store.manifest
    rows, state = reads(cfg)
    taps = predictor_taps(cfg, facts["layers"])
    data = TraceData(
        store, cfg.criterion.name, taps, rows, state, settings.val_share, settings.batch_size, cfg.seed
    )
    torch.manual_seed(cfg.seed)  # the net starts alike whatever ran before
    net = TapNet(taps, facts["layers"], facts["width"], facts["units"], settings.rank)
    module = PredictorModule(net, settings.floor, settings.lr, settings.weight_decay)
    log.info("fitting %s on %d %s rows -> %s", settings.name, len(data.train), rows, folder)
    last = folder / "last.ckpt"
    if last.is_file() and not zipfile.is_zipfile(last):
        log.warning("%s is damaged: the fit begins anew", last)
        last.unlink()
    if not last.is_file():
        module.start(data, settings.ridge)
    keeper = ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False)
    extra = [instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback]
    trainer: pl.Trainer = instantiate(cfg.trainer, callbacks=[keeper, *extra], logger=loggers)
    trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    logged = {
        name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
    }
    metrics = logged or dict(trainer.validate(module, data, verbose=False)[0])
    parameters = sum(values.numel() for values in net.parameters() if values.requires_grad)
    with writing(folder / "predictor.safetensors") as unfinished:
        save_file({name: values.cpu().contiguous() for name, values in net.state_dict().items()}, unfinished)
    meta = {
        "settings": predictor_settings(cfg),
        "taps": taps,
        "rank": settings.rank,
        "pooling": settings.pooling,
        **{key: facts[key] for key in ("layers", "width", "units", "weights")},
        "parameters": parameters,
        "share_of_model": parameters / facts["parameters"],
        "rows": {"train": len(data.train), "val": len(data.val)},
        "metrics": metrics,
    }
    write_json(folder / "meta.json", meta)
    log.info(
        "predictor: %.1f M parameters (%.1f %% of the model), %s, %.0f s -> %s",
        parameters / 1e6,
        100 * parameters / facts["parameters"],
        {name: round(value, 3) for name, value in sorted(metrics.items())},
        time.monotonic() - start,
        folder,
    )


def load_predictor(folder: Path, lm: LM) -> Predicted:
    meta = json.loads((folder / "meta.json").read_text())
    require_weights(folder, meta["weights"], lm)
    net = TapNet(meta["taps"], meta["layers"], meta["width"], meta["units"], meta["rank"])
    net.load_state_dict(load_file(folder / "predictor.safetensors"))
    return Predicted(net.eval(), meta["pooling"])


# Scorers


def get_scorer(cfg: DictConfig, lm: LM, loggers: list) -> Scorer:
    name, sites = cfg.predictor.name, find_sites(lm.model)
    if name == "random" or cfg.sparsity.level == 0:
        return Fixed(random_scores(sites, cfg.seed))
    if name == "oracle":
        return Oracle(cfg.criterion.name)
    if name == "static":
        store = get_traces(cfg, lm)
        means = {kind: store.mean_window_scores(cfg.criterion.name, kind) for kind in KINDS}
        return Fixed({(site.layer, site.kind): means[site.kind][site.layer] for site in sites})
    return load_predictor(get_predictor(cfg, lm, loggers), lm)
