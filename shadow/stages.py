"""From a composed config to models, traces, predictors and scorers: found by their settings, or made."""

import hashlib
import json
import logging
import shlex
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from shadow import models, traces
from shadow.artifacts import key_of, write_json, writing
from shadow.collector import CriterionCollector, ShardWriter
from shadow.criteria import CRITERIA
from shadow.data import CalibrationData, CalibrationExamples
from shadow.errors import UserError
from shadow.models import LM
from shadow.predictor_module import PredictorModule, TraceData
from shadow.predictors import Fixed, Oracle, Predicted, Scorer, TapNet, random_scores
from shadow.sites import KINDS, count_units, find_layers, find_sites
from shadow.sparsity import SparsityPolicy
from shadow.traces import Rows, Traces

log = logging.getLogger(__name__)

FORMAT = 1  # of traces and predictors; a change of what they mean makes a new name
WHERE = {"cache", "install", "device_map"}  # of the model: not what it is
TRAINER_WHERE = {
    "_target_",
    "accelerator",
    "devices",
    "default_root_dir",
    "log_every_n_steps",
    "enable_model_summary",
}
NETS = ("unified", "layerwise")
TRAIN_GROUPS = (
    "model",
    "data",
    "traces",
    "criterion",
    "predictor",
    "sparsity",
    "trainer",
    "seed",
    "paths",
    "debug",
)


def plain(node: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(node, resolve=True)
    assert isinstance(content, dict)
    return content  # pyright: ignore[reportReturnType]


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


def model_settings(cfg: DictConfig) -> dict[str, Any]:
    model = plain(cfg.model)
    source = model["path"] or {key: value for key, value in model["source"].items() if key not in WHERE}
    return {"name": model["name"], "source": source, "dtype": model["dtype"]}


def model_label(cfg: DictConfig) -> str:
    return Path(cfg.model.path).name if cfg.model.path else cfg.model.name


def calibration_data(cfg: DictConfig) -> CalibrationData:
    return instantiate(cfg.data, _convert_="all")


def data_label(cfg: DictConfig) -> str:
    """`builtin`, `text` or `tasks`: the option's name, or the class's where the config was given by hand."""
    return HydraConfig.get().runtime.choices.get("data") or cfg.data._target_.rsplit(".", 1)[-1]


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
            f"{folder} was made with other weights than the model now loaded: remove that folder, or name the model anew"
        )


# Traces


def trace_settings(cfg: DictConfig) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": model_settings(cfg),
        "data": plain(cfg.data),
        "content": calibration_data(cfg).fingerprint(),
        "traces": plain(cfg.traces),
        "seed": cfg.seed,
    }


def traces_folder(cfg: DictConfig) -> Path:
    name = f"{model_label(cfg)}-{data_label(cfg)}-{key_of(trace_settings(cfg))}"
    return Path(cfg.paths.artifact_dir) / "traces" / name


def get_traces(cfg: DictConfig, lm: LM) -> Traces:
    """The finished store of these settings; what is missing of it is collected."""
    check_traces(cfg)
    folder = traces_folder(cfg)
    if not (folder / "manifest.json").is_file():
        collect(cfg, lm, folder)
    store = Traces(folder)
    require_weights(folder, store.manifest["weights"], lm)
    return store


def check_traces(cfg: DictConfig) -> None:
    settings = cfg.traces
    unknown = [name for name in settings.criteria if name not in CRITERIA]
    if unknown or not settings.criteria:
        raise UserError(f"traces.criteria must name some of {list(CRITERIA)}, got {list(settings.criteria)}")
    if settings.batch_size < 1 or settings.shard_windows < 1 or settings.shard_windows % settings.batch_size:
        raise UserError(
            f"traces.shard_windows={settings.shard_windows} must be a multiple of traces.batch_size={settings.batch_size}"
        )
    if needs_traces(cfg) and cfg.criterion.name not in settings.criteria:
        raise UserError(
            f"criterion={cfg.criterion.name} must be among traces.criteria={list(settings.criteria)}"
        )


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


def reads(cfg: DictConfig) -> tuple[Rows, str]:
    """Which rows of a store a predictor learns from, and which of their states it reads."""
    pooling, decided_at = cfg.predictor.pooling, cfg.sparsity.decided_at
    if pooling not in ("scores", "mean", "last"):
        raise UserError(f"predictor.pooling must be scores, mean or last, got {pooling!r}")
    if pooling == "scores":
        return "token", "state"
    if decided_at == "token":
        raise UserError(
            f"sparsity.decided_at=token needs predictor.pooling=scores, got {pooling!r}: one state of a whole prompt "
            "says nothing about a single token"
        )
    return "window", f"{decided_at}/{pooling}"


def predictor_settings(cfg: DictConfig) -> dict[str, Any]:
    trainer = {key: value for key, value in plain(cfg.trainer).items() if key not in TRAINER_WHERE}
    return {
        "traces": trace_settings(cfg),
        "criterion": cfg.criterion.name,
        "predictor": plain(cfg.predictor),
        "reads": reads(cfg),
        "trainer": trainer,
    }


def predictor_folder(cfg: DictConfig) -> Path:
    name = f"{model_label(cfg)}-{cfg.predictor.name}-{cfg.criterion.name}-{key_of(predictor_settings(cfg))}"
    return Path(cfg.paths.artifact_dir) / "predictors" / name


def get_predictor(cfg: DictConfig, lm: LM, loggers: list) -> Path:
    """The folder of the finished predictor of these settings; it is fitted, or its fit goes on, if it is not there."""
    folder = predictor_folder(cfg)
    if not (folder / "meta.json").is_file():
        fit(cfg, get_traces(cfg, lm), folder, loggers)
    return folder


def predictor_taps(cfg: DictConfig, layers: int) -> list[int]:
    taps = list(range(1, layers)) if cfg.predictor.taps == "each" else list(cfg.predictor.taps)
    if not taps or taps != sorted(set(taps)) or not all(isinstance(t, int) and 0 <= t < layers for t in taps):
        raise UserError(
            f"predictor.taps must be rising layer numbers in [0, {layers}) or `each`, got {cfg.predictor.taps}"
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
    module.calibrate(data)
    log.info("fitting %s on %d %s rows -> %s", settings.name, len(data.train), rows, folder)
    keeper = ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False)
    last = folder / "last.ckpt"
    extra = [instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback]
    trainer: pl.Trainer = instantiate(cfg.trainer, callbacks=[keeper, *extra], logger=loggers)
    trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    metrics = {
        name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
    }
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
    last.unlink(missing_ok=True)
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


def policy_of(cfg: DictConfig) -> SparsityPolicy:
    settings = plain(cfg.sparsity)
    del settings["decided_at"]
    return SparsityPolicy(**settings)


def needs_traces(cfg: DictConfig) -> bool:
    return cfg.predictor.name not in ("random", "oracle")


def check_train(cfg: DictConfig) -> None:
    """What can be known before the model is loaded."""
    check_traces(cfg)
    policy_of(cfg)
    calibration_data(cfg)
    if cfg.predictor.name in NETS:
        reads(cfg)


def check_scorer(cfg: DictConfig) -> None:
    """What can be known before the model is loaded: an unknown scorer, a missing artifact and the command that makes it."""
    if cfg.sparsity.level == 0:
        return
    name = cfg.predictor.name
    if name in NETS:
        wanted = predictor_folder(cfg) / "meta.json"
    elif name == "static":
        wanted = traces_folder(cfg) / "manifest.json"
    else:
        return
    check_traces(cfg)
    if not wanted.is_file() and not cfg.make_missing:
        raise UserError(
            f"there is no {'predictor' if name in NETS else 'trace store'} {wanted.parent}: make it with "
            f"`{train_command()}`, or set make_missing=true"
        )


def train_command() -> str:
    """The `python train.py ...` that makes what this job misses: this job's own overrides, as far as they concern it."""
    kept = [
        override
        for override in HydraConfig.get().overrides.task
        if override.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] in TRAIN_GROUPS
    ]
    return shlex.join(["python", "train.py", *kept])


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
